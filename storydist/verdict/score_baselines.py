"""Floors for the story score: the train mean, ridge regressions on tags, and the same on shuffled scores.

They see tags and never a pixel or a word. Everything is fitted and chosen on the training split.
"""

from collections.abc import Sequence

import numpy as np

from storydist.data.frame_runs import SampleReader
from storydist.data.index import ShardIndex
from storydist.data.sample import UNKNOWN_TAG
from storydist.data.settings import DataConfig
from storydist.verdict.windows import choose_stories, texts_and_tags

MAX_STORIES = 4000  # training stories used at most, drawn by the seed
MAX_TAGS = 500  # the most frequent ones (the vocabulary is ordered so); more columns cost minutes
NUM_BINS = 3
MIN_STORIES = 10  # fewer scored stories than that are not worth a regression
PENALTIES = np.logspace(-2, 4, 13)

TRAIN_MEAN, BAG, BINS, SHUFFLED = (
    "train mean",
    "bag-of-tags ridge",
    "tags-in-time-bins ridge",
    "ridge on shuffled scores",
)


def score_floors(index: ShardIndex, split: str, data: DataConfig, seed: int) -> dict[str, np.ndarray]:
    """{floor: predicted score of each story of `split`, float64, in stored order}; {} without scores to train on."""
    chosen = choose_stories(index, "train", limit=MAX_STORIES, seed=seed)
    scores = index.stories[chosen]["score"].astype(np.float64)
    chosen, scores = (
        [s for s, score in zip(chosen, scores, strict=True) if not np.isnan(score)],
        scores[~np.isnan(scores)],
    )
    if not chosen:
        return {}
    stories = list(index.split(split))
    floors = {TRAIN_MEAN: np.full(len(stories), scores.mean())}
    num_tags = min(MAX_TAGS, len(index.info.tag_vocabulary))
    if len(chosen) < MIN_STORIES or num_tags <= UNKNOWN_TAG + 1:
        return floors
    train, judged = tag_features(index, chosen, data, num_tags), tag_features(index, stories, data, num_tags)
    usable = ~np.isnan(train[:, 0, 0])
    train, scores, judged = train[usable], scores[usable], np.nan_to_num(judged)  # an unusable story is not judged
    shuffled = np.random.default_rng(seed).permutation(scores)
    bins = slice(0, train.shape[1])
    for name, blocks, target in ((BAG, slice(0, 1), scores), (BINS, bins, scores), (SHUFFLED, bins, shuffled)):
        floors[name] = ridge_prediction(_design(train, blocks), target, _design(judged, blocks))
    return floors


def tag_features(index: ShardIndex, stories: Sequence[int], data: DataConfig, num_tags: int) -> np.ndarray:
    """Tag counts, float32 [stories, 1 + NUM_BINS, num_tags + 1]: in the whole story, and in each third of its frames.

    A story's own tags count in the whole only. The last column counts frames, by which counts become shares. NaN for a
    story that cannot be used and is to be skipped.
    """
    features = np.zeros((len(stories), 1 + NUM_BINS, num_tags + 1), dtype=np.float32)
    reader = SampleReader(index, data)
    for row, sample in zip(features, texts_and_tags(reader, stories), strict=True):
        if sample is None:
            row[:] = np.nan
            continue
        frame, tag = sample.tags[:, 0], sample.tags[:, 1]
        known = (tag > UNKNOWN_TAG) & (tag < num_tags)
        row[0] = np.bincount(tag[known], minlength=num_tags + 1)
        bin_S = np.arange(len(sample.lengths)) * NUM_BINS // len(sample.lengths)
        for place in range(NUM_BINS):
            inside = known & (frame >= 0) & (bin_S[frame] == place)
            row[1 + place] = np.bincount(tag[inside], minlength=num_tags + 1)
            row[1 + place, -1] = (bin_S == place).sum()
        row[0, -1] = len(sample.lengths)
    return features


def _design(features: np.ndarray, blocks: slice) -> tuple[np.ndarray, np.ndarray]:
    """Two readings of the same tags: how often, and in what share of the frames. Float64 [stories, columns] each."""
    tags = features[:, blocks, :-1].astype(np.float64)
    shares = tags / np.maximum(features[:, blocks, -1:], 1)
    return tags.reshape(len(tags), -1), shares.reshape(len(tags), -1)


def ridge_prediction(train: Sequence[np.ndarray], target: np.ndarray, judged: Sequence[np.ndarray]) -> np.ndarray:
    """Ridge regression (Hoerl & Kennard 1970), float64 predictions for `judged`.

    Penalty and reading (one entry of `train` and `judged` each) have the least leave-one-out error in training.
    """
    from sklearn.linear_model import RidgeCV  # takes seconds, and no run starts or resumes with it

    best_error, prediction = np.inf, np.empty(0)
    for train_XY, judged_XY in zip(train, judged, strict=True):
        fitted = RidgeCV(alphas=PENALTIES).fit(train_XY, target)
        if -fitted.best_score_ < best_error:
            best_error, prediction = -fitted.best_score_, fitted.predict(judged_XY)
    return prediction
