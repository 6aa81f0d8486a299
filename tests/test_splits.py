"""Splits: exact shares, the same whatever the order, no film in two."""

import random
from collections import Counter

import pytest

from shards.splits import SplitShares, assign_splits, split_name

SHARES = SplitShares(val=0.2, test=0.1, seed=3)
IDS = [f"s{number}" for number in range(100)]


def assign(mode, ids=IDS, source=None, movies=None, fixed=None, shares=SHARES):
    nothing = [None] * len(ids)
    return assign_splits(mode, ids, source or ["train"] * len(ids), movies or nothing, fixed or nothing, shares)


def test_story_shares_are_exact_and_depend_on_ids_and_seed_only():
    splits, notes = assign("story")
    assert Counter(splits) == {"train": 70, "val": 20, "test": 10} and notes == ()
    by_id = dict(zip(IDS, splits, strict=True))
    shuffled = random.Random(1).sample(IDS, len(IDS))
    assert dict(zip(shuffled, assign("story", shuffled)[0], strict=True)) == by_id
    assert assign("story", shares=SplitShares(0.2, 0.1, 4))[0] != splits


def test_source_takes_val_out_of_train_and_leaves_test():
    source = ["train"] * 80 + ["test"] * 20
    splits, notes = assign("source", source=source)
    assert Counter(splits) == {"train": 64, "val": 16, "test": 20} and notes == ()
    assert set(splits[80:]) == {"test"}
    own = ["train"] * 50 + ["val"] * 30 + ["test"] * 20
    assert list(assign("source", source=own)[0]) == own


def test_a_source_with_one_split_is_split_by_story_and_says_so():
    splits, notes = assign("source")
    assert splits == assign("story")[0]
    assert "one split only" in notes[0]


def test_the_metadata_wins():
    fixed = ["test"] * 5 + [None] * 95
    assert assign("story", fixed=fixed)[0][:5] == ("test",) * 5
    assert Counter(assign("story", fixed=fixed)[0][5:])["val"] == 19
    assert assign("source", fixed=["val"] * 100) == (("val",) * 100, ())


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("num_films", [3, 4, 10, 40])
def test_no_film_is_in_two_splits_and_shares_are_near(num_films, seed):
    draw = random.Random(seed)
    movies = [f"film{draw.randrange(num_films)}" for _ in range(97)] + [f"film{film}" for film in range(3)]
    splits, notes = assign("movie", movies=movies, shares=SplitShares(0.2, 0.1, seed))
    of_film: dict[str, set[str]] = {}
    for movie, split in zip(movies, splits, strict=True):
        of_film.setdefault(movie, set()).add(split)
    assert all(len(found) == 1 for found in of_film.values())
    counts = Counter(splits)
    assert set(counts) == {"train", "val", "test"} and notes == ()
    if num_films == 40:
        assert abs(counts["test"] - 10) <= 4 and abs(counts["val"] - 20) <= 4


def test_films_need_names_and_may_not_be_fixed_in_two_splits():
    with pytest.raises(ValueError, match="story s1 has no movie"):
        assign("movie", IDS[:2], movies=["a", None])
    with pytest.raises(ValueError, match="movie a into train and into test"):
        assign("movie", IDS[:2], movies=["a", "a"], fixed=["train", "test"])
    splits, _ = assign("movie", IDS[:4], movies=["a", "b", "a", "c"], fixed=["val", None, None, None])
    assert splits[2] == "val"


def test_too_few_stories_or_films_are_train_with_a_note():
    assert assign("story", IDS[:2]) == (("train", "train"), ("2 stories are too few to be split: all are train",))
    splits, notes = assign("movie", IDS[:5], movies=["a"] * 5)
    assert set(splits) == {"train"} and "too few" in notes[0]
    assert Counter(assign("story", IDS[:3])[0]) == {"train": 1, "val": 1, "test": 1}
    assert "train" in assign("story", IDS[:4], shares=SplitShares(0.5, 0.45, 0))[0]


def test_names_of_splits():
    assert [split_name(name) for name in ("Train", "validation", "dev", "valid", "TEST ", "other", "")] == [
        "train", "val", "val", "val", "test", None, None,
    ]  # fmt: skip
