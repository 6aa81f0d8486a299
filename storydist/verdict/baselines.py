"""Floors: predictors that know nothing of a model, fitted on the training split alone and judged by the same Tally.

A constant floor says one thing for every window; an oracle peeks at the target and bounds rather than floors.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from storydist.data.frame_runs import SampleReader
from storydist.data.index import ShardIndex
from storydist.data.settings import DataConfig
from storydist.verdict.score_baselines import SHUFFLED, TRAIN_MEAN, score_floors
from storydist.verdict.truth import Guess, TextTarget, Truth, texts_of
from storydist.verdict.windows import choose_stories, choose_windows, text_batches

MAX_IMAGES = 2000  # training targets behind the median and mean image, drawn by the seed
MAX_IMAGE_BYTES = 2**28  # of them together; large frames get fewer
MAX_STORIES = 4000  # training stories behind the text floors, drawn by the seed

CHANCE, UNIFORM, IGNORES_INPUT = "chance", "uniform", "ignores its input"
MEDIAN_IMAGE, MEAN_IMAGE, COPY_LAST = "median image", "mean image", "copy last"
UNIGRAM, RETRIEVAL = "unigram", "retrieval"
MOST_FREQUENT, RANDOM_TEXT = "most frequent description", "random description"
CONSTANT_FLOORS = frozenset(
    {
        *(CHANCE, UNIFORM, UNIGRAM, IGNORES_INPUT, MEDIAN_IMAGE, MEAN_IMAGE),
        COPY_LAST,  # needs no training either
        *(TRAIN_MEAN, SHUFFLED, MOST_FREQUENT, RANDOM_TEXT),
    }
)
ORACLE = "(oracle)"  # ends the name of every floor that peeks

Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class TextFloors:
    """Training descriptions: the last input's embedding, the target and its embedding, of Q windows.

    `unigram_V`: float64, nats, -log of each wordpiece's share among training targets, one added to every count.
    Texts are wordpieces with the special ones.
    """

    unigram_V: np.ndarray
    bank_QE: np.ndarray
    next_QE: np.ndarray
    texts_Q: list[np.ndarray]
    most_frequent: np.ndarray


@dataclass(frozen=True)
class FittedFloors:
    """What the training split yields, ready to be judged on one split. Pictures float32 [C, H, W] in [0, 1]."""

    median_CHW: np.ndarray
    mean_CHW: np.ndarray
    text: TextFloors
    scores: dict[str, np.ndarray]  # {floor: predicted score of each story of the judged split}
    first_story: int  # of the judged split
    seed: int


def fit_floors(
    index: ShardIndex, split: str, data: DataConfig, text_target: TextTarget, *, device: torch.device, seed: int
) -> FittedFloors:
    """Floors for judging `split`, fitted on seeded samples of "train". ValueError if there is no such split."""
    median, mean = target_images(index, data, seed)
    return FittedFloors(
        median_CHW=median,
        mean_CHW=mean,
        text=fit_texts(index, data, text_target, device=device, seed=seed),
        scores=score_floors(index, split, data, seed),
        first_story=index.split(split).start,
        seed=seed,
    )


def target_images(index: ShardIndex, data: DataConfig, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Per-pixel median and mean of at most MAX_IMAGES training targets, float32 [C, H, W] in [0, 1]."""
    reader = SampleReader(index, data.model_copy(update={"verify": False}))
    places = choose_windows(index, "train", context=data.context, limit=MAX_IMAGES, seed=seed)
    if not places:
        raise ValueError(
            f"no training story has more than {data.context} frames, so there is no window to fit floors on"
        )
    most = max(1, MAX_IMAGE_BYTES // (reader.size[0] * reader.size[1] * 3))
    if most < len(places):
        places = choose_windows(index, "train", context=data.context, limit=most, seed=seed)
    frames = reader.read_all([(story, position, position + 1) for story, position in places])[1].numpy()
    if not len(frames):
        raise ValueError(f"none of the {len(places)} training windows drawn for the floors can be read")
    # One row of pixels at a time: the median's float64 copy of all frames would be eight times their size.
    median = np.stack([np.median(frames[:, row], axis=0) for row in range(frames.shape[1])])
    mean = frames.mean(0, dtype=np.float64)
    # HWC -> CHW
    return tuple((image / 255).transpose(2, 0, 1).astype(np.float32) for image in (median, mean))  # type: ignore[return-value]


def fit_texts(
    index: ShardIndex, data: DataConfig, text_target: TextTarget, *, device: torch.device, seed: int
) -> TextFloors:
    """Text floors from at most MAX_STORIES training stories."""
    counts = np.ones(index.info.vocabulary_size, dtype=np.float64)
    bank, following, texts = [], [], []
    for batch in text_batches(index, choose_stories(index, "train", limit=MAX_STORIES, seed=seed), data):
        valid = batch.valid_M > 0
        last, target = batch.windows_MK[valid, -1], batch.target_M[valid]
        embedding_NE = text_target(batch.wordpieces_NL.to(device)).float().cpu().numpy()
        bank.append(embedding_NE[last])
        following.append(embedding_NE[target])
        described = texts_of(batch)
        texts += [described[row] for row in target.tolist()]
        for text in texts[len(texts) - len(target) :]:
            np.add.at(counts, text[1:], 1)
    if not texts:
        raise ValueError(
            f"no training story has more than {data.context} frames, so there is no description to fit floors on"
        )
    frequency = Counter(text.tobytes() for text in texts if len(text) > 2)
    # Ties go to the smallest bytes, so that the order of reading does not matter.
    mode = min(frequency.items(), key=lambda item: (-item[1], item[0]))[0] if frequency else texts[0].tobytes()
    return TextFloors(
        unigram_V=-np.log(counts / counts.sum()),
        bank_QE=np.concatenate(bank),
        next_QE=np.concatenate(following),
        texts_Q=texts,
        most_frequent=np.frombuffer(mode, dtype=texts[0].dtype),
    )


def floor_guesses(truth: Truth, fitted: FittedFloors) -> dict[str, Guess]:
    """What every floor says of a batch's numbers: pictures, wordpieces, embeddings, characters, scores."""
    return (
        _frame_floors(truth, fitted)
        | _text_floors(truth, fitted.text)
        | _character_floors(truth)
        | _score_floors(truth, fitted)
    )


def _frame_floors(truth: Truth, fitted: FittedFloors) -> dict[str, Guess]:
    num_windows, num_inputs = truth.input_error_MK.shape
    device = truth.target_MCHW.device
    closest = truth.inputs_MKCHW[torch.arange(num_windows, device=device), truth.input_error_MK.argmin(1)]

    def constant(image_CHW: np.ndarray) -> Tensor:
        return torch.from_numpy(image_CHW).to(device).expand(num_windows, -1, -1, -1)

    return {
        MEDIAN_IMAGE: Guess(frame_MCHW=constant(fitted.median_CHW)),
        MEAN_IMAGE: Guess(frame_MCHW=constant(fitted.mean_CHW)),
        COPY_LAST: Guess(frame_MCHW=truth.inputs_MKCHW[:, -1], embedding_ME=truth.last_embedding_ME),
        f"best of {num_inputs} inputs {ORACLE}": Guess(frame_MCHW=closest),
    }


def _text_floors(truth: Truth, text: TextFloors) -> dict[str, Guess]:
    wordpieces = truth.wordpieces_T.cpu()
    retrieved = torch.from_numpy(text.next_QE[nearest(truth.last_embedding_ME.cpu().numpy(), text.bank_QE)])
    return {
        UNIGRAM: Guess(wordpiece_losses_T=torch.from_numpy(text.unigram_V)[wordpieces]),
        UNIFORM: Guess(
            wordpiece_losses_T=torch.full((len(wordpieces),), np.log(len(text.unigram_V)), dtype=torch.float64)
        ),
        RETRIEVAL: Guess(embedding_ME=retrieved),
    }


def _character_floors(truth: Truth) -> dict[str, Guess]:
    seen = truth.characters_MKP
    num_inputs = seen.shape[1]
    rules = {f"same as frame {num_inputs}": seen[:, -1], "any seen": seen.any(1)}
    if num_inputs > 1:
        rules[f"same as frame {num_inputs - 1}"] = seen[:, -2]
        rules[f"in at least two of {num_inputs}"] = seen.sum(1) >= 2
    return {name: Guess(characters_MP=predicted) for name, predicted in rules.items()}


def _score_floors(truth: Truth, fitted: FittedFloors) -> dict[str, Guess]:
    return {
        name: Guess(score_B=predicted[truth.story_B - fitted.first_story]) for name, predicted in fitted.scores.items()
    }


def nearest(query_ME: np.ndarray, bank_QE: np.ndarray) -> np.ndarray:
    """Row of the bank nearest to each query by cosine, after subtracting the bank's mean from both; int64 [M]."""
    mean = bank_QE.mean(0)
    bank, query = bank_QE - mean, query_ME - mean
    bank /= np.maximum(np.linalg.norm(bank, axis=1, keepdims=True), 1e-12)
    return (query @ bank.T).argmax(1)


def floor_texts(truth: Truth, text: TextFloors, decode: Decode, seed: int) -> dict[str, Guess]:
    """A description for every window from each text floor.

    The last input's; the training description that followed the most similar one; the commonest; and one drawn at
    random, by the window's place, whatever batch it stands in.
    """
    found = nearest(truth.last_embedding_ME.cpu().numpy(), text.bank_QE)
    places = zip(truth.story_M.tolist(), truth.position_M.tolist(), strict=True)
    drawn = [int(np.random.default_rng([seed, *place]).integers(len(text.texts_Q))) for place in places]
    said = {
        COPY_LAST: [inputs[-1] for inputs in truth.input_texts_MK],
        RETRIEVAL: [text.texts_Q[row] for row in found],
        MOST_FREQUENT: [text.most_frequent] * len(found),
        RANDOM_TEXT: [text.texts_Q[row] for row in drawn],
    }
    return {name: Guess(texts={m: decode(ids.tolist()) for m, ids in enumerate(row)}) for name, row in said.items()}
