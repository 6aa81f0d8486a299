"""Frames: seen by a CNN, drawn by another, mixed with those already seen.

Dimensions: N frames, M windows, K context frames, F features, C H W image, D latent width.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from storydist.model.layers import Latent, group_norm
from storydist.model.settings import ModelConfig


def halved(size: tuple[int, int], times: int) -> list[tuple[int, int]]:
    """[(H, W)] at each level of the CNN, `size` itself first."""
    sizes = [size]
    for _ in range(times):
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes


class FrameEncoder(nn.Module):
    """frames_NCHW float32 in [0, 1] -> latent_ND."""

    def __init__(self, config: ModelConfig, size: tuple[int, int]):
        super().__init__()
        channels = (3, *config.frame_channels)
        levels = [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), group_norm(b), nn.SiLU()) for a, b in pairwise(channels)]
        self.levels = nn.Sequential(*levels)
        height, width = halved(size, len(config.frame_channels))[-1]
        self.latent = Latent(channels[-1] * height * width, config.latent_width, config.latent)

    def forward(self, frames_NCHW: Tensor) -> Tensor:
        # [N, C', H', W'] -> [N, C' * H' * W']
        return self.latent(self.levels(frames_NCHW * 2 - 1).flatten(1))


class FrameDecoder(nn.Module):
    """latent -> frame in [0, 1]: grows by doubling, the last doubling after the last hidden level."""

    def __init__(self, config: ModelConfig, size: tuple[int, int]):
        super().__init__()
        self.sizes = halved(size, len(config.frame_channels))[::-1]
        channels = config.frame_channels[::-1]
        self.start = nn.Linear(config.latent_width, channels[0] * self.sizes[0][0] * self.sizes[0][1])
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 1, 1), group_norm(b), nn.SiLU()) for a, b in pairwise(channels)
        )
        self.colour = nn.Conv2d(channels[-1], 4 * 3, 3, 1, 1)

    def features(self, latent: Tensor) -> Tensor:
        """[.., C', H/2, W/2]: what the frame is drawn from."""
        # [.., C' * H' * W'] -> [.., C', H', W']
        x = self.start(latent).unflatten(1, (-1, *self.sizes[0]))
        for level, size in zip(self.levels, self.sizes[1:], strict=False):
            x = level(F.interpolate(x, size=size))
        return x

    def draw(self, features: Tensor) -> Tensor:
        """Frames [.., 3, H, W]: four pixels from each place of the features (Shi et al. 2016, arXiv 1609.05158)."""
        height, width = self.sizes[-1]
        return torch.sigmoid(F.pixel_shuffle(self.colour(features), 2)[..., :height, :width])


class FrameMixer(nn.Module):
    """Mixes the K input frames and the drawn one by per-pixel weights that sum to 1."""

    def __init__(self, features: int, context: int, size: tuple[int, int]):
        super().__init__()
        self.outer, self.inner = size, halved(size, 1)[-1]
        self.join = nn.Sequential(
            nn.Conv2d(features + 3 * context, 16, 3, 1, 1),
            group_norm(16),
            nn.SiLU(),
            nn.Conv2d(16, context + 1, 3, 1, 1),
        )

    def forward(self, features_MFHW: Tensor, inputs_MKCHW: Tensor, drawn_MCHW: Tensor) -> Tensor:
        # K frames of 3 channels -> 3 * K channels, at the size of the features
        seen = F.interpolate(inputs_MKCHW.flatten(1, 2), size=self.inner, mode="area")
        logits = self.join(torch.cat([features_MFHW, seen], dim=1))
        weights = F.interpolate(logits, size=self.outer, mode="bilinear").float().softmax(dim=1)
        candidates = torch.cat([inputs_MKCHW, drawn_MCHW[:, None]], dim=1)
        return (weights[:, :, None] * candidates).sum(dim=1)
