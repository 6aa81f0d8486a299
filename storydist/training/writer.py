"""Writes checkpoints beside the loop: it waits only while the state is copied."""

import copy
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor, nn

from storydist.command import message_of
from storydist.training.checkpoint import Identity, Tensors, TrainState, live_tensors, write, write_state
from storydist.training.keep import CheckpointConfig, checkpoint_path, prune


class HostCopies:
    """Copies tensors to the CPU's memory, into the same places each time: on fresh memory a copy takes many times as
    long, and only page-locked memory takes it from a GPU at full speed.
    """

    def __init__(self) -> None:
        self._places: dict[tuple[str, str], Tensor] = {}

    def copy(self, tensors: Tensors) -> Tensors:
        """Copies that hold until the next call."""
        copies = {
            file: {name: self._copy((file, name), tensor) for name, tensor in content.items()}
            for file, content in tensors.items()
        }
        if any(tensor.is_cuda for content in tensors.values() for tensor in content.values()):
            torch.cuda.synchronize()
        return copies

    def _copy(self, key: tuple[str, str], tensor: Tensor) -> Tensor:
        place = self._places.get(key)
        if place is None or (place.shape, place.dtype) != (tensor.shape, tensor.dtype):
            place = self._places[key] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return place.copy_(tensor, non_blocking=True)


class CheckpointWriter:
    """Writes and prunes the checkpoints of a run on a thread of its own, one at a time. One process of a run has it.

    `first_step`: where the run begins or goes on, from the checkpoint of that step. `flush`: called ahead of each
    write, for what has to be on the disk before the checkpoint is. `say(text, shown=)`: told each checkpoint once it
    exists. `wrote(step, write_s=, stall_s=, waited_s=)`: the seconds its writing took, those that the loop stood still
    for it, and how many of these for the one before. What goes wrong on the thread is told by `failed` and raised by
    the next `save` or `finish`. Leaving waits for the thread.
    """

    def __init__(
        self,
        run: Path,
        config: CheckpointConfig,
        first_step: int,
        flush: Callable[[], None],
        say: Callable[..., None],
        wrote: Callable[..., None] = lambda step, **seconds: None,
    ):
        self._run, self._config, self._flush, self._say = run, config, flush, say
        self._wrote = wrote
        self._written_step = first_step  # the checkpoint whose tensors are those of that step of this run
        self._copies = HostCopies()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._under_way: Future[None] | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        if error is None:
            self.finish()
            return
        failed = self._under_way.exception() if self._under_way else None
        if failed is not None:  # what the run ends with is raised; this is told beside it
            told = message_of(failed) if isinstance(failed, ValueError | OSError) else repr(failed)
            self._say(f"the last checkpoint was not written: {told}")

    def save(
        self,
        state: TrainState,
        identity: Identity,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        ema: nn.Module | None,
    ) -> None:
        """Begins to write the checkpoint of `state.step`; the one before is waited for. A step that is saved already
        only gets its new state: its weights are the same.
        """
        start = time.perf_counter()
        self.finish()
        waited_s = time.perf_counter() - start
        tensors = None if state.step == self._written_step else live_tensors(model, optimizer, ema)
        copies = None if tensors is None else self._copies.copy(tensors)
        stall_s = time.perf_counter() - start
        self._under_way = self._thread.submit(self._write, copy.deepcopy(state), identity, copies, waited_s, stall_s)

    @property
    def failed(self) -> bool:
        """The checkpoint under way could not be written, which `finish` would raise at once."""
        under_way = self._under_way
        return under_way is not None and under_way.done() and under_way.exception() is not None

    def finish(self) -> None:
        """Waits for the checkpoint under way; raises what went wrong with it."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def _write(
        self, state: TrainState, identity: Identity, tensors: Tensors | None, waited_s: float, stall_s: float
    ) -> None:
        start = time.perf_counter()
        self._flush()
        folder = checkpoint_path(self._run, state.step)
        if tensors is None:
            write_state(folder, state, identity)
        else:
            write(folder, state, identity, tensors)
            self._written_step = state.step
        write_s = time.perf_counter() - start
        if tensors is not None:
            self._wrote(state.step, write_s=write_s, stall_s=stall_s, waited_s=waited_s)
        self._say(
            f"step {state.step} saved in {write_s:.3f} s; the loop waited {stall_s:.3f} s, "
            f"{waited_s:.3f} s of it for the checkpoint before",
            shown=False,
        )
        prune(self._run, self._config, state, self._say)
