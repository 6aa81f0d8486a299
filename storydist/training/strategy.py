"""What Accelerate is given, and why; and how a step is made with every rank holding everything (DDP).

The stream splits itself over ranks, so only model and optimizer go to `prepare()`: Accelerate would shard an iterable a
second time, or read it on rank 0 alone. Losses are divided by global counts, so the averages over the ranks that DDP
and DeepSpeed take are undone by `gradient_scale`. What DeepSpeed does otherwise is in storydist/training/zero.py.
"""

import math
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, GradientAccumulationPlugin
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from storydist.model import StoryModel
from storydist.training.optim import OptimConfig, build_optimizer
from storydist.training.settings import TrainConfig


@dataclass
class FullState:
    """Weights, moments and moving average as one process holds them. Under DDP these are the run's own."""

    model: StoryModel
    optimizer: torch.optim.Optimizer
    ema: AveragedModel | None


def build_accelerator(train: TrainConfig, plugins: dict[str, Any] | None = None) -> Accelerator:
    """The process group, device and precision of this rank. Raises ValueError when the device cannot do it.

    `plugins`: what else Accelerate is given, by its argument's name; None for DDP.
    """
    torch.set_num_threads(train.threads or threads_per_rank())
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    # Without a GPU Accelerate would leave the ranks that a launcher started on their own.
    cpu = train.device == "cpu" or (wanted > 1 and not torch.cuda.is_available())
    if train.precision == "fp16" and (cpu or not torch.cuda.is_available()):
        raise ValueError("train.precision fp16 needs a CUDA device for its loss scaling; use bf16 or fp32 on the CPU")
    if cpu and plugins is None:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    # Gradients lie in the buckets that are reduced: one copy of them less.
    plugins = plugins or {
        "mixed_precision": "no" if train.precision == "fp32" else train.precision,
        "cpu": cpu,
        "kwargs_handlers": [DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    }
    # Micro-batches are counted by the loop, which knows the global counts. (A plain number would give way to the
    # environment variable that launchers set.)
    accelerator = Accelerator(gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1), **plugins)
    if (accelerator.distributed_type == DistributedType.DEEPSPEED) != (train.zero_stage > 0):
        raise ValueError(
            f"train.strategy is {train.strategy} but the launcher set up {accelerator.distributed_type.value}; choose "
            "DeepSpeed by train.strategy alone, and launch without --use_deepspeed"
        )
    if accelerator.device.type == "cpu":
        # With several threads the gradient of an index (a frame stands in up to K windows) adds up in any order; a run
        # could then not be repeated, let alone resumed bit for bit. Filling new memory would only cost time.
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if accelerator.num_processes != wanted:
        raise ValueError(
            f"the launcher started {wanted} ranks but only {accelerator.num_processes} joined; start them with "
            "torchrun, srun or accelerate launch --multi_gpu"
        )
    return accelerator


def threads_per_rank() -> int:
    """Cores that this process may use, over the ranks of its node: more threads than cores only spin."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def gradient_scale(world_size: int) -> float:
    """What a loss over global counts is multiplied by, so that gradients add up: DDP and DeepSpeed divide them by the
    world size.
    """
    return float(world_size)


class Ddp:
    """Every rank holds everything; gradients are averaged once, after the last micro-batch."""

    def __init__(self, accelerator: Accelerator, model: StoryModel, optim: OptimConfig):
        self.accelerator, self.optim = accelerator, optim
        self._full = FullState(model, build_optimizer(model, optim), build_average(model, optim))
        self.wrapped, self.optimizer = accelerator.prepare(model, self._full.optimizer)

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """Forward and backward pass of a micro-batch happen inside. `last`: of the step."""
        return nullcontext() if last else self.accelerator.no_sync(self.wrapped)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of a micro-batch's loss."""
        self.accelerator.backward(loss)

    def step(self, learning_rate: float) -> tuple[float, bool]:
        """Updates weights and moving average, unless a gradient is not finite.

        Returns the norm of the gradients before clipping, not finite where they are not, and whether there was an
        update; the same on every rank. Collective.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = float(self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.optim.clip_norm))
        updated = math.isfinite(norm)
        if updated or self.accelerator.scaler is not None:
            self.optimizer.step()
        if self.accelerator.scaler is not None:  # it looks at the gradients itself, and lowers its scale
            updated = not self.optimizer.step_was_skipped
        self.optimizer.zero_grad()
        if updated and self._full.ema is not None:
            self._full.ema.update_parameters(self._full.model)
        return norm, updated

    def full_state(self, *, moments: bool = True) -> FullState:
        """The run's state; `moments` has to be asked for. What is loaded into it takes effect with `load_full_state`.
        Collective.
        """
        return self._full

    def load_full_state(self, full: FullState) -> None:
        """Takes over what was loaded into `full`, on every rank. Collective."""
        assert full is self._full

    def judged_model(self) -> StoryModel:
        """The weights that are judged: the moving average where there is one. Collective."""
        judged = self._full.model if self._full.ema is None else self._full.ema.module
        assert isinstance(judged, StoryModel)
        return judged


def build_average(model: StoryModel, optim: OptimConfig) -> AveragedModel | None:
    """The moving average of the weights, where the run keeps one."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(optim.ema_decay)) if optim.ema_decay else None
