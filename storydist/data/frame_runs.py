"""Reads stories, or frames in a row of them, as FrameRuns whose pixels lie end to end in one batch's memory."""

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from storydist.data.batch import FrameRun
from storydist.data.decode import BadImage, decode_exact, decode_scaled
from storydist.data.index import ShardIndex
from storydist.data.memory import FrameMemory
from storydist.data.npy import npy_shape
from storydist.data.reader import BadSample, Located, Member, ShardReader
from storydist.data.sample import IMAGE_SUFFIX, TEXT_SUFFIXES, SampleArrays, decode_arrays
from storydist.data.settings import DataConfig

Span = tuple[int, int, int]  # story, first frame, last frame + 1

RAW = "frames.npy"
_ARRAYS = ("wordpieces.npy", "lengths.npy", "tags.npy", "characters.npy", "times.npy")
_MAX_KEPT = 8192  # stories; some 8 KB each
_UNREAD = frozenset((*TEXT_SUFFIXES, "json"))  # training needs none of these


class SampleReader:
    """Reads the samples of a shard set. Threads may share one.

    What windows of a story share (all but its pixels) is kept for the stories read last, so that a further window costs
    its own pixels only. A story is checked whole, by its checksums, whenever it is read anew.
    """

    def __init__(self, index: ShardIndex, config: DataConfig):
        self.index, self.config, self.size = index, config, frame_size(index, config)
        # One block of shards is open, and the next one's beside it at the seam.
        self.shards = ShardReader(index, verify=config.verify, max_open=4 * config.block_shards)
        self.num_frames = index.stories.view(np.ndarray)["num_frames"]
        self.memory = FrameMemory(config.prefetch + config.threads + 2)  # read ahead, being read, with the trainer
        self._recent: OrderedDict[int, _Story] = OrderedDict()
        self._lock = threading.Lock()

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
        number, start, stop = span
        recent = self._recent.get(number)
        if recent is not None:
            self.shards.read_at(recent.located, recent.first_pixel + start * out[0].nbytes, [out.reshape(-1).data])
            return recent.run(span, out)
        located = self.shards.locate(number, skip=_UNREAD)
        raw = next((member for member in located.members if member.suffix == RAW), None)
        if raw is None:
            return self._story(located, self._read_encoded(located, span, out), 0).run(span, out)
        part = stop - start < located.num_frames
        pixels = self.memory.take(located.num_frames, *self.size, 3).numpy() if part else out
        payloads, first_pixel = self._read_raw(located, raw, pixels.reshape(-1).data)
        story = self._story(located, payloads, first_pixel)
        if part:
            out[:] = pixels[start:stop]
            self._keep(story)
        return story.run(span, out)

    def _keep(self, story: "_Story") -> None:
        with self._lock:
            self._recent[story.located.story] = story
            if len(self._recent) > _MAX_KEPT:
                self._recent.popitem(last=False)

    def read_texts(self, story: int) -> FrameRun:
        """A whole story with black frames of 1 x 1 pixel: texts, tags and times as training has them, no picture read.

        Raises BadSample as `read`.
        """
        located = self.shards.locate(story)
        payloads = self.shards.read_members(located, [m for m in located.members if m.suffix in _ARRAYS])
        frames = np.zeros((located.num_frames, 1, 1, 3), dtype=np.uint8)
        return self._story(located, payloads, 0).run(self.whole(story), frames)

    def _story(self, located: Located, payloads: dict[str, memoryview], first_pixel: int) -> "_Story":
        story_id = self.index.story_id(located.story)
        try:
            arrays = decode_arrays(story_id, payloads)
            if len(arrays.lengths) != located.num_frames:
                raise ValueError(f"{len(arrays.lengths)} descriptions, the index says {located.num_frames} frames")
        except ValueError as error:
            raise self.shards.bad(located, str(error)) from error
        return _Story(located, story_id, arrays, first_pixel)

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

    def _read_raw(self, located: Located, raw: Member, pixels: memoryview) -> tuple[dict[str, memoryview], int]:
        """All members but the text in one call, the story's pixels straight into `pixels`; and where these begin."""
        begin, end = self.shards.bounds(located, located.members)
        before, after = raw.offset + raw.size - len(pixels) - begin, raw.offset + raw.size
        if before <= raw.offset - begin or raw.offset < begin or end < after:
            raise self.shards.bad(
                located,
                f"member {RAW!r} at offset {raw.offset} has {raw.size} bytes, too few for "
                f"{located.num_frames} frames of {self.size[0]}x{self.size[1]}",
            )
        scratch = memoryview(bytearray(before + end - after))
        self.shards.read_at(located, begin, [scratch[:before], pixels, scratch[before:]])
        header = scratch[raw.offset - begin : before]
        if self.shards.verify:
            self.shards.check(located, raw, header, pixels)
        self._check_header(located, raw, header)
        return self._slices(located, scratch, begin, raw, len(pixels)), begin + before

    def _check_header(self, located: Located, raw: Member, header: memoryview) -> None:
        try:
            _, start = npy_shape(header, raw.size, "|u1", (located.num_frames, *self.size, 3))
            if start != len(header):
                raise ValueError(f"its values begin at {start}, needed {len(header)}")
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


class _Story:
    """A story without its pixels, from which runs of its frames are cut."""

    def __init__(self, located: Located, story_id: str, arrays: SampleArrays, first_pixel: int):
        self.located, self.story_id, self.arrays, self.first_pixel = located, story_id, arrays, first_pixel
        self._cuts: tuple[list[int], np.ndarray, np.ndarray] | None = None

    def run(self, span: Span, frames: np.ndarray) -> FrameRun:
        """The run of a span, with these frames."""
        number, start, stop = span
        arrays = self.arrays if stop - start == self.located.num_frames else self._between(start, stop)
        return FrameRun(number, self.story_id, frames, *arrays, first_position=start, score=self.located.score)

    def _between(self, start: int, stop: int) -> SampleArrays:
        """What belongs to frames start .. stop-1, counted from start, and the story's own tags."""
        wordpieces, lengths, tags, characters, times_s = self.arrays
        if self._cuts is None:  # where each text ends, and the tags by frame, the story's own before all
            by_frame = tags[np.argsort(tags[:, 0], kind="stable")]
            self._cuts = [0, *np.cumsum(lengths).tolist()], by_frame, by_frame[:, 0].copy()
        ends, by_frame, frame_G = self._cuts
        own, first, last = frame_G.searchsorted((0, start, stop)).tolist()
        chosen = np.concatenate((by_frame[:own], by_frame[first:last]))
        chosen[own:, 0] -= start
        return SampleArrays(
            wordpieces=wordpieces[ends[start] : ends[stop]],
            lengths=lengths[start:stop],
            tags=chosen,
            characters=characters[start:stop],
            times_s=times_s[start:stop],
        )
