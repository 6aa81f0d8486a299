"""Clocks, compared between threads; an all-reduce that goes wrong. tests/cluster/test_preflight.py has real ranks."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
from torch.distributed import HashStore

from storydist.cluster import network
from storydist.cluster.finding import Finding
from storydist.cluster.meeting import Meeting
from storydist.cluster.place import Place


def compared(*ahead_s: float) -> list[Finding]:
    """What each node behind the first finds; `ahead_s`: of their clocks."""
    store, size = HashStore(), len(ahead_s) + 1
    store.set_timeout(timedelta(seconds=10))
    nodes = [f"n{rank + 1}" for rank in range(size)]
    clocks = (0.0, *ahead_s)

    def of(rank: int) -> list[Finding]:
        meeting = Meeting(store, Place(rank=rank, world_size=size), nodes)
        return network.clock(meeting, lambda: time.time() + clocks[rank])

    with ThreadPoolExecutor(size) as ranks:
        return [finding for found in ranks.map(of, range(size)) for finding in found]


@pytest.mark.parametrize(
    ("ahead_s", "level", "told"),
    [
        (0.25, "ok", "0.2"),
        (7.0, "warn", "7.0"),
        (-7.0, "warn", "s behind n1"),
        (100.0, "FAIL", "100.0"),
    ],
)
def test_a_clock_that_is_off_is_told_with_how_far(ahead_s, level, told):
    (found,) = compared(ahead_s)
    assert found.level == level and told in found.what


def test_each_of_many_nodes_is_compared_with_the_first():
    assert [found.level for found in compared(0.0, 100.0, 0.0)] == ["ok", "FAIL", "ok"]


def test_a_wrong_sum_and_a_hang_fail(monkeypatch):
    class Work:
        def __init__(self, done: bool):
            self.done = done

        def is_completed(self) -> bool:
            return self.done

        def wait(self) -> None:
            pass

    monkeypatch.setattr(network.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(network.dist, "all_reduce", lambda values, async_op: (values.fill_(4.0), Work(True))[1])
    with pytest.raises(ArithmeticError, match="8 of 8 sums are wrong"):
        network._timed(torch.ones(8))
    monkeypatch.setattr(network, "REDUCE_S", 0.05)
    monkeypatch.setattr(network.dist, "all_reduce", lambda values, async_op: Work(False))
    with pytest.raises(TimeoutError, match=r"no end within 0\.05 s"):
        network._timed(torch.ones(8))
