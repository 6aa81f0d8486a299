"""What Accelerate is given, and why.

The stream splits itself over ranks, so only model and optimizer go to `prepare()`: Accelerate would shard an iterable a
second time, or
read it on rank 0 alone. Losses are divided by global counts, so the averages that Accelerate and DDP take are undone by
`gradient_scale`.
"""

import os

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin


def build_accelerator(precision: str, threads: int, device: str) -> Accelerator:
    """The process group, device and precision of this rank. Raises ValueError when the device cannot do it."""
    torch.set_num_threads(threads or threads_per_rank())
    if device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    if precision == "fp16" and (device == "cpu" or not torch.cuda.is_available()):
        raise ValueError("train.precision fp16 needs a CUDA device for its loss scaling; use bf16 or fp32 on the CPU")
    accelerator = Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        # Micro-batches are counted by the loop, which knows the global counts. (A plain number would give way to the
        # environment variable that launchers set.)
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        cpu=device == "cpu",
        # Gradients lie in the buckets that are reduced: one copy of them less.
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    if accelerator.device.type == "cpu":
        # With several threads the gradient of an index (a frame stands in up to K windows) adds up in any order; a run
        # could then not be repeated, let alone resumed bit for bit. Filling new memory would only cost time.
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != wanted:
        raise ValueError(
            f"the launcher started {wanted} ranks but only {accelerator.num_processes} joined; start CPU "
            "ranks with torchrun or ACCELERATE_USE_CPU=true"
        )
    return accelerator


def threads_per_rank() -> int:
    """Cores that this process may use, over the ranks of its node: more threads than cores only spin."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def gradient_scale(world_size: int) -> float:
    """What a loss over global counts is multiplied by, so that gradients add up: DDP divides them by the world size."""
    return float(world_size)
