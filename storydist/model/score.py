"""The story's score, from all of its frames; and tags, which it pools in time.

Dimensions: B stories, N frames of all stories, S frames of the longest, G tags, D width, H hidden, J temporal bins,
F tag features.
"""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from storydist.data.batch import PAD, Batch
from storydist.data.sample import TAG_KINDS
from storydist.model.layers import recur
from storydist.model.settings import ModelConfig


class TagEncoder(nn.Module):
    """Tags of a frame or a story -> the mean embedding per kind, side by side. An unknown tag still has a kind."""

    def __init__(self, num_tags: int, width: int, kinds: Collection[str]):
        super().__init__()
        self.kinds = [TAG_KINDS.index(kind) for kind in kinds]
        self.tag = nn.Embedding(num_tags, width, padding_idx=PAD)
        nn.init.normal_(self.tag.weight, std=0.3)
        self.outputs = len(self.kinds) * width

    def forward(self, tags_NG: Tensor, kinds_NG: Tensor, mask_NG: Tensor) -> Tensor:
        embedded = self.tag(tags_NG)
        means = []
        for kind in self.kinds:
            chosen = (mask_NG & (kinds_NG == kind))[..., None]
            means.append((embedded * chosen).sum(1) / chosen.sum(1).clamp(min=1))
        return torch.cat(means, dim=1)


class ScoreHead(nn.Module):
    """Judges a whole story: a recurrent pass over its fused frames, beside tags pooled in time bins and the story's own
    tags.
    """

    NUM_BINS = 4  # J

    def __init__(self, config: ModelConfig, num_tags: int):
        super().__init__()
        self.recurrent = nn.GRU(config.width, config.width // 2, batch_first=True)
        inputs = config.width  # last state and mean state
        self.story_tags = self.frame_tags = None
        if config.tags in ("after", "both"):
            self.story_tags = TagEncoder(num_tags, config.tag_width, ("story",))
            self.frame_tags = TagEncoder(num_tags, config.tag_width, TAG_KINDS[1:])
            inputs += self.story_tags.outputs + self.NUM_BINS * self.frame_tags.outputs
        self.out = nn.Sequential(
            nn.LayerNorm(inputs),
            nn.Dropout(config.score_dropout),
            nn.Linear(inputs, config.width),
            nn.SiLU(),
            nn.Dropout(config.score_dropout),
            nn.Linear(config.width, 1),
        )

    def forward(self, fused_ND: Tensor, batch: Batch) -> Tensor:
        """float32 [B], standardised."""
        num_stories, num_frames = len(batch.story_B), len(fused_ND)
        first_B = torch.searchsorted(batch.frame_story_N, torch.arange(num_stories, device=fused_ND.device))
        place_N = torch.arange(num_frames, device=fused_ND.device) - first_B[batch.frame_story_N]
        length_B = torch.diff(first_B, append=first_B.new_tensor([num_frames]))
        padded_BSD = fused_ND.new_zeros(num_stories, int(length_B.max()), fused_ND.shape[1])
        padded_BSD[batch.frame_story_N, place_N] = fused_ND
        states, _ = recur(self.recurrent, padded_BSD)  # padding comes last and a forward pass never looks ahead
        states_NH = states[batch.frame_story_N, place_N].float()
        parts = [states_NH[first_B + length_B - 1], _mean_by(batch.frame_story_N, states_NH, length_B)]
        if self.frame_tags is not None and self.story_tags is not None:
            tags_NF = self.frame_tags(batch.tags_NG, batch.tag_kinds_NG, batch.tag_mask_NG).float()
            bins_NJ = self._bins(place_N, length_B[batch.frame_story_N])
            # [N, J, F] -> [N, J * F]
            binned = (bins_NJ[:, :, None] * tags_NF[:, None]).flatten(1)
            own = self.story_tags(batch.story_tags_BG, torch.zeros_like(batch.story_tags_BG), batch.story_tag_mask_BG)
            parts += [_mean_by(batch.frame_story_N, binned, length_B) * self.NUM_BINS, own.float()]
        return self.out(torch.cat(parts, dim=1))[:, 0].float()

    def _bins(self, place_N: Tensor, length_N: Tensor) -> Tensor:
        """float32 [N, J]: triangular weights of the bins at a frame's relative time; they sum to 1."""
        time_N = place_N / (length_N - 1).clamp(min=1) * (self.NUM_BINS - 1)
        return (1 - (time_N[:, None] - torch.arange(self.NUM_BINS, device=time_N.device)).abs()).clamp(min=0)


def _mean_by(group_N: Tensor, values_ND: Tensor, count_B: Tensor) -> Tensor:
    summed = values_ND.new_zeros(len(count_B), values_ND.shape[1]).index_add(0, group_N, values_ND)
    return summed / count_B[:, None]
