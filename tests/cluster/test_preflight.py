"""launch/preflight.py as several ranks run it, each on a node of its own: what it finds, whom it blames, how it ends."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from storydist.data.index import ShardIndex
from tests.small_runs import small_config
from tests.tiny_shards import write_shards

ROOT = Path(__file__).resolve().parents[2]
CHECKS = ("ranks", "code", "libraries", "settings", "index", "device", "cores", "open files", "GPU", "shared memory")
CHECKS += ("shards", "run folder", "scratch", "lead time", "room", "one folder", "clock", "all-reduce")


@dataclass(frozen=True)
class Outcome:
    codes: dict[str, int]
    out: dict[str, str]
    err: dict[str, str]

    @property
    def told(self) -> str:
        """What rank 0 printed."""
        return self.out["0"]

    def line(self, level: str, check: str) -> str:
        """The line of the table that begins with these."""
        found = [line for line in self.told.splitlines() if line.startswith(f"{level:<5}{check:<15}")]
        assert len(found) == 1, self.told
        return found[0]


class Scenarios:
    """Collected, then run together."""

    def __init__(self, folder: Path, index: ShardIndex):
        self.folder, self.index = folder, index
        self.scenarios: dict[str, Any] = {}
        config = small_config(index, folder / "run").model_dump(mode="json")
        self.config = self.write("config", config)
        self.other = self.write("other", config | {"train": config["train"] | {"seed": 5}})

    def write(self, name: str, config: dict[str, Any]) -> Path:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    def add(self, name: str, *ranks: dict[str, Any] | None, words: tuple[str, ...] = (), **more: Any) -> None:
        """`ranks`: what is peculiar to each; None: it does not come."""
        common = ["train.device=cpu", f"run.dir={self.folder / 'runs' / name}", *words]
        coming = {
            rank: {"words": ["--config", told.get("config", str(self.config)), *common], **told}
            for rank, told in enumerate(ranks)
            if told is not None
        }
        self.scenarios[name] = {"ranks": coming, "world_size": len(ranks), **more}

    def run(self) -> dict[str, Outcome]:
        (self.folder / "scenarios.json").write_text(json.dumps(self.scenarios))
        command = [sys.executable, "-m", "tests.cluster.forked", str(self.folder)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
        codes = json.loads((self.folder / "codes.json").read_text())
        return {name: self._outcome(name, codes[name]) for name in self.scenarios}

    def _outcome(self, name: str, codes: dict[str, int]) -> Outcome:
        def texts(kind: str) -> dict[str, str]:
            return {rank: (self.folder / name / f"{kind}-{rank}").read_text() for rank in codes}

        return Outcome(codes, texts("out"), texts("err"))


@pytest.fixture(scope="module")
def outcomes(tiny_index: ShardIndex, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("preflight")
    made = Scenarios(folder, tiny_index)
    wait = ("--wait-s", "3")
    quick = {"constants": {"storydist.cluster.meeting.ANSWER_S": 4, "storydist.cluster.preflight.ANSWER_S": 4}}
    made.add("well", {}, {})
    made.add("missing", {}, None, {}, words=wait)
    made.add("first missing", None, {}, words=wait)
    made.add("port taken", {}, None, words=wait, **{"port taken": True})
    made.add("settings", {}, {"config": str(made.other)})
    made.add("mistake", {}, {}, words=("train.stepz=3",))
    for name in ("here", "there"):
        (folder / name).mkdir()
    made.add("folders", {"folder": str(folder / "here")}, {"folder": str(folder / "there")}, words=("run.dir=run",))
    damaged = write_shards(folder / "damaged")
    with damaged.shard_path(1).open("ab") as shard:
        shard.write(b"more")
    made.add("shard", {}, {}, words=(f"data.shards={damaged.root}",))
    made.add("disk of one", {}, {"calls": {"storydist.cluster.shards._problem": "fail to read"}})
    (folder / "file").touch()
    made.add("file in the way", {}, {}, words=(f"run.dir={folder / 'file' / 'run'}",))
    made.add("dies", quick, {"calls": {"storydist.cluster.machine.open_files": "die"}})
    made.add("hangs", quick, {"calls": {"storydist.cluster.folders.scratch": "hang"}})
    made.add("defect", {}, {"calls": {"storydist.cluster.machine.cores": "have a defect"}})
    few = {"environment": {"SLURM_CPUS_PER_TASK": "4096"}}
    made.add("cores", few, {})
    made.add("lead", {}, {}, words=("--lead-s", "45"))
    return made.run()


def test_where_all_is_well_every_check_says_so_and_leaves_nothing(outcomes, tmp_path_factory):
    well = outcomes["well"]
    assert well.codes == {"0": 0, "1": 0}, well.told + well.err["0"]
    for check in CHECKS:
        assert well.line("ok", check)
    assert "2 on 2 node(s)" in well.line("ok", "ranks")
    assert "gloo: " in well.line("ok", "all-reduce") and "GB/s" in well.line("ok", "all-reduce")
    assert "bad nodes" not in well.told and not well.out["1"]
    (run,) = tmp_path_factory.getbasetemp().glob("preflight*/runs/well")
    assert not list(run.iterdir())


def test_a_rank_that_does_not_come_is_named_with_its_node(outcomes):
    missing = outcomes["missing"]
    assert set(missing.codes.values()) == {3}
    assert "rank 1 of 3 did not come within 3 s (on n2); 2 did" in missing.told
    assert "\nbad nodes: n2\n" in missing.told and "bad nodes: n2" in missing.out["2"]


def test_without_rank_0_the_others_name_its_node(outcomes):
    assert outcomes["first missing"].codes == {"1": 3}
    assert "rank 0 was not reached" in outcomes["first missing"].out["1"]
    assert "\nbad nodes: n1\n" in outcomes["first missing"].out["1"]


def test_a_port_that_another_program_has_is_named(outcomes):
    taken = outcomes["port taken"]
    assert taken.codes == {"0": 3}
    assert "rank 0 cannot listen at 127.0.0.1:" in taken.told and "another program has it" in taken.told
    assert "\nbad nodes: n1\n" in taken.told


def test_other_settings_on_one_node_are_named_by_key(outcomes):
    settings = outcomes["settings"]
    assert settings.codes == {"0": 3, "1": 3}
    assert "n2  train.seed '5', elsewhere '0'" in settings.line("FAIL", "settings")
    assert settings.told.endswith("\nbad nodes: n2\n")


def test_a_mistake_in_the_settings_blames_no_node(outcomes):
    mistake = outcomes["mistake"]
    assert mistake.codes == {"0": 2, "1": 2}
    assert "train.stepz: no such key; did you mean train.steps?" in " ".join(mistake.told.split())
    assert "bad nodes" not in mistake.told


def test_folders_that_only_have_the_same_name_are_told_apart(outcomes):
    folders = outcomes["folders"]
    assert folders.codes == {"0": 3, "1": 3}
    assert "n2" in folders.line("FAIL", "one folder") and "n1 has" in folders.line("FAIL", "one folder")


def test_a_shard_of_another_size_is_named(outcomes):
    shard = outcomes["shard"]
    assert shard.codes == {"0": 2, "1": 2}
    assert "test-000000.tar: has " in shard.line("FAIL", "shards")


def test_a_disk_that_fails_on_one_node_blames_that_node(outcomes):
    assert outcomes["disk of one"].codes == {"0": 3, "1": 3}
    assert "n2" in outcomes["disk of one"].line("FAIL", "shards")
    assert outcomes["disk of one"].told.endswith("\nbad nodes: n2\n")


def test_a_run_folder_that_cannot_be_made_is_the_settings_fault(outcomes):
    assert outcomes["file in the way"].codes == {"0": 2, "1": 2}
    assert "is a file" in outcomes["file in the way"].line("FAIL", "run folder")


@pytest.mark.parametrize(("name", "check"), [("dies", "open files"), ("hangs", "scratch")])
def test_a_rank_that_falls_silent_is_named_with_what_it_was_doing(outcomes, name, check):
    silent = outcomes[name]
    assert silent.codes["0"] == 3
    assert f"rank 1 began to check '{check}' and gave no answer within 4 s" in silent.line("FAIL", "ranks")
    assert silent.told.endswith("\nbad nodes: n2\n")


def test_a_check_that_has_a_defect_ends_no_other(outcomes):
    defect = outcomes["defect"]
    assert "ZeroDivisionError: division by zero" in defect.line("FAIL", "cores")
    assert defect.line("ok", "all-reduce") and defect.codes == {"0": 3, "1": 3}


def test_fewer_cores_than_asked_for_are_told_with_the_remedy(outcomes):
    assert "--cpus-per-task=4096 was asked for" in outcomes["cores"].line("FAIL", "cores")
    assert "SRUN_CPUS_PER_TASK" in outcomes["cores"].told


def test_a_lead_that_slurm_itself_uses_up_fails(outcomes):
    assert outcomes["lead"].codes == {"0": 2, "1": 2}
    assert "45 s" in outcomes["lead"].line("FAIL", "lead time")


def test_a_full_disk_is_found_although_its_folder_may_be_written_to(tiny_index, tmp_path):
    from storydist.cluster.folders import writable

    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "none", str(small)], check=False)
    if os.geteuid() != 0 or mounted.returncode:
        pytest.skip("only root mounts file systems")
    try:
        (found,) = writable("run folder", small / "run", "run.dir")
        assert found.level == "FAIL" and "No space left on device" in found.what
        assert not list((small / "run").iterdir())
    finally:
        subprocess.run(["umount", str(small)], check=True)
