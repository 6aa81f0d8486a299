"""Small layers that several parts of the model share."""

from typing import Any

import torch
from torch import Tensor, nn


class Latent(nn.Module):
    """Linear, then layer norm or ReLU."""

    def __init__(self, inputs: int, outputs: int, kind: str):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.shape: nn.Module = nn.LayerNorm(outputs) if kind == "layernorm" else nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.shape(self.linear(x))


def group_norm(channels: int) -> nn.GroupNorm:
    groups = next(g for g in (8, 4, 2, 1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


def recur(network: nn.RNNBase, inputs: Tensor, state: Any = None) -> Any:
    """What a recurrent network returns. On the CPU it runs in float32 under autocast too: oneDNN has a bfloat16 LSTM
    for some processors only, and elsewhere the call would fail.
    """
    if inputs.device.type != "cpu":
        return network(inputs, state)
    with torch.autocast("cpu", enabled=False):
        return network(inputs.float(), _floats(state))


def _floats(state: Any) -> Any:
    """A recurrent network's state, one tensor or two, in float32."""
    if state is None or isinstance(state, Tensor):
        return None if state is None else state.float()
    return tuple(part.float() for part in state)
