"""StoryModel: continues a story by a frame and a description, and scores it.

An LSTM reads each description, a CNN each frame; tags and time join them before a recurrent network runs over the
story. Departures from the
plain LSTM-CNN fusion that this model descends from, and why:

- Latents are wide and layer-normed. Narrow ReLU latents die and the decoder falls back to one average image (`latent:
  relu` shows it).
- Group norm, not batch norm: a story's output must not depend on its neighbours in the batch.
- The next frame is a per-pixel mixture of the K input frames and a drawn one (masks as in Finn et al. 2016, arXiv
  1605.07157), because shots
  come back: A-B-A-B, or the shot just goes on. `copy_frames: false` draws only.
- The next text's embedding is a target from a frozen encoder that is never trained (tf-idf of wordpieces under a random
  projection, Bingham and
  Mannila 2001), centred on the training mean: an encoder trained to please its own prediction would shrink.
- The decoder's input words are dropped at random (Bowman et al. 2016, arXiv 1511.06349), else it ignores what it is
  conditioned on.
- One head per target, each with weights of its own; nothing at frame s sees frame s + 1, save the score head, which
  judges the whole story.

Dimensions: B stories, N frames of all stories, S frames of the longest, K context frames, M windows, L wordpieces, T
wordpieces of all targets,
G tags, C H W image, D width, V vocabulary, E text embedding, P characters, J temporal bins.
"""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from storydist.data.batch import PAD, Batch
from storydist.data.index import ShardIndex
from storydist.data.sample import TAG_KINDS
from storydist.data.stream import DataConfig, frame_size
from storydist.settings import Settings

HEADS = ("next_frame", "reconstruction", "next_text", "text_embedding", "score", "characters")
WINDOW_HEADS = frozenset(("next_frame", "next_text", "text_embedding", "characters"))  # they continue a story


class ModelConfig(Settings):
    """Sizes and choices of StoryModel."""

    width: int = Field(256, ge=4, description="D: of a fused frame and of the temporal state")
    frame_channels: tuple[int, ...] = Field(
        (32, 64, 128, 192), min_length=2, description="of the CNN, each level half the size of the last"
    )
    latent_width: int = Field(256, ge=2, description="of one frame's latent")
    latent: Literal["layernorm", "relu"] = "layernorm"
    text_embedding: int = Field(128, ge=2, description="of one wordpiece")
    text_hidden: int = Field(192, ge=2, description="of the text LSTMs")
    text_target_width: int = Field(256, ge=2, description="E: of the frozen text embedding")
    tag_width: int = Field(64, ge=1)
    tags: Literal["before", "after", "both", "none"] = Field(
        "both", description="tags join before the temporal model, at the score head, or both"
    )
    temporal: Literal["gru", "lstm"] = "gru"
    attention_heads: int = Field(4, ge=0, description="of the attention over the context; 0: the last state alone")
    copy_frames: bool = Field(True, description="the next frame may take pixels from the input frames")
    dropout: float = Field(0.1, ge=0, lt=1)
    score_dropout: float = Field(0.3, ge=0, lt=1)
    word_dropout: float = Field(
        0.2, ge=0, lt=1, description="share of the decoder's input words replaced by PAD while training"
    )


@dataclass(frozen=True)
class DataFacts:
    """What the model must know of the shards. idf: float32 [V], 0 for special pieces; centre: float32 [V], share of
    training texts that hold a piece.
    """

    height: int
    width: int
    context: int
    idf: np.ndarray
    presence: np.ndarray
    num_tags: int
    score_mean: float
    score_std: float


class Prediction(NamedTuple):
    """What the heads say; None where a head is off. Floats, unnormalised where called logits."""

    next_frame_MCHW: Tensor | None = None  # in [0, 1]
    reconstruction_NCHW: Tensor | None = None  # in [0, 1]
    text_logits_TV: Tensor | None = None  # one row per wordpiece of the targets, padding left out
    text_target_T: Tensor | None = None  # int64: the wordpiece that row should give
    text_window_T: Tensor | None = None  # int64: the window it belongs to
    text_embedding_ME: Tensor | None = None
    text_target_NE: Tensor | None = None  # frozen embedding of each frame's description, unit length
    score_B: Tensor | None = None  # in the score's unit
    character_logits_MP: Tensor | None = None


class Latent(nn.Module):
    """Linear, then layer norm or ReLU."""

    def __init__(self, inputs: int, outputs: int, kind: str):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.shape: nn.Module = nn.LayerNorm(outputs) if kind == "layernorm" else nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.shape(self.linear(x))


def _norm(channels: int) -> nn.GroupNorm:
    groups = next(g for g in (8, 4, 2, 1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


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
        levels = [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), _norm(b), nn.SiLU()) for a, b in pairwise(channels)]
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
            nn.Sequential(nn.Conv2d(a, b, 3, 1, 1), _norm(b), nn.SiLU()) for a, b in pairwise(channels)
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
            nn.Conv2d(features + 3 * context, 16, 3, 1, 1), _norm(16), nn.SiLU(), nn.Conv2d(16, context + 1, 3, 1, 1)
        )

    def forward(self, features_MFHW: Tensor, inputs_MKCHW: Tensor, drawn_MCHW: Tensor) -> Tensor:
        # K frames of 3 channels -> 3 * K channels, at the size of the features
        seen = F.interpolate(inputs_MKCHW.flatten(1, 2), size=self.inner, mode="area")
        logits = self.join(torch.cat([features_MFHW, seen], dim=1))
        weights = F.interpolate(logits, size=self.outer, mode="bilinear").softmax(dim=1)
        candidates = torch.cat([inputs_MKCHW, drawn_MCHW[:, None]], dim=1)
        return (weights[:, :, None] * candidates).sum(dim=1)


class TextEncoder(nn.Module):
    """wordpieces_NL -> [N, 2 * hidden + embedding]: both last states of an LSTM, and the mean word."""

    def __init__(self, config: ModelConfig, embedding: nn.Embedding):
        super().__init__()
        self.embedding = embedding
        self.lstm = nn.LSTM(config.text_embedding, config.text_hidden, batch_first=True, bidirectional=True)
        self.outputs = 2 * config.text_hidden + config.text_embedding

    def forward(self, wordpieces_NL: Tensor, lengths_N: Tensor) -> Tensor:
        embedded = self.embedding(wordpieces_NL)
        _, (state, _) = self.lstm(pack_padded_sequence(embedded, lengths_N, batch_first=True, enforce_sorted=False))
        present = (wordpieces_NL != PAD)[..., None]
        mean = (embedded * present).sum(1) / present.sum(1)
        # state [directions, N, hidden] -> [N, directions * hidden]
        return torch.cat([state.transpose(0, 1).flatten(1).to(mean.dtype), mean], dim=1)


class TextDecoder(nn.Module):
    """Writes a description from a condition: an LSTM that starts from it and sees it at every word."""

    def __init__(self, config: ModelConfig, embedding: nn.Embedding):
        super().__init__()
        self.embedding, self.word_dropout = embedding, config.word_dropout
        self.start = nn.Linear(config.width, 2 * config.text_hidden)
        self.lstm = nn.LSTM(config.text_embedding + config.width, config.text_hidden, batch_first=True)
        self.out = nn.Sequential(
            nn.Linear(config.text_hidden + config.width, config.text_embedding), nn.Dropout(config.dropout)
        )
        self.bias = nn.Parameter(torch.zeros(embedding.num_embeddings))

    def forward(self, condition_MD: Tensor, wordpieces_ML: Tensor, lengths_M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Teacher forced: reads w[:-1], gives logits_TV for w[1:], the targets_T and their windows_T. lengths_M on the
        CPU.
        """
        inputs, targets = wordpieces_ML[:, :-1], wordpieces_ML[:, 1:]
        if self.training and self.word_dropout:
            kept = torch.rand(inputs.shape, device=inputs.device) >= self.word_dropout
            kept[:, 0] = True
            inputs = inputs * kept
        steps_M = (lengths_M - 1).clamp(min=1)
        packed = pack_padded_sequence(self._join(inputs, condition_MD), steps_M, batch_first=True, enforce_sorted=False)
        hidden, _ = self.lstm(packed, self._state(condition_MD))
        hidden_MLH, _ = pad_packed_sequence(hidden, batch_first=True, total_length=inputs.shape[1])
        real = torch.arange(inputs.shape[1])[None] < (lengths_M - 1)[:, None]
        window_T, place_T = real.nonzero(as_tuple=True)
        window_T, place_T = window_T.to(inputs.device), place_T.to(inputs.device)
        return self._logits(hidden_MLH[window_T, place_T], condition_MD[window_T]), targets[window_T, place_T], window_T

    @torch.no_grad()
    def sample(
        self,
        condition_MD: Tensor,
        *,
        first: int,
        last: int,
        max_wordpieces: int,
        temperature: float,
        top_p: float,
        generator: torch.Generator,
    ) -> list[list[int]]:
        """Wordpieces drawn from the smallest set of words whose probability reaches top_p (Holtzman et al. 2020, arXiv
        1904.09751).
        """
        word_M = torch.full((len(condition_MD),), first, device=condition_MD.device)
        state, words = self._state(condition_MD), []
        ended = torch.zeros_like(word_M, dtype=torch.bool)
        for _ in range(max_wordpieces):
            hidden, state = self.lstm(self._join(word_M[:, None], condition_MD), state)
            word_M = nucleus(self._logits(hidden[:, 0], condition_MD) / temperature, top_p, generator)
            ended |= word_M == last
            words.append(torch.where(ended, last, word_M))
            if bool(ended.all()):
                break
        return [[w for w in row if w != last] for row in torch.stack(words, dim=1).tolist()]

    def _join(self, words_ML: Tensor, condition_MD: Tensor) -> Tensor:
        return torch.cat([self.embedding(words_ML), condition_MD[:, None].expand(-1, words_ML.shape[1], -1)], dim=2)

    def _state(self, condition_MD: Tensor) -> tuple[Tensor, Tensor]:
        hidden, cell = self.start(condition_MD)[None].chunk(2, dim=2)
        return torch.tanh(hidden).contiguous(), cell.contiguous()

    def _logits(self, hidden_TH: Tensor, condition_TD: Tensor) -> Tensor:
        return F.linear(
            self.out(torch.cat([hidden_TH, condition_TD.to(hidden_TH.dtype)], dim=1)), self.embedding.weight, self.bias
        )


def nucleus(logits_MV: Tensor, top_p: float, generator: torch.Generator) -> Tensor:
    """int64 [M] drawn from the nucleus of each row. The generator is on the CPU, so that every device draws alike."""
    probability, word = logits_MV.float().softmax(dim=1).cpu().sort(dim=1, descending=True)
    outside = probability.cumsum(dim=1) - probability >= top_p
    choice = torch.multinomial(probability.masked_fill(outside, 0), 1, generator=generator)
    return word.gather(1, choice)[:, 0].to(logits_MV.device)


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


class TimeEncoder(nn.Module):
    """Place in the story and seconds since its beginning, as waves of several lengths. It never tells how long the
    story will be.
    """

    outputs = 4 * 6 + 1

    def forward(self, batch: Batch) -> Tensor:
        seconds = torch.log1p(batch.seconds_N) * batch.seconds_known_N
        rates = 2.0 ** torch.arange(6, device=seconds.device) / 8
        waves = torch.cat([batch.position_N[:, None] * rates / 2, seconds[:, None] * rates], dim=1)
        return torch.cat([waves.sin(), waves.cos(), batch.seconds_known_N[:, None].float()], dim=1)


class TextTarget(nn.Module):
    """Frozen embedding of a description: idf-weighted presence of its wordpieces, centred on the training mean,
    projected at random, unit length.
    """

    projection_VE: Tensor
    centre_E: Tensor

    def __init__(self, facts: DataFacts, width: int):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        projection = (
            torch.randn(len(facts.idf), width, generator=generator) * torch.from_numpy(facts.idf)[:, None] / width**0.5
        )
        self.register_buffer("projection_VE", projection)
        self.register_buffer("centre_E", torch.from_numpy(facts.presence) @ projection)

    @torch.no_grad()
    def forward(self, wordpieces_NL: Tensor) -> Tensor:
        """float32 [N, E]."""
        pieces = wordpieces_NL.sort(dim=1).values
        first = torch.ones_like(pieces, dtype=torch.bool)
        first[:, 1:] = pieces[:, 1:] != pieces[:, :-1]
        summed = F.embedding_bag(
            pieces, self.projection_VE, mode="sum", per_sample_weights=first.to(self.projection_VE.dtype)
        )
        return F.normalize(summed.float() - self.centre_E, dim=1)


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
        states, _ = self.recurrent(padded_BSD)  # padding comes last and a forward pass never looks ahead
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


def data_facts(index: ShardIndex, config: DataConfig) -> DataFacts:
    """DataFacts of a shard set, from its train split. Special pieces and those never seen in training get no weight."""
    num_texts = index.info.splits["train"].num_frames
    presence = (1 + num_texts) / np.exp(index.wordpiece_idf, dtype=np.float64) - 1
    seen = presence > 0.5  # the idf is a float32: documents come back as nearly whole numbers
    idf = np.where(seen, index.wordpiece_idf, 0).astype(np.float32)
    height, width = frame_size(index, config)
    score = index.info.score
    return DataFacts(
        height=height,
        width=width,
        context=config.context,
        idf=idf,
        presence=(np.where(seen, presence, 0) / num_texts).astype(np.float32),
        num_tags=len(index.info.tag_vocabulary),
        score_mean=score.mean if score else 0.0,
        score_std=(score.std or 1.0) if score else 1.0,
    )


class StoryModel(nn.Module):
    """forward(batch) -> Prediction. `heads`: which of HEADS are built; the others cost nothing and predict None."""

    def __init__(self, config: ModelConfig, heads: Collection[str], facts: DataFacts):
        super().__init__()
        self.config, self.heads, self.facts = config, frozenset(heads), facts
        size, width = (facts.height, facts.width), config.width
        self.words = nn.Embedding(len(facts.idf), config.text_embedding, padding_idx=PAD)
        nn.init.normal_(self.words.weight, std=0.1)
        self.frame_encoder = FrameEncoder(config, size)
        self.text_encoder = TextEncoder(config, self.words)
        self.text_target = TextTarget(facts, config.text_target_width)
        self.time = TimeEncoder()
        inputs = config.latent_width + self.text_encoder.outputs + config.text_target_width + TimeEncoder.outputs
        self.frame_tags = None
        if config.tags in ("before", "both"):
            self.frame_tags = TagEncoder(facts.num_tags, config.tag_width, TAG_KINDS[1:])
            inputs += self.frame_tags.outputs
        self.fuse = nn.Sequential(Latent(inputs, width, config.latent), nn.Dropout(config.dropout))
        if self.heads & WINDOW_HEADS:  # a parameter that no loss reaches would stall DDP
            recurrent = nn.GRU if config.temporal == "gru" else nn.LSTM
            self.temporal = recurrent(width, width, batch_first=True)
            self.attention = (
                nn.MultiheadAttention(width, config.attention_heads, batch_first=True)
                if config.attention_heads
                else None
            )
            self.context = Latent(width * (2 if config.attention_heads else 1), width, config.latent)
        self._build_heads(size, width)

    def _build_heads(self, size: tuple[int, int], width: int) -> None:
        config, heads, context = self.config, self.heads, self.facts.context
        if heads & {"next_frame", "reconstruction"}:
            self.frame_decoder = FrameDecoder(config, size)
        if "next_frame" in heads:
            self.next_latent = Latent(width, config.latent_width, config.latent)
            self.mixer = FrameMixer(config.frame_channels[0], context, size) if config.copy_frames else None
        if "next_text" in heads:
            self.text_condition = Latent(width, width, config.latent)
            self.text_decoder = TextDecoder(config, self.words)
        if "text_embedding" in heads:
            self.text_weights = nn.Linear(width, context)
            self.text_rest = nn.Sequential(
                nn.Linear(width, width), nn.SiLU(), nn.Linear(width, config.text_target_width)
            )
        if "score" in heads:
            self.score_head = ScoreHead(config, self.facts.num_tags)
        if "characters" in heads:
            self.seen = nn.Linear(context, 64)
            self.character_context = nn.Linear(width, 64)
            self.character_out = nn.Sequential(nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, batch: Batch, shuffle_condition: Tensor | None = None) -> Prediction:
        """`shuffle_condition`: int64 [M], whose condition each window's text decoder is given; None: its own."""
        frames_NCHW = batch.frames_NHWC.permute(0, 3, 1, 2).float() / 255
        latent_ND, text_NE, fused_ND = self._encode(batch, frames_NCHW)
        result = Prediction()
        if self.heads & WINDOW_HEADS:
            result = self._continue(
                batch, frames_NCHW, text_NE, self._context(fused_ND, batch.windows_MK), shuffle_condition
            )
        if "reconstruction" in self.heads:
            result = result._replace(
                reconstruction_NCHW=self.frame_decoder.draw(self.frame_decoder.features(latent_ND)).float()
            )
        if "score" in self.heads:
            result = result._replace(
                score_B=self.score_head(fused_ND, batch) * self.facts.score_std + self.facts.score_mean
            )
        return result

    def _continue(
        self, batch: Batch, frames_NCHW: Tensor, text_NE: Tensor, context_MD: Tensor, shuffle_condition: Tensor | None
    ) -> Prediction:
        """What the heads that look ahead say of each window."""
        heads, result = self.heads, Prediction()
        if "next_frame" in heads:
            result = result._replace(next_frame_MCHW=self._next_frame(context_MD, frames_NCHW, batch.windows_MK))
        if "next_text" in heads:
            condition_MD = self.text_condition(context_MD)
            if shuffle_condition is not None:
                condition_MD = condition_MD[shuffle_condition]
            logits, target, window = self.text_decoder(
                condition_MD, batch.wordpieces_NL[batch.target_M], batch.target_lengths_M
            )
            result = result._replace(text_logits_TV=logits, text_target_T=target, text_window_T=window)
        if "text_embedding" in heads:
            weights_MK = self.text_weights(context_MD).softmax(dim=1)
            seen_ME = (weights_MK[..., None] * text_NE[batch.windows_MK]).sum(dim=1)
            result = result._replace(
                text_embedding_ME=(seen_ME + self.text_rest(context_MD)).float(), text_target_NE=text_NE
            )
        if "characters" in heads:
            result = result._replace(character_logits_MP=self._characters(context_MD, batch))
        return result

    @torch.no_grad()
    def generate(
        self,
        batch: Batch,
        *,
        first: int,
        last: int,
        max_wordpieces: int,
        generator: torch.Generator,
        temperature: float = 1.0,
        top_p: float = 0.9,
    ) -> list[list[int]]:
        """Wordpieces of the next description of each window, without special pieces. `first`, `last`: ids of [CLS] and
        [SEP].
        """
        _, _, fused_ND = self._encode(batch, batch.frames_NHWC.permute(0, 3, 1, 2).float() / 255)
        condition_MD = self.text_condition(self._context(fused_ND, batch.windows_MK))
        return self.text_decoder.sample(
            condition_MD,
            first=first,
            last=last,
            max_wordpieces=max_wordpieces,
            temperature=temperature,
            top_p=top_p,
            generator=generator,
        )

    def _encode(self, batch: Batch, frames_NCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """latent_ND of the frames, frozen text_NE, and fused_ND of all that a frame brings."""
        latent_ND = self.frame_encoder(frames_NCHW)
        text_NE = self.text_target(batch.wordpieces_NL)
        # Scaled so that each entry of the unit vector is about as large as the other inputs.
        parts = [
            latent_ND,
            self.text_encoder(batch.wordpieces_NL, batch.lengths_N),
            text_NE * text_NE.shape[1] ** 0.5,
            self.time(batch),
        ]
        if self.frame_tags is not None:
            parts.append(self.frame_tags(batch.tags_NG, batch.tag_kinds_NG, batch.tag_mask_NG))
        return latent_ND, text_NE, self.fuse(torch.cat(parts, dim=1))

    def _context(self, fused_ND: Tensor, windows_MK: Tensor) -> Tensor:
        """context_MD: what the K frames of each window say of the next."""
        states_MKD, _ = self.temporal(fused_ND[windows_MK])
        last_MD = states_MKD[:, -1]
        if self.attention is None:
            return self.context(last_MD)
        seen_MD, _ = self.attention(last_MD[:, None], states_MKD, states_MKD, need_weights=False)
        return self.context(torch.cat([last_MD, seen_MD[:, 0]], dim=1))

    def _next_frame(self, context_MD: Tensor, frames_NCHW: Tensor, windows_MK: Tensor) -> Tensor:
        features = self.frame_decoder.features(self.next_latent(context_MD))
        drawn_MCHW = self.frame_decoder.draw(features)
        if self.mixer is None:
            return drawn_MCHW.float()
        return self.mixer(features, frames_NCHW[windows_MK], drawn_MCHW).float()

    def _characters(self, context_MD: Tensor, batch: Batch) -> Tensor:
        """logits_MP: is each character of the story in the next frame. [M, K, P] -> [M, P, K]: who was in which input
        frame.
        """
        seen_MPK = batch.characters_NP[batch.windows_MK].transpose(1, 2).to(context_MD.dtype)
        hidden = self.seen(seen_MPK * 2 - 1) + self.character_context(context_MD)[:, None]
        return self.character_out(hidden)[..., 0].float()
