"""Parameter groups, and the learning rate as a function of the step."""

import math

from pydantic import Field, model_validator
from torch import nn
from torch.optim import AdamW

from storydist.settings import Settings


class OptimConfig(Settings):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) under linear warm-up and cosine decay."""

    learning_rate: float = Field(1e-3, gt=0, description="at its peak")
    final_fraction: float = Field(0.05, ge=0, le=1, description="of the peak, at the last step")
    warmup_steps: int = Field(50, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.99, ge=0, lt=1)
    weight_decay: float = Field(
        0.01, ge=0, description="of matrices and filters; biases, norms and embeddings have none"
    )
    clip_norm: float = Field(1.0, gt=0, description="largest norm of all gradients together")
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="of the moving average of the weights that is judged and kept; 0: none"
    )

    @model_validator(mode="after")
    def _peak_above_zero(self) -> "OptimConfig":
        if self.beta1 > self.beta2:
            raise ValueError(
                f"beta1 {self.beta1} is above beta2 {self.beta2}; AdamW wants the second moment to be the slower one"
            )
        return self


def learning_rate_at(step: int, num_steps: int, config: OptimConfig) -> float:
    """Learning rate of the update that makes `step` complete, 1 <= step <= num_steps."""
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * cosine)


def build_optimizer(model: nn.Module, config: OptimConfig) -> AdamW:
    """AdamW with weight decay on weights of two and more dimensions that are no embeddings."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in embeddings]
    rest = [p for p in model.parameters() if p.ndim < 2 or id(p) in embeddings]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2))
