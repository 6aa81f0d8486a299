"""What one rank checks, alone and with the others; what it learns on the way is there for the checks behind."""

from collections.abc import Callable
from pathlib import Path

import torch

from storydist.cluster import alike, folders, gpu, lead, machine, network, shards
from storydist.cluster.finding import Finding
from storydist.cluster.meeting import Meeting
from storydist.cluster.place import Place
from storydist.config import Config
from storydist.data.index import ShardIndex
from storydist.data.location import absolute
from storydist.data.storage import RemoteStorage
from storydist.model import StoryModel, data_facts

Check = Callable[[], list[Finding]]


class SkippedError(Exception):
    """A check cannot be made, because an earlier one failed, which that one tells."""


class Rank:
    """The checks of one rank; each raises what it likes, and SkippedError where it lacks what another should have got.

    `facts`: what has to be the same on all nodes; `index` is None until it is opened.
    """

    def __init__(self, place: Place, load: Callable[[], Config], lead_s: int | None):
        self.place, self.load, self.lead_s = place, load, lead_s
        self.facts: alike.Facts = {}
        self.index: ShardIndex | None = None
        self.weight_bytes = 0  # of the model
        self._config: Config | None = None

    @property
    def config(self) -> Config:
        if self._config is None:
            raise SkippedError
        return self._config

    @property
    def run(self) -> Path:
        return Path(self.config.run.dir)

    def alone(self) -> dict[str, Check]:
        """{check: function}, in order: what concerns the whole node is its first rank's, what concerns the run rank
        0's.
        """
        place, of_node, of_run = self.place, self.place.first_of_node, self.place.rank == 0
        checks: dict[str, tuple[bool, Check]] = {
            "code": (of_node, self.code),
            "settings": (True, self.settings),
            "cores": (True, lambda: machine.cores(place)),
            "open files": (True, lambda: machine.open_files(place)),
            gpu.CHECK: (True, lambda: gpu.gpu(place, self.config.train.device)),
            "shared memory": (of_node, self.shared_memory),
            "index": (True, self.open_index),
            shards.CHECK: (True, self.shards),
            "cache": (of_node, self.cache),
            "run folder": (of_node, lambda: folders.writable("run folder", self.run, "run.dir")),
            "scratch": (of_node, lambda: folders.scratch(Path(place.scratch))),
            lead.CHECK: (of_run, self.lead_time),
        }
        return {name: check for name, (is_ours, check) in checks.items() if is_ours}

    def together(self, meeting: Meeting) -> dict[str, Check]:
        """{check: function}, to be called by all ranks in this order; some are for the first rank of each node."""
        checks: dict[str, tuple[bool, Check]] = {
            "model": (True, self.model),
            "room": (self.place.rank == 0, self.room),
            "one folder": (self.place.rank in meeting.speakers.values(), lambda: folders.one_folder(meeting, self.run)),
            network.CLOCK: (self.place.rank in meeting.speakers.values(), lambda: network.clock(meeting)),
            network.REDUCE: (True, lambda: network.all_reduce(meeting, self.device, self.weight_bytes)),
        }
        return {name: check for name, (is_ours, check) in checks.items() if is_ours}

    @property
    def device(self) -> torch.device:
        """That training takes on this rank."""
        return gpu.wanted_device(self.place, self.config.train.device)

    def code(self) -> list[Finding]:
        self.facts |= alike.code_and_libraries()
        return []

    def settings(self) -> list[Finding]:
        config = self.load()
        data = config.data.model_copy(update={"shards": absolute(config.data.shards)})
        self._config = config.model_copy(update={"data": data})
        self.facts |= alike.settings(self._config)
        return []

    def open_index(self) -> list[Finding]:
        self.index = ShardIndex.open(self.config.data.shards, self.config.data.cache)
        self.facts["index"] = {"fingerprint": self.index.info.fingerprint[:12]}
        return []

    def shards(self) -> list[Finding]:
        return shards.readable(self._opened(), self.place)

    def cache(self) -> list[Finding]:
        index = self._opened()
        if not isinstance(index.storage, RemoteStorage):
            return []
        return folders.cache(self.config, [shard.size_bytes for shard in index.info.shards])

    def shared_memory(self) -> list[Finding]:
        return machine.shared_memory(self.place, gpus=self.device.type == "cuda")

    def lead_time(self) -> list[Finding]:
        return lead.lead_time(self.run, self.lead_s, self.place.job_id)

    def model(self) -> list[Finding]:
        index, config = self._opened(), self.config
        built = StoryModel(config.model, config.losses.heads(), data_facts(index, config.data))
        self.weight_bytes = sum(tensor.nbytes for tensor in built.state_dict().values())
        return []

    def room(self) -> list[Finding]:
        if not self.weight_bytes:
            raise SkippedError
        return folders.room(self.config, folders.checkpoint_bytes(self.config, self.weight_bytes))

    def _opened(self) -> ShardIndex:
        if self.index is None:
            raise SkippedError
        return self.index
