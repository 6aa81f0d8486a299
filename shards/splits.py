"""Which story goes into which split: train, val, test. A function of ids, films and seed, not of order or machine.

"source": the source's own splits; where it has train but no val, a seeded share of train becomes val. A source with one
split only is split by story. "story": seeded shares of all stories. "movie": the same by film, no film in two splits. A
split that the metadata gives wins over all of them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SPLITS = ("train", "val", "test")
SPLIT_MODES = ("source", "story", "movie")
_NAMES = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}


@dataclass(frozen=True)
class SplitShares:
    """Seeded shares in [0, 1), together below 1. In mode "source" `val` is the share of the source's train split."""

    val: float
    test: float
    seed: int


def split_name(text: str) -> str | None:
    """train, val or test for any of their usual names; None for anything else."""
    name = text.strip().lower()
    name = _NAMES.get(name, name)
    return name if name in SPLITS else None


def assign_splits(
    mode: str,
    story_ids: Sequence[str],
    source_splits: Sequence[str],
    movies: Sequence[str | None],
    fixed: Sequence[str | None],
    shares: SplitShares,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(split of each story, notes for the user). `fixed`: the split that the metadata gives, or None.

    Raises ValueError in mode "movie" when a story has no film, or when the metadata put one film into two splits.
    """
    splits, chosen = list(fixed), dict[str, str]()
    free = [number for number, split in enumerate(splits) if split is None]
    notes: list[str] = []
    if mode == "movie":
        chosen = _by_movie(story_ids, movies, fixed, shares, notes)
    elif mode == "source" and len({source_splits[number] for number in free}) > 1:
        chosen = _by_source([story_ids[n] for n in free], [source_splits[n] for n in free], shares)
    elif free:
        if mode == "source":
            notes.append(f"the source has one split only ({source_splits[free[0]]}), so its stories are split by id")
        chosen = _by_story([story_ids[number] for number in free], shares, notes)
    for number in free:
        splits[number] = chosen[story_ids[number]]
    return tuple(split for split in splits if split), tuple(notes)


def _by_source(story_ids: Sequence[str], source_splits: Sequence[str], shares: SplitShares) -> dict[str, str]:
    chosen = dict(zip(story_ids, source_splits, strict=True))
    if "val" not in source_splits:
        train = _shuffled((name for name, split in chosen.items() if split == "train"), shares.seed)
        for story_id in train[: _share(shares.val, len(train))]:
            chosen[story_id] = "val"
    return chosen


def _by_story(story_ids: Sequence[str], shares: SplitShares, notes: list[str]) -> dict[str, str]:
    ordered = _shuffled(story_ids, shares.seed)
    num_test = _share(shares.test, len(ordered))
    num_val = min(_share(shares.val, len(ordered)), max(0, len(ordered) - num_test - 1))
    if len(ordered) < len(SPLITS):
        notes.append(f"{len(ordered)} stories are too few to be split: all are train")
    names = ["test"] * num_test + ["val"] * num_val
    names += ["train"] * (len(ordered) - len(names))
    return dict(zip(ordered, names, strict=True))


def _by_movie(
    story_ids: Sequence[str],
    movies: Sequence[str | None],
    fixed: Sequence[str | None],
    shares: SplitShares,
    notes: list[str],
) -> dict[str, str]:
    for story_id, movie in zip(story_ids, movies, strict=True):
        if movie is None:
            raise ValueError(
                f"story {story_id} has no movie, so stories cannot be split by movie; fill column movie of the "
                "metadata, or split by story"
            )
    split_of = _fixed_movies(movies, fixed)
    sizes = Counter(movie for movie in movies if movie is not None)
    free = _shuffled((movie for movie in sizes if movie not in split_of), shares.seed)
    for split, share in (("test", shares.test), ("val", shares.val)):
        held = sum(sizes[movie] for movie, name in split_of.items() if name == split)
        for movie in _fill(free, sizes, share * len(movies) - held, needed=share > 0 and not held):
            split_of[movie] = split
            free.remove(movie)
    split_of.update(dict.fromkeys(free, "train"))
    lacking = [split for split in SPLITS if split not in split_of.values()]
    if lacking:
        notes.append(f"{len(sizes)} films are too few to be split: none is left for {' and '.join(lacking)}")
    return {story_id: split_of[movie] for story_id, movie in zip(story_ids, movies, strict=True) if movie is not None}


def _fixed_movies(movies: Sequence[str | None], fixed: Sequence[str | None]) -> dict[str, str]:
    split_of: dict[str, str] = {}
    for movie, split in zip(movies, fixed, strict=True):
        if movie is None or split is None:
            continue
        if split_of.setdefault(movie, split) != split:
            raise ValueError(
                f"the metadata put stories of movie {movie} into {split_of[movie]} and into {split}; one film may be "
                "in one split only: correct column split, or split by story"
            )
    return split_of


def _fill(movies: Sequence[str], sizes: Counter[str], target: float, needed: bool) -> list[str]:
    """Films whose stories come closest to `target` when taken in order. The last film is left for train; `needed`: at
    least one film is taken, the smallest if none fits."""
    taken: list[str] = []
    count = 0
    for movie in movies:
        closer = abs(count + sizes[movie] - target) < abs(count - target)
        if closer and len(taken) + 1 < len(movies):
            taken.append(movie)
            count += sizes[movie]
    if not taken and needed and len(movies) > 1:
        taken.append(min(movies, key=lambda movie: (sizes[movie], movie)))
    return taken


def _share(fraction: float, total: int) -> int:
    """Stories of a share: rounded, at least one of three or more, none of fewer."""
    if fraction == 0 or total < len(SPLITS):
        return 0
    return max(1, round(fraction * total))


def _shuffled(names: Iterable[str], seed: int) -> list[str]:
    """Names in an order that depends on seed and names alone."""
    return sorted(names, key=lambda name: (hashlib.sha256(f"{seed}:{name}".encode()).digest(), name))
