"""What a run measures of itself between two lines of its log."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from storydist.data.batch import Batch
from storydist.losses import SumCount
from storydist.training.ledger import WAITING

if TYPE_CHECKING:
    from storydist.training.trainer import Run


class Meter:
    """Losses, speed and waiting since the last line of the log. A resumed run goes on within the interval it was in."""

    def __init__(self, run: "Run"):
        self.run, self.heads = run, run.config.losses.heads()
        self.sums = torch.zeros(len(self.heads), 2, dtype=torch.float64, device=run.accelerator.device)
        if run.state.interval and run.accelerator.is_main_process:  # it holds the sums over all ranks
            self.sums += torch.tensor(run.state.interval, dtype=torch.float64, device=self.sums.device)
        self._restart()

    def _restart(self) -> None:
        self.start, self.wait_s, self.steps = time.perf_counter(), 0.0, 0

    def waited(self, steps: Iterator[list[Batch]]) -> list[Batch]:
        """The next step's micro-batches; counts how long they were waited for."""
        start = time.perf_counter()
        with self.run.ledger.spent(WAITING):
            micro_batches = next(steps)
        self.wait_s += time.perf_counter() - start
        self.steps += 1
        return micro_batches

    def add(self, losses: dict[str, SumCount]) -> None:
        """Adds a micro-batch's (sum, count) of each loss."""
        self.sums += torch.stack([torch.stack([s.detach(), c.to(s.dtype)]) for s, c in losses.values()]).double()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside is no training time."""
        start = time.perf_counter()
        yield
        self.start += time.perf_counter() - start

    def total(self) -> Tensor:
        """(sum, count) of each loss over all ranks, float64 [heads, 2]. Collective."""
        return self.run.accelerator.reduce(self.sums, reduction="sum")

    def reduced(self) -> dict[str, float]:
        """What a line of the log tells, over all ranks; begins a new interval. Collective."""
        sums, elapsed = self.total(), time.perf_counter() - self.start
        means = dict(zip(self.heads, (sums[:, 0] / sums[:, 1].clamp(min=1)).tolist(), strict=True))
        weights = self.run.config.losses
        values = {"loss": sum(getattr(weights, head) * mean for head, mean in means.items())}
        values |= {f"loss/{head}": mean for head, mean in means.items()}
        values |= {
            "samples_seen": self.run.state.samples_seen,
            "skipped_samples": self.run.state.skipped_samples,
            "samples_per_s": self.steps * self.run.config.train.global_batch / elapsed,
            "data_wait_share": self.wait_s / elapsed,
            "peak_memory_bytes": peak_memory_bytes(self.sums.device),
        }
        if self.run.accelerator.scaler is not None:
            values["skipped_steps"] = self.run.state.skipped_steps
        self.sums.zero_()
        self._restart()
        return values


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory that this rank has held: of the GPU where it has one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
