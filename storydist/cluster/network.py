"""The network between the ranks: how fast and right an all-reduce is, and how far the nodes' clocks are apart."""

import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

from storydist.cluster.finding import Finding, fail, ok, warn
from storydist.cluster.meeting import Meeting

REDUCE, CLOCK = "all-reduce", "clock"
REDUCE_S = 30.0  # until an all-reduce counts as hanging; the first one sets up all connections
LEAST_BYTES, MOST_BYTES = 1 << 20, 64 << 20
REPEATS = 3
EXCHANGES = 5
SKEW_WARN_S, SKEW_FAIL_S = 5.0, 60.0  # heartbeats and logs mislead; then addresses' signatures and munge expire


def all_reduce(meeting: Meeting, device: torch.device, gradient_bytes: int) -> list[Finding]:
    """Sums numbers over all ranks as training will (NCCL between GPUs, gloo between CPUs), and measures it.

    `gradient_bytes`: of one step; at most MOST_BYTES are sent. Collective.
    """
    rank, world_size = meeting.place.rank, meeting.place.world_size
    if world_size == 1:
        return [ok(REDUCE, "one rank: nothing to sum")]
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store = dist.PrefixStore("group", meeting.store)
    limit = timedelta(seconds=REDUCE_S)
    remedy = (
        "check the network between the nodes; name the interface: NCCL_SOCKET_IFNAME, and see NCCL_DEBUG=INFO"
        if backend == "nccl"
        else "check the network between the nodes; name the interface: GLOO_SOCKET_IFNAME"
    )
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=limit)
        count = max(LEAST_BYTES, min(MOST_BYTES, gradient_bytes)) // 4
        took_s = [_timed(torch.full((count,), float(rank + 1), device=device)) for _ in range(1 + REPEATS)]
        dist.destroy_process_group()
    except (RuntimeError, TimeoutError) as error:
        return [fail(REDUCE, f"{backend}, rank {rank}: {' '.join(str(error).split())[:300]}", remedy)]
    except ArithmeticError as error:
        told = "no node can be named for it: try halves of the nodes to find it"
        return [fail(REDUCE, f"{backend}, rank {rank}: {error}", told)]
    best_s, sent = min(took_s[1:]), 4 * count
    bus = 2 * (world_size - 1) / world_size * sent / best_s  # as nccl-tests define it: alike for any world size
    told = f"{sent / 1e6:.3g} MB over {world_size} ranks in {best_s:.2g} s, bus bandwidth {bus / 1e9:.2g} GB/s"
    return [ok(REDUCE, f"{backend}: {told}; the first took {took_s[0]:.2g} s")]


def _timed(values: torch.Tensor) -> float:
    """Seconds of one all-reduce. Raises TimeoutError, ArithmeticError when the sum is wrong."""
    _synchronize(values.device)
    start = time.perf_counter()
    work = dist.all_reduce(values, async_op=True)
    assert work is not None
    while not work.is_completed():
        if time.perf_counter() - start > REDUCE_S:
            raise TimeoutError(f"no end within {REDUCE_S:g} s")
        time.sleep(0)
    work.wait()
    _synchronize(values.device)
    took_s = time.perf_counter() - start
    world_size = dist.get_world_size()
    wrong = int((values != world_size * (world_size + 1) / 2).sum())
    if wrong:
        raise ArithmeticError(f"{wrong} of {len(values)} sums are wrong")
    return took_s


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock(meeting: Meeting, now: Callable[[], float] = time.time) -> list[Finding]:
    """How far this node's clock is ahead of that of rank 0's node. Collective: each node's first rank calls it.

    Cristian's algorithm (Distributed Computing 3, 1989): rank 0 answers with its time, which lay between asking and
    hearing; of some exchanges the quickest tells best, to half its duration.
    """
    speakers, rank = meeting.speakers, meeting.place.rank
    if rank == 0:
        for other in list(speakers.values())[1:]:
            for number in range(EXCHANGES):
                meeting.hear(f"ask-{number}", other)
                meeting.tell(f"time-{number}-{other}", now())
        return [] if len(speakers) > 1 else [ok(CLOCK, "one node")]
    offsets = []
    for number in range(EXCHANGES):
        asked = now()
        meeting.tell(f"ask-{number}", None)
        told = meeting.hear(f"time-{number}-{rank}", 0)
        heard = now()
        offsets.append((heard - asked, (asked + heard) / 2 - told))
    took_s, ahead_s = min(offsets)
    what = f"{abs(ahead_s):.3f} s {'ahead of' if ahead_s > 0 else 'behind'} {meeting.nodes[0]} (+- {took_s / 2:.3f} s)"
    remedy = "have the node's time service mended (chronyc tracking there)"
    if abs(ahead_s) > SKEW_FAIL_S:
        return [fail(CLOCK, what, remedy, of_node=True)]
    if abs(ahead_s) > SKEW_WARN_S:
        return [warn(CLOCK, what, remedy)]
    return [ok(CLOCK, what)]
