"""One tar against the index: its hash, its members as Python's tarfile finds them, each sample decoded."""

import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

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
    wordpieces: Wordpieces

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
        except (tarfile.TarError, EOFError, OSError) as error:
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
                    member = tar.next()
                    found = (member.name.partition(".")[2], member.offset_data, member.size) if member else None
                    if member is None or found != (suffix, offset, size):
                        wanted = f"{suffix} of {size} bytes at {offset}"
                        report.findings.append(f"{path.name}: the index has {wanted}, the tar {found or 'ends there'}")
                        return
                    file = tar.extractfile(member)
                    payloads[suffix] = file.read() if file else b""
                    keys.add(member.name.partition(".")[0])
                    report.num_members += 1
                    if zlib.crc32(payloads[suffix]) != crc32:
                        report.findings.append(f"{path.name}: the CRC-32 of {member.name} is not the one in the index")
                self._story(path.name, number, keys, payloads, report)
            extra = tar.next()
            if extra is not None:
                report.findings.append(f"{path.name}: {extra.name} and what follows it is not in the index")

    def _story(self, shard: str, number: int, keys: set[str], payloads: dict[str, bytes], report: ShardReport) -> None:
        key = min(keys)
        if len(keys) > 1:
            report.findings.append(f"{shard}: one story of the index has members of {', '.join(sorted(keys))}")
        try:
            sample = decode(key, payloads)
            report.findings += [f"{shard}, {key}: {finding}" for finding in self._differences(sample, number)]
        except (ValueError, KeyError, TypeError) as error:
            report.findings.append(f"{shard}, {key}: {error}")
            return
        report.num_frames += sample.num_frames
        report.stories.append(SeenStory(sample.meta["story_id"], sample.meta["split"], sample.meta["movie"]))

    def _differences(self, sample: Sample, number: int) -> Iterator[str]:
        """A sample beside its row of the index."""
        row, meta, split = self.index.stories[number], sample.meta, self._split_of(number)
        score = np.float32(np.nan if sample.score is None else sample.score)
        if meta["story_id"] != self.index.story_id(number):
            yield f"is story {meta['story_id']}, the index says {self.index.story_id(number)}"
        if meta["split"] != split or not sample.key.startswith(f"{split}-"):
            yield f"is of split {meta['split']}, the index says {split}"
        if sample.num_frames != row["num_frames"] or meta["frame_count"] != sample.num_frames:
            yield f"has {sample.num_frames} frames, the index says {row['num_frames']}"
        if not np.array_equal(score, row["score"], equal_nan=True):
            yield f"has score {score}, the index says {row['score']}"
        yield from self._text_differences(sample)
        yield from self._frame_differences(sample)

    def _text_differences(self, sample: Sample) -> Iterator[str]:
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
