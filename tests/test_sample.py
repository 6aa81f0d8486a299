"""A sample's tar members there and back."""

from dataclasses import replace

import numpy as np
import pytest

from storydist.data.sample import TEXT_SUFFIXES, Sample, decode, encode, image_suffix, sample_key

JPEG, PNG = b"\xff\xd8\xff\xe0 jpeg", b"\x89PNG\r\n\x1a\n png"


def sample(**changes) -> Sample:
    made = Sample(
        key=sample_key("train", 7),
        frames=np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3),
        wordpieces=np.array([5, 6, 7], np.int32),
        lengths=np.array([3, 0], np.int32),
        tags=np.array([[-1, 2, 0], [1, 3, 4]], np.int32),
        characters=np.zeros((2, 0), np.uint8),
        times_s=np.array([0.0, np.nan], np.float32),
        meta={"story_id": "schön", "score": None, "frame_count": 2},
        story="<gdi image1>é</gdi>",
        chain_of_thought="## Image 1",
        annotations={"story": {"segments": []}},
    )
    return replace(made, **changes)


def members(of: Sample) -> dict[str, bytes]:
    return dict(encode(of))


@pytest.mark.parametrize("frames", [sample().frames, (JPEG, PNG)])
def test_round_trip(frames):
    before = sample(frames=frames)
    after = decode(before.key, members(before))
    for name in ("wordpieces", "lengths", "tags", "characters", "times_s"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
        assert getattr(after, name).dtype == getattr(before, name).dtype
    assert np.array_equal(after.frames, before.frames) if isinstance(frames, np.ndarray) else after.frames == frames
    for name in ("key", "meta", "story", "chain_of_thought", "annotations", "num_frames", "score"):
        assert getattr(after, name) == getattr(before, name)


def test_member_names():
    assert sample().key == "train-00000007" and "." not in sample().key
    assert next(iter(members(sample()))) == "frames.npy"
    assert list(members(sample(frames=(JPEG, PNG))))[:2] == ["000.jpg", "001.png"]
    assert tuple(members(sample()))[-3:] == TEXT_SUFFIXES


def test_text_members_may_be_left_out():
    few = {suffix: data for suffix, data in encode(sample()) if suffix not in TEXT_SUFFIXES}
    assert decode("k", few).story == "" and decode("k", few).annotations is None


def test_arrays_are_views_of_the_payload():
    payload = bytearray(members(sample())["frames.npy"])
    frames = decode("k", members(sample()) | {"frames.npy": memoryview(payload)}).frames
    payload[-1] = 99
    assert isinstance(frames, np.ndarray) and frames[-1, -1, -1, -1] == 99


@pytest.mark.parametrize(
    ("suffix", "data", "message"),
    [
        ("lengths.npy", None, "lengths.npy: is missing"),
        ("frames.npy", None, "0 frames but 2 descriptions"),
        ("json", b"{", "member json"),
        ("wordpieces.npy", members(sample(wordpieces=np.array([5], np.int32)))["wordpieces.npy"], "needed <i4 3"),
        ("times.npy", members(sample(times_s=np.zeros(3, np.float32)))["times.npy"], "needed <f4 2"),
        ("tags.npy", b"\x80\x04pickle", "not a .npy file"),
        ("frames.npy", members(sample())["frames.npy"][:-1], "bytes"),
    ],
)
def test_damage_names_key_and_member(suffix, data, message):
    damaged = members(sample()) | ({suffix: data} if data is not None else {})
    if data is None:
        del damaged[suffix]
    with pytest.raises(ValueError, match=f"sample train-00000007.*{message}"):
        decode("train-00000007", damaged)


def test_missing_image_is_an_error():
    some = members(sample(frames=(JPEG, PNG)))
    del some["000.jpg"]
    with pytest.raises(ValueError, match="frames are missing"):
        decode("k", some)


def test_nothing_but_jpeg_and_png_is_stored():
    with pytest.raises(ValueError, match="neither JPEG nor PNG"):
        image_suffix(b"GIF89a")


def test_nan_never_reaches_the_json():
    with pytest.raises(ValueError, match="JSON"):
        encode(sample(meta={"score": float("nan")}))
