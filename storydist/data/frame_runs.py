"""Reads stories, or frames in a row of them, as FrameRuns whose pixels lie end to end in one batch's memory."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from storydist.data.batch import FrameRun
from storydist.data.decode import BadImage, decode_exact, decode_scaled
from storydist.data.index import ShardIndex
from storydist.data.memory import FrameMemory
from storydist.data.npy import read_header
from storydist.data.reader import BadSample, Located, Member, ShardReader
from storydist.data.sample import IMAGE_SUFFIX, TEXT_SUFFIXES, SampleArrays, decode_arrays
from storydist.data.settings import DataConfig

Span = tuple[int, int, int]  # story, first frame, last frame + 1

RAW = "frames.npy"
_ARRAYS = ("wordpieces.npy", "lengths.npy", "tags.npy", "characters.npy", "times.npy")
_UNREAD = frozenset((*TEXT_SUFFIXES, "json"))  # training needs none of these


class SampleReader:
    """Reads the samples of a shard set. Threads may share one.

    A raw story is checked whole (its checksum) when any of it is first read; from then on windows are read alone.
    """

    def __init__(self, index: ShardIndex, config: DataConfig):
        self.index, self.config, self.size = index, config, frame_size(index, config)
        # One block of shards is open, and the next one's beside it at the seam.
        self.shards = ShardReader(index, verify=config.verify, max_open=4 * config.block_shards)
        self.num_frames = index.stories.view(np.ndarray)["num_frames"]
        self.memory = FrameMemory(config.prefetch + config.threads + 2)  # read ahead, being read, with the trainer
        self._checked = bytearray(len(index.stories) // 8 + 1)  # a bit a story: its raw frames fit their checksum

    def whole(self, story: int) -> Span:
        """All frames of a story."""
        return story, 0, int(self.num_frames[story])

    def read(self, story: int, start: int = 0, stop: int | None = None) -> FrameRun:
        """Frames start .. stop-1 of one story. Raises BadSample naming shard, story and member for anything wrong."""
        span = (story, start, int(self.num_frames[story]) if stop is None else stop)
        return self._read(span, np.empty((span[2] - start, *self.size, 3), dtype=np.uint8))

    def read_all(
        self, spans: Sequence[Span], *, pin: bool = False
    ) -> tuple[list[FrameRun], Tensor, list[tuple[Span, BadSample]]]:
        """These spans' runs; their frames end to end, uint8 [N, H, W, 3]; and the spans that cannot be used.

        With `data.on_bad_sample=stop` the first bad one is raised instead. `pin`: in page-locked memory.
        """
        num_frames = sum(stop - start for _, start, stop in spans)
        shape = (num_frames, *self.size, 3)
        # torch keeps page-locked memory for reuse by itself.
        frames_NHWC = torch.empty(shape, dtype=torch.uint8, pin_memory=True) if pin else self.memory.take(*shape)
        pixels, row = frames_NHWC.numpy(), 0
        runs: list[FrameRun] = []
        bad: list[tuple[Span, BadSample]] = []
        for span in spans:
            length = span[2] - span[1]
            try:
                runs.append(self._read(span, pixels[row : row + length]))
                row += length
            except BadSample as error:
                if self.config.on_bad_sample == "stop":
                    raise
                bad.append((span, error))
        return runs, frames_NHWC[:row], bad

    def _read(self, span: Span, out: np.ndarray) -> FrameRun:
        """Fills `out`, uint8 [S, H, W, 3], with the span's frames."""
        located = self.shards.locate(span[0], skip=_UNREAD)
        raw = next((member for member in located.members if member.suffix == RAW), None)
        if raw is None:
            payloads = self._read_encoded(located, span, out)
        else:
            payloads = self._read_raw(located, span, raw, out)
        return self._run(located, span, payloads, out)

    def read_texts(self, story: int) -> FrameRun:
        """A whole story with black frames of 1 x 1 pixel: texts, tags and times as training has them, no picture read.

        Raises BadSample as `read`.
        """
        located = self.shards.locate(story)
        payloads = self.shards.read_members(located, [m for m in located.members if m.suffix in _ARRAYS])
        frames = np.zeros((located.num_frames, 1, 1, 3), dtype=np.uint8)
        return self._run(located, self.whole(story), payloads, frames)

    def _run(self, located: Located, span: Span, payloads: dict[str, memoryview], frames: np.ndarray) -> FrameRun:
        story, start, stop = span
        story_id = self.index.story_id(story)
        try:
            arrays = decode_arrays(story_id, payloads)
            if len(arrays.lengths) != located.num_frames:
                raise ValueError(f"{len(arrays.lengths)} descriptions, the index says {located.num_frames} frames")
        except ValueError as error:
            raise self.shards.bad(located, str(error)) from error
        if stop - start < located.num_frames:
            arrays = _between(arrays, start, stop)
        return FrameRun(story, story_id, frames, *arrays, first_position=start, score=located.score)

    def _read_encoded(self, located: Located, span: Span, out: np.ndarray) -> dict[str, memoryview]:
        _, start, stop = span
        images = {int(match[1]): m for m in located.members if (match := IMAGE_SUFFIX.fullmatch(m.suffix))}
        if images.keys() != set(range(located.num_frames)):
            raise self.shards.bad(
                located, f"has images {sorted(images)}, the index says {located.num_frames} frames; build it again"
            )
        wanted = [images[number] for number in range(start, stop)]
        arrays = [member for member in located.members if member.suffix in _ARRAYS]
        payloads = self.shards.read_members(located, [*wanted, *arrays])
        decode = decode_scaled if self.config.decode == "scaled" else decode_exact
        try:
            decode([payloads[m.suffix] for m in wanted], out)
        except BadImage as error:
            member = wanted[error.number]
            raise self.shards.bad(
                located, f"member {member.suffix!r} at offset {member.offset} is no usable image: {error}"
            ) from error
        return payloads

    def _read_raw(self, located: Located, span: Span, raw: Member, out: np.ndarray) -> dict[str, memoryview]:
        """All members but the text in one call, the pixels straight into `out`; or, of a story that was checked before,
        only the pixels wanted.
        """
        story, start, stop = span
        frame_bytes = self.size[0] * self.size[1] * 3
        pixel_bytes = located.num_frames * frame_bytes
        begin, end = self.shards.bounds(located, located.members)
        before, after = raw.offset + raw.size - pixel_bytes - begin, raw.offset + raw.size
        if before <= raw.offset - begin or raw.offset < begin or end < after:
            raise self.shards.bad(
                located,
                f"member {RAW!r} at offset {raw.offset} has {raw.size} bytes, too few for "
                f"{located.num_frames} frames of {self.size[0]}x{self.size[1]}",
            )
        scratch = memoryview(bytearray(before + end - after))
        pixels = out.reshape(-1).data
        if stop - start == located.num_frames or not self._is_checked(story):
            whole = pixels if stop - start == located.num_frames else memoryview(bytearray(pixel_bytes))
            self.shards.read_at(located, begin, [scratch[:before], whole, scratch[before:]])
            if self.shards.verify:
                self.shards.check(located, raw, scratch[raw.offset - begin : before], whole)
                self._checked[story // 8] |= 1 << story % 8
            if whole is not pixels:
                pixels[:] = whole[start * frame_bytes : stop * frame_bytes]
        else:
            self.shards.read_at(located, begin, [scratch[:before]])
            self.shards.read_at(located, begin + before + start * frame_bytes, [pixels])
            self.shards.read_at(located, after, [scratch[before:]])
        self._check_header(located, raw, scratch[raw.offset - begin : before])
        return self._slices(located, scratch, begin, raw, pixel_bytes)

    def _is_checked(self, story: int) -> bool:
        return not self.shards.verify or bool(self._checked[story // 8] >> story % 8 & 1)

    def _check_header(self, located: Located, raw: Member, header: memoryview) -> None:
        wanted = ("|u1", (located.num_frames, *self.size, 3), len(header))
        try:
            found = read_header(header)
            if found != wanted:
                raise ValueError(f"holds {found[0]} {found[1]}, needed {wanted[0]} {wanted[1]}")
        except ValueError as error:
            raise self.shards.bad(located, f"member {RAW!r} at offset {raw.offset}: {error}") from error

    def _slices(
        self, located: Located, scratch: memoryview, begin: int, raw: Member, pixel_bytes: int
    ) -> dict[str, memoryview]:
        """The small members in `scratch`, which holds the bytes from `begin` on without the pixels."""
        payloads = {}
        for member in located.members:
            if member is not raw:
                place = member.offset - begin - (pixel_bytes if member.offset > raw.offset else 0)
                payload = payloads[member.suffix] = scratch[place : place + member.size]
                if self.shards.verify:
                    self.shards.check(located, member, payload)
        return payloads


def frame_size(index: ShardIndex, config: DataConfig) -> tuple[int, int]:
    """(H, W) of the frames that a model gets from these shards."""
    if index.info.height is None or index.info.width is None:
        return config.size
    return index.info.height, index.info.width


def _between(arrays: SampleArrays, start: int, stop: int) -> SampleArrays:
    """What belongs to frames start .. stop-1, counted from start, and the story's own tags."""
    ends = np.cumsum(arrays.lengths[:stop])
    frame = arrays.tags[:, 0]
    tags = arrays.tags[(frame < 0) | ((frame >= start) & (frame < stop))]
    tags[:, 0] -= np.where(tags[:, 0] < 0, 0, start)
    return SampleArrays(
        wordpieces=arrays.wordpieces[int(ends[start - 1]) if start else 0 : int(ends[-1])],
        lengths=arrays.lengths[start:stop],
        tags=tags,
        characters=arrays.characters[start:stop],
        times_s=arrays.times_s[start:stop],
    )
