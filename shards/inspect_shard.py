"""One tar against the index: its hash, its members as Python's tarfile finds them, each story decoded.

Reads with other code than what wrote the index, so that a mistake in either shows.
"""

import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shards.gather import KEY, MADE_BY, plain_id
from shards.grouping import passed_over, split_name
from shards.scan import IMAGES
from storydist.data.files import sha256_file
from storydist.data.frames import check_frame, frame_size
from storydist.data.index import ShardIndex
from storydist.data.sample import Sample, decode
from storydist.data.text import Wordpieces


@dataclass(frozen=True)
class SeenStory:
    """What a sample says of itself."""

    story_id: str
    split: str
    movie: str | None


@dataclass
class ShardReport:
    """What one tar holds; `findings`: a sentence for each thing wrong."""

    split: str
    num_frames: int = 0
    num_members: int = 0
    size_bytes: int = 0
    stories: list[SeenStory] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Inspector:
    """Inspects the shards of one set. Picklable, for worker processes."""

    index: ShardIndex
    wordpieces: Wordpieces | None  # of stories; a set of plain members has none

    def inspect(self, shard: int) -> ShardReport:
        """Reads the shard twice: once for its hash, once member by member. Never raises for a damaged file."""
        info, path = self.index.info.shards[shard], self.index.shard_path(shard)
        first = sum(before.num_stories for before in self.index.info.shards[:shard])
        numbers = range(first, first + info.num_stories)
        report = ShardReport(self._split_of(first))
        if not path.is_file():
            report.findings.append(f"{info.name} is missing ({info.num_stories} stories)")
            return report
        report.size_bytes = path.stat().st_size
        if report.size_bytes != info.size_bytes:
            report.findings.append(f"{info.name} has {report.size_bytes} bytes, the index says {info.size_bytes}")
        elif sha256_file(path) != info.sha256:
            report.findings.append(f"{info.name}: its SHA-256 is not the one in the index")
        try:
            self._walk(path, numbers, report)
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:  # ValueError: a name without a suffix
            report.findings.append(f"{info.name} cannot be read to its end: {error}")
        return report

    def _split_of(self, story: int) -> str:
        splits = self.index.info.splits
        return next(name for name in splits if story in self.index.split(name))

    def _walk(self, path: Path, numbers: range, report: ShardReport) -> None:
        """The tar's members beside the index's, story by story; ends at the first one that is another."""
        with tarfile.open(path, "r:") as tar:
            for number in numbers:
                payloads: dict[str, bytes] = {}
                keys = set()
                for suffix, offset, size, crc32 in self.index.members_of(number):
                    member = _next_file(tar)
                    key, found_suffix = split_name(member.name) if member else ("", "")
                    found = (found_suffix, member.offset_data, member.size) if member else None
                    if member is None or found != (suffix, offset, size):
                        wanted = f"{suffix} of {size} bytes at {offset}"
                        report.findings.append(f"{path.name}: the index has {wanted}, the tar {found or 'ends there'}")
                        return
                    file = tar.extractfile(member)
                    payloads[suffix] = file.read() if file else b""
                    keys.add(key)
                    report.num_members += 1
                    if zlib.crc32(payloads[suffix]) != crc32:
                        report.findings.append(f"{path.name}: the CRC-32 of {member.name} is not the one in the index")
                if len(keys) > 1:
                    found_keys = ", ".join(sorted(keys))
                    report.findings.append(f"{path.name}: one sample of the index has members of {found_keys}")
                if self.wordpieces is None:
                    self._plain(number, min(keys), payloads, report)
                else:
                    self._story(path.name, number, min(keys), payloads, report)
            extra = _next_file(tar)
            if extra is not None:
                report.findings.append(f"{path.name}: {extra.name} and what follows it is not in the index")

    def _plain(self, number: int, key: str, payloads: dict[str, bytes], report: ShardReport) -> None:
        """A plain sample beside its row of the index."""
        row, info = self.index.stories[number], self.index.info
        shard, story_id = info.shards[int(row["shard"])].name, self.index.story_id(number)
        num_images = sum(suffix.rpartition(".")[2] in IMAGES for suffix in payloads)
        if plain_id(info.options.get("ids", KEY), shard, key) != story_id:
            report.findings.append(f"{shard}: sample {key} has the id {story_id} in the index")
        if num_images != row["num_frames"]:
            report.findings.append(f"{shard}, {key}: has {num_images} images, the index says {row['num_frames']}")
        report.num_frames += num_images
        report.stories.append(SeenStory(story_id, report.split, None))

    def _story(self, shard: str, number: int, key: str, payloads: dict[str, bytes], report: ShardReport) -> None:
        try:
            sample = decode(key, payloads)
            report.findings += [f"{shard}, {key}: {finding}" for finding in self._differences(sample, number)]
        except (ValueError, KeyError, TypeError) as error:
            report.findings.append(f"{shard}, {key}: {error}")
            return
        report.num_frames += sample.num_frames
        split = sample.meta.get("split", report.split)
        report.stories.append(SeenStory(sample.meta["story_id"], split, sample.meta.get("movie")))

    def _differences(self, sample: Sample, number: int) -> Iterator[str]:
        """A story beside its row of the index. Stories packed by others may say less of themselves."""
        row, meta, split = self.index.stories[number], sample.meta, self._split_of(number)
        score = np.float32(np.nan if meta.get("score") is None else meta["score"])
        if meta["story_id"] != self.index.story_id(number):
            yield f"is story {meta['story_id']}, the index says {self.index.story_id(number)}"
        own_key = self.index.info.options.get("made_by") == MADE_BY or sample.key.startswith(f"{split}-")
        if meta.get("split", split) != split or not own_key:
            yield f"is of split {meta.get('split')}, the index says {split}"
        if sample.num_frames != row["num_frames"] or meta.get("frame_count", sample.num_frames) != sample.num_frames:
            yield f"has {sample.num_frames} frames, the index says {row['num_frames']}"
        if not np.array_equal(score, row["score"], equal_nan=True):
            yield f"has score {score}, the index says {row['score']}"
        yield from self._text_differences(sample)
        yield from self._frame_differences(sample)

    def _text_differences(self, sample: Sample) -> Iterator[str]:
        assert self.wordpieces is not None, "stories have a tokenizer"
        if "texts" in sample.meta:
            flat, lengths = self.wordpieces.encode(sample.meta["texts"])
            if not (np.array_equal(flat, sample.wordpieces) and np.array_equal(lengths, sample.lengths)):
                yield "its wordpieces are not those that the tokenizer makes of its texts"
        if len(sample.tags) and not 0 < sample.tags[:, 1].min() <= sample.tags[:, 1].max() < len(
            self.index.info.tag_vocabulary
        ):
            yield "has a tag that is not in the tag vocabulary"

    def _frame_differences(self, sample: Sample) -> Iterator[str]:
        wanted = (self.index.info.height, self.index.info.width)
        if isinstance(sample.frames, np.ndarray):
            sizes = {sample.frames.shape[1:3]}
        else:
            for image in sample.frames:
                check_frame(image)
            sizes = {frame_size(image) for image in sample.frames} if wanted != (None, None) else {wanted}
        if sizes != {wanted}:
            yield f"has frames of {sizes} pixels, the index says {wanted}"


def _next_file(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next member that belongs to a sample."""
    while (member := tar.next()) is not None and (member.isdir() or passed_over(member.name)):
        pass
    return member
