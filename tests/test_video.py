"""Frames out of a video: the frame on screen at a time, near and far, and what a video cannot give."""

import io
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from shards.video import UnusableVideo, evenly_spaced_times, frames_at

RATE, NUM_FRAMES = 10, 150


def write_video(path: Path, num_frames: int = NUM_FRAMES) -> Path:
    """Frame n shows n in base 13, a digit in each half, as steps of 18 grey levels; a key frame every 5 s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE, options={"g": "50"})
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        stream.codec_context.qmin = stream.codec_context.qmax = 1
        for number in range(num_frames):
            grey = np.full((16, 32, 3), number // 13 * 18, np.uint8)
            grey[:, 16:] = number % 13 * 18
            for packet in stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "grey.mp4")


def numbers(images: list[bytes]) -> list[int]:
    pixels = [np.asarray(Image.open(io.BytesIO(image)).convert("L")) for image in images]
    return [13 * round(grey[:, :12].mean() / 18) + round(grey[:, 20:].mean() / 18) for grey in pixels]


def test_the_frame_on_screen_is_taken_at_any_distance(video):
    times = [0.0, 0.3, 0.39, 0.4, 5.0, 5.1, 14.05, 14.9]
    assert numbers(frames_at(video, times)) == [0, 3, 3, 4, 50, 51, 140, 149]
    for time in times:
        # A seek gives the very frame that decoding on gives.
        assert frames_at(video, [time]) == [frames_at(video, times)[times.index(time)]]


def test_the_same_call_gives_the_same_jpeg(video):
    first = frames_at(video, [1.0, 7.0])
    assert first == frames_at(video, [1.0, 7.0])
    image = Image.open(io.BytesIO(first[0]))
    assert (image.format, image.size) == ("JPEG", (32, 16))


def test_evenly_spaced_times_are_the_middles_of_equal_parts(video):
    times = evenly_spaced_times(video, 5)
    assert times == pytest.approx([1.5, 4.5, 7.5, 10.5, 13.5], abs=0.02)
    assert numbers(frames_at(video, times, spaced=True)) == [15, 45, 75, 105, 135]


def test_a_time_behind_the_end_is_refused(video):
    with pytest.raises(UnusableVideo, match=r"15\.2 s lies behind the video's end at 15\.000 s"):
        frames_at(video, [0.0, 15.2])


def test_a_video_with_fewer_frames_than_asked_is_refused(tmp_path):
    short = write_video(tmp_path / "short.mp4", num_frames=3)
    times = evenly_spaced_times(short, 8)
    with pytest.raises(UnusableVideo, match="fewer than 8 frames") as caught:
        frames_at(short, times, spaced=True)
    assert caught.value.reason == "video too short"
    assert len(frames_at(short, evenly_spaced_times(short, 3), spaced=True)) == 3


def test_a_file_that_is_no_video_is_refused(tmp_path, video):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(video.read_bytes()[:600])
    for path in (broken, cut):
        with pytest.raises(UnusableVideo) as caught:
            frames_at(path, [0.0])
        assert caught.value.reason == "unreadable video"
