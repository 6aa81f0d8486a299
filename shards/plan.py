"""Which story goes into which shard, and what must be known of all stories before the first is written.

Reads texts only, no image. The tag vocabulary, and the texts that a tokenizer is trained on, come from the train split
alone; a train story whose images later turn out damaged has had its part in them.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, fields

from shards.sources import BadStory, Source
from storydist.data.sample import Story, to_json

SPLIT_ORDER = ("train", "val", "test")
TRAIN = "train"
NO_TAGS = (("", "<pad>"), ("", "<unk>"))  # tag ids 0 and 1
SPLIT_NAME = re.compile(r"[a-z0-9_-]{1,40}")


@dataclass(frozen=True)
class PlannedShard:
    """One tar to be. `stories`: numbers in the source; the first has `first_position` in the split, and so on."""

    name: str
    split: str
    first_position: int
    stories: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """`train_texts`: descriptions of the train split, in order. `tag_vocabulary`: (kind, value) by tag id.

    `source_sha256` is over everything that a story holds but its images.
    """

    shards: tuple[PlannedShard, ...]
    train_texts: tuple[str, ...]
    tag_vocabulary: tuple[tuple[str, str], ...]
    source_sha256: str

    @property
    def num_stories(self) -> int:
        return sum(len(shard.stories) for shard in self.shards)


def make_plan(
    source: Source, stories_per_shard: int, limit: int | None, on_bad_story: Callable[[BadStory], None] | None
) -> Plan:
    """Plans every story of the source, or the first `limit` of each split, in the source's order.

    A story that cannot be used goes to `on_bad_story` and is left out; without one BadStory is raised. Raises
    ValueError when no story is left or a split's name cannot be part of a file's name.
    """
    digest = hashlib.sha256()
    tags: Counter[tuple[str, str]] = Counter()
    train_texts: list[str] = []
    numbers: dict[str, list[int]] = {}
    for number, story in _described(source, limit, on_bad_story):
        digest.update(_content(story) + b"\n")
        numbers.setdefault(story.split, []).append(number)
        if story.split == TRAIN:
            train_texts += story.texts
            tags.update(("story", value) for value in story.story_tags)
            tags.update((tag.kind, tag.value) for frame in story.frame_tags for tag in frame)
    if not numbers:
        raise ValueError("the source holds no usable story, so there is nothing to build")
    by_frequency = sorted(tags, key=lambda tag: (-tags[tag], tag))
    shards = tuple(
        shard for split in in_split_order(numbers) for shard in _cut(split, numbers[split], stories_per_shard)
    )
    return Plan(shards, tuple(train_texts), (*NO_TAGS, *by_frequency), digest.hexdigest())


def _described(
    source: Source, limit: int | None, on_bad_story: Callable[[BadStory], None] | None
) -> Iterator[tuple[int, Story]]:
    taken: Counter[str] = Counter()
    places: dict[str, int] = {}
    for number in range(source.num_stories):
        if limit is not None and taken[source.splits[number]] >= limit:
            continue
        try:
            story = source.describe(number)
            _check(story, number, places)
        except BadStory as error:
            if on_bad_story is None:
                raise
            on_bad_story(error)
            continue
        places[story.story_id] = number
        taken[story.split] += 1
        yield number, story


def _check(story: Story, number: int, places: dict[str, int]) -> None:
    if story.story_id in places:
        rows = f"rows {places[story.story_id]} and {number}"
        message = f"story {story.story_id}, field story_id: {rows} have the same id; ids must differ"
        raise BadStory(story.story_id, "story_id", "duplicate id", message)
    if not SPLIT_NAME.fullmatch(story.split):
        message = f"story {story.story_id}, field split: {story.split!r} must consist of a-z, 0-9, - and _"
        raise BadStory(story.story_id, "split", "split cannot be a name", message)


def _content(story: Story) -> bytes:
    # The parses follow from the texts.
    derived = ("images", "markup", "tables")
    return to_json([getattr(story, field.name) for field in fields(story) if field.name not in derived])


def in_split_order(splits: Collection[str]) -> list[str]:
    """The splits as they lie in a set: train, val, test, then others by name."""
    return [*(split for split in SPLIT_ORDER if split in splits), *sorted(set(splits) - set(SPLIT_ORDER))]


def _cut(split: str, stories: list[int], stories_per_shard: int) -> Iterator[PlannedShard]:
    for shard, first in enumerate(range(0, len(stories), stories_per_shard)):
        chosen = tuple(stories[first : first + stories_per_shard])
        yield PlannedShard(f"{split}-{shard:06d}.tar", split, first, chosen)
