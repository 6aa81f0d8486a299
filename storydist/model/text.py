"""Descriptions: read by an LSTM, written by another, and embedded once for all as a target.

Dimensions: N frames, M windows, L wordpieces, T wordpieces of all targets, D width, H hidden, V vocabulary,
E text embedding.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from storydist.data.batch import PAD
from storydist.model.layers import recur
from storydist.model.settings import DataFacts, ModelConfig


class TextEncoder(nn.Module):
    """wordpieces_NL -> [N, 2 * hidden + embedding]: the last state of an LSTM in each direction, and the mean word.

    Texts are padded, not packed: padding stands behind the text in both directions, so it never reaches a state that is
    read. On the CPU a packed LSTM takes over three times as long (benchmarks/padded_lstm.py).
    """

    def __init__(self, config: ModelConfig, embedding: nn.Embedding):
        super().__init__()
        self.embedding = embedding
        self.onward = nn.LSTM(config.text_embedding, config.text_hidden, batch_first=True)
        self.return_ = nn.LSTM(config.text_embedding, config.text_hidden, batch_first=True)
        self.outputs = 2 * config.text_hidden + config.text_embedding

    def forward(self, wordpieces_NL: Tensor, lengths_N: Tensor) -> Tensor:
        embedded_NLE = self.embedding(wordpieces_NL)
        row_N = torch.arange(len(wordpieces_NL), device=wordpieces_NL.device)
        last_N = lengths_N.to(wordpieces_NL.device) - 1
        place_NL = (last_N[:, None] - torch.arange(wordpieces_NL.shape[1], device=last_N.device)).clamp(min=0)
        onward_NLH, _ = recur(self.onward, embedded_NLE)
        backward_NLH, _ = recur(self.return_, embedded_NLE[row_N[:, None], place_NL])
        present_NL1 = (wordpieces_NL != PAD)[..., None]
        mean_NE = (embedded_NLE * present_NL1).sum(1) / present_NL1.sum(1)
        return torch.cat([onward_NLH[row_N, last_N], backward_NLH[row_N, last_N], mean_NE.to(onward_NLH.dtype)], dim=1)


class Condition(NamedTuple):
    """What a description is written from: what the inputs say, and in which share of them each wordpiece stands."""

    state_MD: Tensor
    seen_MV: Tensor | None  # in [0, 1]; None: the decoder may not look at words

    def of(self, rows: Tensor) -> "Condition":
        """The conditions of these windows, in this order."""
        return Condition(self.state_MD[rows], None if self.seen_MV is None else self.seen_MV[rows])


class TextDecoder(nn.Module):
    """Writes a description from a condition: an LSTM that starts from it and sees it at every word.

    At every word it also decides how much to favour the wordpieces of the input descriptions; names and places come
    back. (A pointer network, See et al. 2017, arXiv 1704.04368, without its attention over positions.)
    """

    def __init__(self, config: ModelConfig, embedding: nn.Embedding):
        super().__init__()
        self.embedding, self.word_dropout = embedding, config.word_dropout
        inputs = config.text_hidden + config.width
        self.start = nn.Linear(config.width, 2 * config.text_hidden)
        self.lstm = nn.LSTM(config.text_embedding + config.width, config.text_hidden, batch_first=True)
        self.out = nn.Sequential(nn.Linear(inputs, config.text_embedding), nn.Dropout(config.dropout))
        self.bias = nn.Parameter(torch.zeros(embedding.num_embeddings))
        self.favour = nn.Linear(inputs, 1) if config.copy_words else None

    def forward(self, condition: Condition, wordpieces_ML: Tensor, lengths_M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Teacher forced: reads w[:-1]; gives logits_TV for w[1:], targets_T and windows_T. lengths_M on the CPU."""
        inputs, targets = wordpieces_ML[:, :-1], wordpieces_ML[:, 1:]
        if self.training and self.word_dropout:
            kept = torch.rand(inputs.shape, device=inputs.device) >= self.word_dropout
            kept[:, 0] = True
            inputs = inputs * kept
        hidden_MLH, _ = recur(self.lstm, self._join(inputs, condition), self._state(condition))
        real = torch.arange(inputs.shape[1])[None] < (lengths_M - 1)[:, None]
        # The lengths are on the CPU, so finding the wordpieces does not wait for the device.
        window_T, place_T = (rows.to(inputs.device, non_blocking=True) for rows in real.nonzero(as_tuple=True))
        return self._logits(hidden_MLH[window_T, place_T], condition.of(window_T)), targets[window_T, place_T], window_T

    @torch.no_grad()
    def sample(
        self,
        condition: Condition,
        *,
        first: int,
        last: int,
        max_wordpieces: int,
        temperature: float,
        top_p: float,
        generator: torch.Generator,
    ) -> list[list[int]]:
        """Wordpieces of each window from nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751): drawn from the
        smallest set whose probability reaches top_p.
        """
        word_M = torch.full((len(condition.state_MD),), first, device=condition.state_MD.device)
        state, words = self._state(condition), []
        ended = torch.zeros_like(word_M, dtype=torch.bool)
        for _ in range(max_wordpieces):
            hidden, state = recur(self.lstm, self._join(word_M[:, None], condition), state)
            word_M = nucleus(self._logits(hidden[:, 0], condition) / temperature, top_p, generator)
            ended |= word_M == last
            words.append(torch.where(ended, last, word_M))
            if bool(ended.all()):
                break
        return [[w for w in row if w != last] for row in torch.stack(words, dim=1).tolist()]

    def _join(self, words_ML: Tensor, condition: Condition) -> Tensor:
        state_MLD = condition.state_MD[:, None].expand(-1, words_ML.shape[1], -1)
        return torch.cat([self.embedding(words_ML), state_MLD], dim=2)

    def _state(self, condition: Condition) -> tuple[Tensor, Tensor]:
        hidden, cell = self.start(condition.state_MD)[None].chunk(2, dim=2)
        return torch.tanh(hidden).contiguous(), cell.contiguous()

    def _logits(self, hidden_TH: Tensor, condition: Condition) -> Tensor:
        joined = torch.cat([hidden_TH, condition.state_MD.to(hidden_TH.dtype)], dim=1)
        logits_TV = F.linear(self.out(joined), self.embedding.weight, self.bias)
        if self.favour is None or condition.seen_MV is None:
            return logits_TV
        return logits_TV + self.favour(joined) * condition.seen_MV


def seen_words(wordpieces_NL: Tensor, windows_MK: Tensor, vocabulary_size: int) -> Tensor:
    """float32 [M, V]: share of a window's K input descriptions in which each wordpiece stands; 0 for padding."""
    present_NV = torch.zeros(len(wordpieces_NL), vocabulary_size, device=wordpieces_NL.device)
    present_NV.scatter_(1, wordpieces_NL, 1.0)
    present_NV[:, PAD] = 0
    num_inputs = windows_MK.shape[1]
    return torch.stack([present_NV[windows_MK[:, k]] for k in range(num_inputs)]).mean(dim=0)


def nucleus(logits_MV: Tensor, top_p: float, generator: torch.Generator) -> Tensor:
    """int64 [M] drawn from the nucleus of each row. The generator is on the CPU, so that every device draws alike."""
    probability, word = logits_MV.float().softmax(dim=1).cpu().sort(dim=1, descending=True)
    outside = probability.cumsum(dim=1) - probability >= top_p
    choice = torch.multinomial(probability.masked_fill(outside, 0), 1, generator=generator)
    return word.gather(1, choice)[:, 0].to(logits_MV.device)


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
