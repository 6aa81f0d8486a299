"""Frames out of a video, with PyAV (https://pyav.org).

The frame of a time is the one that a player shows then: the last whose presentation time is not later. Frames are
turned as the video's rotation asks, and encoded as JPEG of quality 95 without chroma subsampling: much smaller than
PNG, at an error that no training size shows. Same file, same times, same library versions: same bytes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

JPEG_QUALITY = 95
SEEK_GAP_S = 4.0  # nearer frames are reached faster by decoding on than by seeking to a key frame before them
TOLERANCE_S = 1e-3  # times written with three digits name the frame that they were read from


class UnusableVideo(ValueError):  # noqa: N818 - says what is wrong with the video
    """A video cannot give the frames. `reason`: short, without values."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


def evenly_spaced_times(path: Path, num_frames: int) -> tuple[float, ...]:
    """Seconds of the middles of `num_frames` equal parts of the video. Reads the header only. Raises UnusableVideo."""
    with _open(path) as (container, stream):
        if stream.duration is not None and stream.time_base is not None:
            duration_s = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            duration_s = container.duration / av.time_base
        else:
            raise UnusableVideo("video without duration", "the video does not tell how long it is; give timestamps")
    return tuple((number + 0.5) * duration_s / num_frames for number in range(num_frames))


def frames_at(path: Path, times_s: Sequence[float], *, spaced: bool = False) -> list[bytes]:
    """JPEG bytes of the frames shown at `times_s` (seconds from the first frame, increasing).

    Raises UnusableVideo when the file is no video, or a time lies behind its end. `spaced`: the times come from
    `evenly_spaced_times`; one behind the end then means the last frame (headers round up), but no frame serves twice.
    """
    with _open(path) as (container, stream):
        cursor = _Cursor(container, stream)
        frames = [cursor.at(time_s) for time_s in times_s]
        if spaced and len({frame.pts for frame in frames}) < len(frames):
            raise UnusableVideo(
                "video too short", f"the video has fewer than {len(frames)} frames; ask for fewer frames a video"
            )
        if not spaced and times_s[-1] > cursor.end_s + TOLERANCE_S:
            raise UnusableVideo(
                "timestamp behind the end", f"{times_s[-1]:g} s lies behind the video's end at {cursor.end_s:.3f} s"
            )
        return [_encode(frame) for frame in frames]


@contextmanager
def _open(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UnusableVideo("unreadable video", "the file has no video stream")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # worker processes fill the cores already
            yield container, stream
    except av.FFmpegError as error:
        raise UnusableVideo("unreadable video", f"cannot be read as a video ({error.strerror})") from None


class _Cursor:
    """Walks forward through a video; `end_s`: when the last frame that was reached stops being shown."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self.container, self.stream = container, stream
        self.frame_s = float(1 / stream.average_rate) if stream.average_rate else 0.04
        self._restart()
        if self.ahead is None:
            raise UnusableVideo("unreadable video", "the video has no frame that can be decoded")
        self.start_s = self.ahead.time or 0.0

    def _restart(self) -> None:
        self.frames = self._decode()
        self.shown: VideoFrame | None = None
        self.ahead = next(self.frames, None)

    def _decode(self) -> Iterator[VideoFrame]:
        # Frames without a presentation time cannot be asked for by time.
        return (frame for frame in self.container.decode(self.stream) if frame.time is not None)

    def at(self, time_s: float) -> VideoFrame:
        """The frame shown `time_s` after the first; the last one for a time behind the end."""
        wanted_s = self.start_s + time_s + TOLERANCE_S
        if self.ahead is not None and wanted_s - _time(self.ahead) > SEEK_GAP_S:
            self._seek(wanted_s)
        while self.ahead is not None and _time(self.ahead) <= wanted_s:
            self.shown, self.ahead = self.ahead, next(self.frames, None)
        frame = self.shown or self.ahead
        assert frame is not None, "a cursor stands on a frame from its start"
        return frame

    def _seek(self, wanted_s: float) -> None:
        assert self.stream.time_base is not None, "frames with times come from a stream with a time base"
        before, place = self.shown, math.floor(wanted_s / self.stream.time_base)
        self.container.seek(place, stream=self.stream)
        self._restart()
        if self.ahead is None or _time(self.ahead) > wanted_s:
            # A file whose index misleads: decode from the start instead.
            self.container.seek(0, backward=True)
            self._restart()
        self.shown = before if self.ahead is None else None

    @property
    def end_s(self) -> float:
        if self.ahead is not None or self.shown is None:
            return math.inf
        return _time(self.shown) - self.start_s + self.frame_s


def _time(frame: VideoFrame) -> float:
    assert frame.time is not None, "frames without a time were left out"
    return frame.time


def _encode(frame: VideoFrame) -> bytes:
    image = frame.to_image()
    if frame.rotation:
        image = image.rotate(frame.rotation, expand=True)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return out.getvalue()
