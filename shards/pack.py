"""One planned shard: stories -> samples -> tar, with the rows that the index will need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.plan import PlannedShard
from shards.rows import GrowingRows, ShardRows, SkippedStory, finished_rows
from shards.sources import BadStory, Source
from shards.tar import TarWriter
from storydist.data.frames import check_frame, decode_frame, encode_jpeg, frame_size
from storydist.data.sample import TAG_KINDS, UNKNOWN_TAG, Sample, Story, encode, image_suffix, sample_key
from storydist.data.text import Wordpieces

MAX_FRAMES = 10_000  # the index counts members in 16 bits


@dataclass(frozen=True)
class FrameOptions:
    """`frames`: "raw" (uint8 at `height` x `width`), "jpeg" (encoded again at that size) or "original" (as found)."""

    frames: str
    height: int
    width: int


@dataclass(frozen=True)
class Packer:
    """Builds planned shards of one source in `root`. Picklable, for worker processes.

    `tag_vocabulary`: (kind, value) by tag id. `skip_bad`: leave out stories that cannot be used instead of raising.
    """

    root: Path
    source: Source
    wordpieces: Wordpieces
    tag_vocabulary: Sequence[tuple[str, str]]
    frames: FrameOptions
    skip_bad: bool

    def pack(self, shard: PlannedShard) -> ShardRows:
        """The shard's rows, after its tar and rows are on the disk; an earlier run's are taken if they are whole.

        A skipped story leaves a gap in the numbering of keys. Raises BadStory, without skip_bad, for the first one.
        """
        earlier = finished_rows(self.root, shard.name)
        if earlier is not None and (self.skip_bad or not earlier.skipped):
            return earlier
        rows = self._write(shard)
        rows.save(self.root)
        return rows

    def _write(self, shard: PlannedShard) -> ShardRows:
        tag_ids = {tag: number for number, tag in enumerate(self.tag_vocabulary)}
        rows = GrowingRows(self.wordpieces.vocabulary_size)
        with TarWriter(self.root / shard.name) as tar:
            for place, number in enumerate(shard.stories):
                try:
                    story = self.source.load(number)
                    sample = to_sample(
                        sample_key(shard.split, shard.first_position + place),
                        story, self.wordpieces, tag_ids, self.frames,
                    )  # fmt: skip
                    members = _encode(sample, story)
                except BadStory as error:
                    if not self.skip_bad:
                        raise
                    rows.skipped.append(SkippedStory(error.story_id, error.field, error.reason, str(error)))
                    continue
                places = [(suffix, *tar.add(f"{sample.key}.{suffix}", data)) for suffix, data in members]
                rows.add(story.story_id, sample.num_frames, sample.score, places)
                rows.add_descriptions(sample.wordpieces, sample.lengths)
            if not rows:
                return rows.finished(shard.name, shard.split, 0, "")
            digest = tar.close()
            return rows.finished(shard.name, shard.split, tar.size_bytes, digest)


def to_sample(
    key: str, story: Story, wordpieces: Wordpieces, tag_ids: Mapping[tuple[str, str], int], options: FrameOptions
) -> Sample:
    """A story tokenised, tags numbered (a value outside the vocabulary: UNKNOWN_TAG), frames as `options` say.

    Raises BadStory when an image cannot be decoded or the parts of the story disagree on the number of frames.
    """
    _check_counts(story)
    flat, lengths = wordpieces.encode(story.texts)
    columns = list(dict.fromkeys(name for frame in story.characters for name in frame))
    times_s = np.full(len(story.texts), np.nan) if story.times_s is None else np.array(story.times_s)
    return Sample(
        key=key,
        frames=_frames(story, options),
        wordpieces=flat,
        lengths=lengths,
        tags=_tag_rows(story, tag_ids),
        characters=_presence(story, columns),
        times_s=times_s.astype(np.float32),
        meta=_meta(story, columns),
        story=story.story,
        chain_of_thought=story.chain_of_thought,
        annotations={"story": _plain(story.markup), "chain_of_thought": _plain(story.tables)},
    )


def _plain(value: Any) -> Any:
    """Dataclasses as dicts, tuples as lists, for JSON; without the deep copies of `dataclasses.asdict`."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return value


def _check_counts(story: Story) -> None:
    counts = {
        "images": len(story.images),
        "texts": len(story.texts),
        "frame tags": len(story.frame_tags),
        "characters": len(story.characters),
        "times": len(story.texts if story.times_s is None else story.times_s),
    }
    if len(set(counts.values())) != 1:
        found = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise BadStory(story.story_id, "images", "frame counts differ", f"story {story.story_id}: {found}")
    if not 0 < len(story.images) <= MAX_FRAMES:
        reason = "no frames" if not story.images else "too many frames"
        message = f"story {story.story_id}, field images: {len(story.images)} frames, needed 1 to {MAX_FRAMES}"
        raise BadStory(story.story_id, "images", reason, message)


def _frames(story: Story, options: FrameOptions) -> np.ndarray | tuple[bytes, ...]:
    frames = []
    for number, image in enumerate(story.images, 1):
        try:
            frames.append(_frame(image, options))
        except ValueError as error:
            message = f"story {story.story_id}, field images, image {number}: cannot be used: {error}"
            raise BadStory(story.story_id, "images", "corrupt image", message) from None
    return np.stack(frames) if options.frames == "raw" else tuple(frames)


def _frame(image: bytes, options: FrameOptions) -> Any:
    if options.frames == "original":
        image_suffix(image)
        check_frame(image)
        return image
    frame = decode_frame(image, options.height, options.width)
    return encode_jpeg(frame) if options.frames == "jpeg" else frame


def _tag_rows(story: Story, tag_ids: Mapping[tuple[str, str], int]) -> np.ndarray:
    tags = [(-1, "story", value) for value in story.story_tags]
    tags += [(frame, tag.kind, tag.value) for frame, row in enumerate(story.frame_tags) for tag in row]
    rows = [(frame, tag_ids.get((kind, value), UNKNOWN_TAG), TAG_KINDS.index(kind)) for frame, kind, value in tags]
    return np.array(rows, np.int32).reshape(-1, 3)


def _presence(story: Story, columns: list[str]) -> np.ndarray:
    rows = [[name in frame for name in columns] for frame in story.characters]
    return np.array(rows, np.uint8).reshape(len(rows), len(columns))


def _meta(story: Story, columns: list[str]) -> dict[str, Any]:
    return {
        "story_id": story.story_id,
        "split": story.split,
        "movie": story.movie,
        "score": story.score,
        "story_tags": list(story.story_tags),
        "texts": list(story.texts),
        "frame_tags": [[list(tag) for tag in frame] for frame in story.frame_tags],
        "character_ids": columns,
        "frame_count": len(story.images),
        "source_sizes": [list(frame_size(image)) for image in story.images],
    }


def _encode(sample: Sample, story: Story) -> list[tuple[str, bytes]]:
    try:
        return encode(sample)
    except ValueError as error:  # a lone surrogate, an infinite number
        message = f"story {story.story_id}, field story: the text cannot be stored: {error}"
        raise BadStory(story.story_id, "story", "text cannot be stored", message) from None
