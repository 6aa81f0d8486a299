"""StoryModel: continues a story by a frame and a description, and scores it.

An LSTM reads each description, a CNN each frame; tags and time join them before a recurrent network runs over the
story. Departures from the plain LSTM-CNN fusion that this model descends from, and why:

- Latents are wide and layer-normed. Narrow ReLU latents die, and the decoder falls back to one average image
  (`latent: relu` shows it).
- Group norm, not batch norm: a story's output must not depend on its neighbours in the batch.
- The next frame is a per-pixel mixture of the K input frames and a drawn one (masks as in Finn et al. 2016, arXiv
  1605.07157), because shots come back: A-B-A-B, or the shot just goes on. `copy_frames: false` draws only.
- The next text's embedding is a target from a frozen encoder that is never trained (tf-idf of wordpieces under a random
  projection, Bingham and Mannila 2001), centred on the training mean: an encoder trained to please its own prediction
  would shrink.
- The decoder's input words are dropped at random (Bowman et al. 2016, arXiv 1511.06349), and it may favour words of the
  input descriptions; else it ignores what it is conditioned on.
- One head per target, each with weights of its own. Nothing at frame s sees frame s + 1, save the score head, which
  judges the whole story.

Dimensions: B stories, N frames of all stories, K context frames, M windows, L wordpieces, T wordpieces of all targets,
G tags, C H W image, D width, V vocabulary, E text embedding, P characters.
"""

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor, nn

from storydist.data.batch import PAD, Batch
from storydist.data.sample import TAG_KINDS
from storydist.model.frames import FrameDecoder, FrameEncoder, FrameMixer
from storydist.model.layers import Latent, recur
from storydist.model.score import ScoreHead, TagEncoder
from storydist.model.settings import WINDOW_HEADS, DataFacts, ModelConfig
from storydist.model.text import Condition, TextDecoder, TextEncoder, TextTarget, seen_words


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
            condition = self._condition(context_MD, batch)
            if shuffle_condition is not None:
                condition = condition.of(shuffle_condition)
            logits, target, window = self.text_decoder(
                condition, batch.wordpieces_NL[batch.target_M], batch.target_lengths_M
            )
            result = result._replace(text_logits_TV=logits, text_target_T=target, text_window_T=window)
        if "text_embedding" in heads:
            weights_MK = self.text_weights(context_MD).float().softmax(dim=1)  # CPU autocast would not
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
        condition = self._condition(self._context(fused_ND, batch.windows_MK), batch)
        return self.text_decoder.sample(
            condition,
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
        states_MKD, _ = recur(self.temporal, fused_ND[windows_MK])
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

    def _condition(self, context_MD: Tensor, batch: Batch) -> Condition:
        seen_MV = None
        if self.config.copy_words:
            seen_MV = seen_words(batch.wordpieces_NL, batch.windows_MK, self.words.num_embeddings)
        return Condition(self.text_condition(context_MD), seen_MV)

    def _characters(self, context_MD: Tensor, batch: Batch) -> Tensor:
        """logits_MP: is each character of the story in the next frame. [M, K, P] -> [M, P, K]: who was in which input
        frame.
        """
        seen_MPK = batch.characters_NP[batch.windows_MK].transpose(1, 2).to(context_MD.dtype)
        hidden = self.seen(seen_MPK * 2 - 1) + self.character_context(context_MD)[:, None]
        return self.character_out(hidden)[..., 0].float()
