"""A step with DeepSpeed's ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054): each rank holds a part of the moments
(stage 1), of the gradients too (2), of the weights too (3).

What is DeepSpeed's, and what is not:

- Accelerate is given a DeepSpeed plugin and prepares the engine; passes and steps are asked of the engine itself,
  because `Accelerator.backward` would take the step at once, with the learning rate of the step before.
- DeepSpeed counts no micro-batches: its accumulation is 1, so it divides by nothing; the loop says which is the last.
- AdamW is torch's, over each rank's flat part of the weights; the moving average lies beside the moments. Weights stay
  float32 in every precision: bf16 is torch's autocast, as under DDP, and gradients travel in float32. (DeepSpeed's own
  bf16 would turn weights and buffers into bfloat16.)
- Checkpoints are the files that DDP writes: what is in parts is gathered by parameter for saving and cut up again after
  loading, so any strategy and world size goes on from any checkpoint. DeepSpeed's own are not used: they unpickle.
"""

import copy
import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs
from torch import Tensor, nn

from storydist.model import StoryModel
from storydist.training.optim import OptimConfig, build_optimizer
from storydist.training.settings import TrainConfig
from storydist.training.strategy import FullState, build_average

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's
AVERAGE = "average"  # the moving average of the weights, kept as if it were a third moment
BUCKET_NUMEL = 50_000_000  # gradients reduced at once; DeepSpeed's 500 million would take 2 GB
PERSISTENT_NUMEL = 100_000  # stage 3 leaves smaller parameters whole on every rank; DeepSpeed's default


def accelerate_arguments(train: TrainConfig, clip_norm: float) -> dict[str, Any]:
    """What Accelerate needs to run DeepSpeed; sets what both read from the environment.

    Raises ValueError when DeepSpeed is not installed or no launcher has started this process.
    """
    cpu = train.device == "cpu" or not torch.cuda.is_available()
    if cpu:
        os.environ |= {"DS_ACCELERATOR": "cpu", "ACCELERATE_TORCH_DEVICE": "cpu"}
        os.environ.pop("ACCELERATE_USE_CPU", None)  # with it, Accelerate would leave DeepSpeed out
    try:
        import deepspeed.ops
    except ImportError:
        raise ValueError(
            f"train.strategy {train.strategy} needs DeepSpeed: pip install 'storydist[deepspeed]'"
        ) from None
    if "LOCAL_RANK" not in os.environ:
        raise ValueError(
            f"train.strategy {train.strategy} shares the state out between ranks, and no launcher started any: use "
            "accelerate launch, torchrun or srun"
        )
    # About names of torch's that DeepSpeed still uses.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.c10d_logger")
    if cpu:
        # Otherwise a kernel is compiled that only inference calls.
        deepspeed.ops.__compatible_ops__ = {}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": train.micro_batch,  # has to be given, and changes nothing
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip_norm,
        "zero_optimization": {
            "stage": train.zero_stage,
            "reduce_bucket_size": BUCKET_NUMEL,
            "allgather_bucket_size": BUCKET_NUMEL,
            "stage3_param_persistence_threshold": PERSISTENT_NUMEL,
        },
    }
    if train.precision == "bf16":
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return {
        "mixed_precision": "no",
        "deepspeed_plugin": DeepSpeedPlugin(hf_ds_config=config),
        "kwargs_handlers": [InitProcessGroupKwargs(backend="gloo")] if cpu else [],
    }


class Zero:
    """The same methods as storydist.training.strategy.Ddp."""

    def __init__(self, accelerator: Accelerator, model: StoryModel, optim: OptimConfig, stage: int):
        self.accelerator, self.optim, self.stage, self.model = accelerator, optim, stage, model
        if stage == 3 and accelerator.device.type == "cuda":
            warnings.warn(
                "train.strategy zero3 cuts up the weights of recurrent networks, which cuDNN wants in one piece; that "
                "was tried on the CPU only. If the first step fails, use zero2",
                stacklevel=2,
            )
        # Whole copies on the CPU, which `full_state` fills.
        self._whole = copy.deepcopy(model).cpu()
        self._ema = build_average(self._whole, optim)
        self.wrapped, self.optimizer = accelerator.prepare(model, build_optimizer(model, optim))
        zero = self.wrapped.optimizer
        self._parts = zero.fp32_partitioned_groups_flat if stage == 3 else zero.single_partition_of_fp32_groups
        self._state = zero.optimizer.state  # torch's AdamW
        for part in self._parts:
            self._state[part] = {"step": torch.tensor(0.0)} | {key: torch.zeros_like(part) for key in self._keys}
        if stage < 3:
            zero._lazy_init_hp_params_optimizer_state()  # else done at the first step, too late for loading

    @property
    def _keys(self) -> tuple[str, ...]:
        return MOMENTS if self._ema is None else (*MOMENTS, AVERAGE)

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        self.wrapped.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.wrapped.backward(loss)

    def step(self, learning_rate: float) -> tuple[float, bool]:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.wrapped.step()  # clips; leaves the update out when the norm over all ranks is not finite
        updated = self.wrapped.was_step_applied()
        if updated and self._ema is not None:
            first = self._ema.n_averaged == 0  # as torch's AveragedModel has it
            for part in self._parts:
                self._state[part][AVERAGE].lerp_(part.detach(), 1.0 if first else 1 - self.optim.ema_decay)
            self._ema.n_averaged += 1
        return float(self.wrapped.get_global_grad_norm()), updated

    @torch.no_grad()
    def full_state(self, *, moments: bool = True) -> FullState:
        """The run's state, gathered on the CPU: weights and average on every rank, moments on the main one. What is
        loaded into it has to be followed by `load_full_state`. Collective.
        """
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        full = FullState(self._whole, build_optimizer(self._whole, self.optim), self._ema)
        for name, live in self.model.named_parameters():
            whole = self._whole.get_parameter(name)
            whole.copy_(safe_get_full_fp32_param(live))
            if self._ema is not None and self._ema.n_averaged:
                self._ema.module.get_parameter(name).copy_(safe_get_full_optimizer_state(live, AVERAGE))
            if moments:
                gathered = {key: safe_get_full_optimizer_state(live, key) for key in MOMENTS}
                if self.accelerator.is_main_process:
                    step = self._state[self._parts[0]]["step"].clone()
                    full.optimizer.state[whole] = {"step": step} | {key: m.cpu() for key, m in gathered.items()}
        return full

    def judged_model(self) -> StoryModel:
        full = self.full_state(moments=False)
        judged = copy.deepcopy(full.model if full.ema is None else full.ema.module)
        assert isinstance(judged, StoryModel)
        return judged.to(self.accelerator.device)

    @torch.no_grad()
    def load_full_state(self, full: FullState) -> None:
        """Takes over what was loaded into `full` on every rank. Raises ValueError when its moments are not all of one
        step. Collective.
        """
        import deepspeed

        steps = {float(full.optimizer.state.get(p, {}).get("step", 0.0)) for p in full.model.parameters()}
        if len(steps) != 1:
            raise ValueError(
                f"the checkpoint's moments are of steps {sorted(steps)}; ZeRO keeps one step for all parameters: go on "
                "with train.strategy=ddp"
            )
        for part in self._parts:
            self._state[part]["step"].fill_(steps.copy().pop())
        with deepspeed.zero.GatheredParameters(list(self.model.parameters()), modifier_rank=0, enabled=self.stage == 3):
            for name, live in self.model.named_parameters():
                live.data.copy_(full.model.get_parameter(name).data)
        self.wrapped.optimizer.refresh_fp32_params()
        for name, buffer in self.model.named_buffers():
            buffer.copy_(full.model.get_buffer(name))
        for name, live in self.model.named_parameters():
            values = full.optimizer.state.get(full.model.get_parameter(name), {})
            if full.ema is not None:
                values |= {AVERAGE: full.ema.module.get_parameter(name)}
            for key in self._keys:
                if key in values:
                    self._set(live, key, values[key])

    def _set(self, live: nn.Parameter, key: str, value: Tensor) -> None:
        """Keeps this rank's piece of a whole moment."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if self.stage < 3:
            safe_set_full_optimizer_state(live, value, key)
            return
        # DeepSpeed's function for whole tensors fails on those that the ranks do not divide.
        size = live.ds_tensor.numel()  # type: ignore[attr-defined]
        start = size * self.accelerator.process_index
        piece = value.new_zeros(size)
        own = value.flatten()[start : start + size]
        piece[: len(own)] = own
        safe_set_local_optimizer_state(live, piece, key)
