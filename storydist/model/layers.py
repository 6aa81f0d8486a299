"""Small layers that several parts of the model share."""

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
