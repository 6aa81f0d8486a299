"""The ranks find each other and tell each other what they found, over a store of small texts at rank 0.

No collective is needed for that, so a rank that is missing, hangs or dies can be named by the others.
"""

import json
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from torch.distributed import DistError, HashStore, PrefixStore, Store, TCPStore

from storydist.cluster.place import Place

CONNECT_S = 5.0  # how long one try to reach rank 0 takes
ANSWER_S = 120.0  # how long a rank may take over its checks; a dead server of shards is tried for a minute
POLL_S = 0.02


class MissingError(Exception):
    """Some ranks did not come, or fell silent. `ranks`: which; `nodes`: theirs, as far as that is known."""

    def __init__(self, what: str, ranks: Sequence[int], nodes: Sequence[str]):
        super().__init__(what)
        self.ranks, self.nodes = tuple(ranks), tuple(nodes)


class Meeting:
    """All ranks, met. `nodes[rank]`: the node of each."""

    def __init__(self, store: Store, place: Place, nodes: Sequence[str]):
        self.store, self.place, self.nodes = store, place, tuple(nodes)

    @property
    def speakers(self) -> dict[str, int]:
        """{node: its first rank}, in order of rank."""
        return {node: self.nodes.index(node) for node in dict.fromkeys(self.nodes)}

    def at(self, check: str) -> None:
        """Says what this rank is about to do, should it never come back from it."""
        self.store.set(f"at/{self.place.rank}", check)

    def tell(self, subject: str, content: Any) -> None:
        """Leaves what this rank has to say of a subject, as JSON."""
        self.store.set(f"{subject}/{self.place.rank}", json.dumps(content))

    def hear(self, subject: str, rank: int, wait_s: float = ANSWER_S) -> Any:
        """What a rank says of a subject. Raises MissingError when it says nothing in time."""
        try:
            self.store.wait([f"{subject}/{rank}"], timedelta(seconds=wait_s))
        except DistError:
            raise MissingError(
                f"rank {rank} on {self.nodes[rank]} {self._doing(rank)} and gave no answer within {wait_s:g} s",
                [rank],
                [self.nodes[rank]],
            ) from None
        return json.loads(self.store.get(f"{subject}/{rank}"))

    def hear_all(self, subject: str, wait_s: float = ANSWER_S) -> tuple[dict[int, Any], list[MissingError]]:
        """{rank: what it says}, and who fell silent; all of them together are waited for once."""
        deadline, heard, missing = time.monotonic() + wait_s, {}, []
        for rank in range(self.place.world_size):
            try:
                heard[rank] = self.hear(subject, rank, max(POLL_S, deadline - time.monotonic()))
            except MissingError as error:
                told = f"rank {rank} {self._doing(rank)} and gave no answer within {wait_s:g} s"
                missing.append(MissingError(told, error.ranks, error.nodes))
        return heard, missing

    def _doing(self, rank: int) -> str:
        key = f"at/{rank}"
        return f"began to check {self.store.get(key).decode()!r}" if self.store.check([key]) else "came"


def meet(place: Place, wait_s: float) -> Meeting:
    """Waits until all ranks are there. Raises MissingError, on every rank that came, naming those that did not; OSError
    when rank 0 cannot listen at its port.
    """
    store = PrefixStore("preflight", _store(place, wait_s))
    store.set(f"here/{place.rank}", place.node)
    if place.rank == 0:
        nodes = _await_all(store, place, wait_s)
        store.set("roll", json.dumps(nodes))
    else:
        try:
            store.wait(["roll"], timedelta(seconds=wait_s + CONNECT_S))
        except DistError:
            raise MissingError(f"rank 0 on {place.master_node} fell silent", [0], [place.master_node]) from None
        nodes = json.loads(store.get("roll"))
    missing = [rank for rank, node in enumerate(nodes) if node is None]
    if missing:
        raise _missing(place, nodes, missing, wait_s)
    return Meeting(store, place, [node for node in nodes if node is not None])


def _store(place: Place, wait_s: float) -> Store:
    if place.world_size == 1:
        return HashStore()
    listens = place.rank == 0 and not place.agent_store
    where = f"{place.master_address}:{place.master_port}"
    try:
        return TCPStore(
            place.master_address,
            place.master_port,
            world_size=place.world_size,
            is_master=listens,
            timeout=timedelta(seconds=wait_s),
            wait_for_workers=False,
        )
    except DistError as error:
        if listens:
            taken = "another program has it" if "EADDRINUSE" in str(error) else str(error).partition(". ")[0]
            raise OSError(f"rank 0 cannot listen at {where}: {taken}") from None
        raise MissingError(f"rank 0 was not reached at {where} within {wait_s:g} s", [0], [place.master_node]) from None


def _await_all(store: Store, place: Place, wait_s: float) -> list[str | None]:
    """The node of each rank; None: it did not come in time."""
    deadline = time.monotonic() + wait_s
    nodes: list[str | None] = [None] * place.world_size
    while None in nodes and time.monotonic() < deadline:
        for rank, node in enumerate(nodes):
            if node is None and store.check([f"here/{rank}"]):
                nodes[rank] = store.get(f"here/{rank}").decode()
        if None in nodes:
            time.sleep(POLL_S)
    return nodes


def _missing(place: Place, nodes: Sequence[str | None], missing: Sequence[int], wait_s: float) -> MissingError:
    """Names nodes by how many of their ranks came: which rank runs where depends on Slurm's distribution."""
    came = [node for node in nodes if node is not None]
    bad = [node for node, num_ranks in place.expected.items() if came.count(node) < num_ranks]
    ranks = ", ".join(map(str, missing))
    where = f" (on {', '.join(bad)})" if bad else ""
    return MissingError(
        f"rank {ranks} of {len(nodes)} did not come within {wait_s:g} s{where}; {len(came)} did", missing, bad
    )
