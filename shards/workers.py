"""The same function over many inputs in several processes, answers in the order of the inputs."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any, TypeVar

Input = TypeVar("Input")
Output = TypeVar("Output")

# Parallel over processes: threads inside each would only fight for the same cores.
QUEUED_PER_WORKER = 8
ONE_THREAD = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def map_in_order(function: Callable[[Input], Output], inputs: Iterable[Input], num_workers: int) -> Iterator[Output]:
    """`function` of each input, in order, computed by `num_workers` processes (1: in this one).

    At most QUEUED_PER_WORKER answers per process wait to be taken, which bounds memory. `function` is pickled once for
    each process, which are started afresh (spawn) and end when this one does, even if it is killed. Raises what
    `function` raises, for the first input that fails; ValueError when a process dies.
    """
    os.environ.update(ONE_THREAD)
    if num_workers == 1:
        yield from map(function, inputs)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, context, _start, (function,))
    waiting: deque[Future[Output]] = deque()
    try:
        for value in inputs:
            with _interrupts_held():
                waiting.append(pool.submit(_call, value))
            if len(waiting) >= QUEUED_PER_WORKER * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise ValueError("a worker process died, perhaps for want of memory; run again, with fewer --workers") from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the block ends. A process started inside never gets it: it inherits the mask."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


_function: Callable[[Any], Any]


def _start(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A pool's workers hold both ends of their queue, so a killed parent would leave them waiting for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _call(value: Any) -> Any:
    return _function(value)
