"""Loads steps before they are asked for, by threads, and hands them over in order."""

from collections import deque
from collections.abc import Callable, Generator
from queue import SimpleQueue
from threading import Thread
from typing import Generic, TypeVar, cast

from storydist.data.settings import DataConfig

T = TypeVar("T")


def ahead(
    load: Callable[[int], T], samples_seen: int, global_batch: int, config: DataConfig, stop: int | None = None
) -> Generator[T, None, None]:
    """load(samples_seen), load(samples_seen + global_batch), .. below `stop`: in order, `data.prefetch` steps ahead."""
    # An executor's futures would do the same at several times the price, which counts where a step takes a millisecond.
    wanted: SimpleQueue[_Wanted[T] | None] = SimpleQueue()
    threads = [
        Thread(target=_load_wanted, args=(load, wanted), name=f"stream-{number}", daemon=True)
        for number in range(config.threads)
    ]
    pending: deque[_Wanted[T]] = deque()
    try:
        for thread in threads:
            thread.start()
        while True:
            while len(pending) < config.prefetch + 1 and (stop is None or samples_seen < stop):
                pending.append(_Wanted(samples_seen))
                wanted.put(pending[-1])
                samples_seen += global_batch
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        for want in pending:
            want.cancelled = True
        for _ in threads:
            wanted.put(None)
        for thread in threads:
            thread.join()


class _Wanted(Generic[T]):
    """A step to be loaded, and where it arrives."""

    def __init__(self, samples_seen: int):
        self.samples_seen, self.cancelled = samples_seen, False
        self._arrived: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

    def load(self, load: Callable[[int], T]) -> None:
        """Calls `load`, on any thread."""
        try:
            self._arrived.put((load(self.samples_seen), None))
        except BaseException as error:
            self._arrived.put((None, error))

    def result(self) -> T:
        """What `load` has returned, waited for; or raises what it has raised."""
        value, error = self._arrived.get()
        if error is not None:
            raise error
        return cast(T, value)


def _load_wanted(load: Callable[[int], T], wanted: "SimpleQueue[_Wanted[T] | None]") -> None:
    while (want := wanted.get()) is not None:
        if not want.cancelled:
            want.load(load)
        del want  # or this thread would hold the step until it gets the next
