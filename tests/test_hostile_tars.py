"""Tars that are damaged, or made to do harm: each is refused by name and place, or read without doing any."""

import io
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards import index
from storydist.data.npy import to_npy
from storydist.data.tar import MAX_EXTENSION_BYTES, walk_tar
from tests.story_tables import call, verify_set
from tests.tars import END, header, member, pax, read_tar, write_tar

GOOD = member("a.jpg", b"p" * 600)


def refused(tmp_path: Path, data: bytes) -> str:
    """The message with which a tar is refused, by the walk and by the command alike."""
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.tar: at offset \d+: ") as caught:
        list(walk_tar(path))
    done = call(index.main, [tmp_path])
    assert done.returncode == 2 and str(caught.value) in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "index.json").exists()
    return str(caught.value)


KINDS = {
    b"1": "hard link",
    b"2": "symbolic link",
    b"3": "character device",
    b"4": "block device",
    b"6": "fifo",
    b"S": "sparse",
    b"V": "unknown kind",
    b"D": "unknown kind",
    b"M": "unknown kind",
    b"X": "unknown kind",
}


@pytest.mark.parametrize("kind", KINDS, ids=KINDS.values())
def test_kinds_of_members(tmp_path, kind):
    found = refused(tmp_path, GOOD + header("evil.jpg", 0, kind) + END)
    assert f"offset {len(GOOD)}: member 'evil.jpg' is" in found and KINDS[kind] in found


NAMES = {
    "/etc/passwd": "is absolute",
    "../a.jpg": 'has a part ".."',
    "a/../../b.jpg": 'has a part ".."',
    "..": 'has a part ".."',
    "a\\..\\b.jpg": "has a backslash",
    "a\nb.jpg": "has a control character",
    "a\x1b[2Jb.jpg": "has a control character",
    "a\x85b.jpg": "has a control character",
    "": "without a name",
}


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_names(tmp_path, name):
    assert NAMES[name] in refused(tmp_path, GOOD + member(name) + END)


@pytest.mark.parametrize("name", ["/etc/x.jpg", "../x.jpg", "a/../b.jpg", "a\0b.jpg", "a\\b.jpg", "a\tb.jpg", ""])
def test_names_in_extended_headers(tmp_path, name):
    """The long name is what counts, however harmless the short one looks."""
    for long_name in (pax({"path": name}), member("././@LongLink", name.encode() + b"\0", b"L")):
        assert "b.jpg'" not in refused(tmp_path, GOOD + long_name + member("b.jpg") + END).replace(repr(name), "")


def test_names_that_are_no_text_or_a_folders(tmp_path):
    assert "is not UTF-8" in refused(tmp_path, GOOD + member(b"\xff\xfe.jpg") + END)
    assert "the name of a folder" in refused(tmp_path, GOOD + member("folder/") + END)
    assert "has a payload" in refused(tmp_path, GOOD + member("folder", kind=b"5") + END)
    assert "absolute" in refused(tmp_path, GOOD + header("/folder", 0, b"5") + END)


def test_two_names_for_one_member(tmp_path):
    """Readers differ in which of them they take."""
    long_name = member("././@LongLink", b"c.jpg\0", b"L")
    for first, second in ((long_name, long_name), (long_name, pax({"path": "d.jpg"})), (pax({"path": "d.jpg"}),) * 2):
        assert "two names" in refused(tmp_path, first + second + member("b.jpg") + END)
    for record in ({"path": "all.jpg"}, {"size": "1"}):
        assert "gives all members" in refused(tmp_path, pax(record, b"g") + member("b.jpg") + END)


RECORDS = (
    b"x", b"12 path=a.jpg\n", b"15 path=a.jpg\n", b"14 path=a.jpgX", b"14 path:a.jpg\n", b"0 path=a\n", b"-1 path=a\n",
    b"99999999999999999999 path=a\n", b"14 path=a.jpg\n\0", b"9 size=x\n", b"10 size=-1\n", b"8 size=\n",
    b"30 size=" + b"1" * 21 + b"\n", b"9 size=1\n9 size=1\n",
)  # fmt: skip


@pytest.mark.parametrize("records", RECORDS)
def test_pax_records_that_do_not_parse(tmp_path, records):
    found = refused(tmp_path, GOOD + pax(records) + member("b.jpg") + END)
    assert f"offset {len(GOOD)}: " in found and ("does not parse" in found or "gives the size" in found)


def test_sparse_members_of_pax(tmp_path):
    records = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.jpg", "GNU.sparse.realsize": "9"}
    assert "is a sparse file" in refused(tmp_path, GOOD + pax(records) + member("b.jpg") + END)


HUGE = {
    "octal": header("b.jpg", 8**11 - 1),
    "base 256": header("b.jpg", b"\x80" + b"\xff" * 11),
    "ten gigabytes in pax": pax({"size": str(10**10)}) + member("b.jpg"),
    "a long name": header("././@LongLink", 10**9, b"L"),
    "a pax header": header("PaxHeader", 10**9, b"x"),
}


@pytest.mark.parametrize("case", HUGE)
def test_sizes_beyond_the_file_allocate_nothing(tmp_path, case):
    (tmp_path / "x.tar").write_bytes(GOOD + HUGE[case] + END)
    tracemalloc.start()
    with pytest.raises(ValueError, match="would end at"):
        list(walk_tar(tmp_path / "x.tar"))
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    refused(tmp_path, GOOD + HUGE[case] + END)


def test_extended_headers_are_bounded(tmp_path):
    """They may be as long as the file, which may be a hole."""
    path = tmp_path / "x.tar"
    with open(path, "wb") as file:
        file.write(header("././@LongLink", 10**9, b"L"))
        file.truncate(10**9 + 4096)
    with pytest.raises(ValueError, match=f"at most {MAX_EXTENSION_BYTES} are read"):
        list(walk_tar(path))
    assert "name of 5000 bytes" in refused(tmp_path, member("x", b"n" * 5000 + b"\0", b"L") + GOOD + END)


NO_SIZES = (
    b"\xff" * 12,
    b"\x81" + bytes(11),
    b"0000000008\0",
    b"1_000\0",
    b"-0000001\0",
    b"+1\0",
    b"0x10\0",
    b"\0001\0",
)


@pytest.mark.parametrize("size", NO_SIZES)
def test_sizes_that_are_no_numbers(tmp_path, size):
    assert "needed an octal number" in refused(tmp_path, GOOD + header("b.jpg", size) + END)


DAMAGED = {
    "nothing": (b"", "is empty"),
    "half a header": (GOOD + header("b.jpg", 0)[:300], "300 bytes before the file's end"),
    "payload cut": (GOOD + member("b.jpg", b"p" * 2000)[:1024], "'b.jpg' has 2000 bytes and would end at"),
    "no end": (GOOD, "needed two blocks of zeros"),
    "half an end": (GOOD + bytes(512), "one block of zeros, needed two"),
    "garbage behind": (GOOD + END + bytes(99) + b"evil", "there is b'evil'"),
    "another tar behind": (GOOD + END + GOOD + END, "another one was appended"),
    "checksum": (GOOD + b"B" + member("b.jpg")[1:] + END, "its bytes add up to"),
    "no header": (GOOD + b"\1" * 512 + END, "checksum is b'\\x01"),
    "no member for an extended header": (GOOD + pax({"path": "b.jpg"}) + END, "ends between an extended header and"),
    "no tar": (b"<html>404 Not Found</html>" * 40, "this is no tar: it begins with b'<html>404"),
    "a short file": (b"404", "3 bytes before the file's end"),
    "gzip": (b"\x1f\x8b\x08" + bytes(range(255)) * 4, "compressed, so nothing can be read by offset; unpack it first"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(range(255)) * 4, "zstd -d"),
    "another format": (GOOD + header("b.jpg", magic=b"uzter\x0000") + END, "neither USTAR nor GNU"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_damage(tmp_path, case):
    data, expected = DAMAGED[case]
    assert expected in refused(tmp_path, data)


class Harm:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_nothing_in_a_tar_is_run_or_unpickled(tmp_path):
    marker = tmp_path / "marker"
    harm = pickle.dumps(Harm(marker))
    objects = io.BytesIO()
    np.save(objects, np.array([Harm(marker)]), allow_pickle=True)
    names = ("pyd", "pickle", "pkl", "pth", "pt", "jpg", "json", "cls")
    members = [*((f"a.{name}", harm) for name in names), ("a.npy", objects.getvalue()), ("a.$(touch marker)", b"")]
    write_tar(tmp_path / "set" / "touch marker" / "x.tar", members)
    write_tar(tmp_path / "set" / "touch marker;.tar", members)
    write_tar(tmp_path / "set" / "$(touch marker).tar", members)
    write_tar(tmp_path / "piped" / "pipe:touch marker" / "x.tar", members)
    command = [sys.executable, "-m", "shards.index", str(tmp_path / "set")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == 0, done.stderr
    assert verify_set(tmp_path / "set").returncode == 0
    refused = call(index.main, [str(tmp_path / "piped")])
    assert refused.returncode == 2 and "has a colon or backslash, which no shard may" in refused.stderr
    assert call(index.main, [f"pipe:touch {marker}"]).returncode == 2
    assert not marker.exists() and not list(tmp_path.rglob("marker")) and not Path("marker").exists()
    pickle.loads(harm)
    assert marker.exists(), "the payload does nothing, so this test shows nothing"


def bomb() -> bytes:
    """A PNG of 2.5 gigapixels in a hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def test_images_of_plain_samples_are_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("an image was opened"))
    write_tar(tmp_path / "x.tar", [("a.png", bomb()), ("a.jpg", b"no image")])
    done = call(index.main, [tmp_path])
    assert done.returncode == 0 and "1 samples         2 images" in done.stdout, done.stderr
    assert verify_set(tmp_path).returncode == 0


def hostile_story(tmp_path: Path, source, **members: bytes) -> str:
    """What indexing says of a story some of whose members (a suffix's dots as underscores) were replaced."""
    entries = read_tar(source.root / "test-000000.tar")[:10]
    changed = [(name, members.get(name.partition(".")[2].replace(".", "_"), data)) for name, data in entries]
    write_tar(tmp_path / "x.tar", changed)
    done = call(index.main, [tmp_path, "--tokenizer", source.root / "tokenizer"])
    assert done.returncode == 2 and "Traceback" not in done.stderr and not (tmp_path / "index.json").exists()
    assert "x.tar: at offset 512: sample test-00000000" in done.stderr, done.stderr
    return done.stderr


OBJECTS = b"{'descr': '|O', 'fortran_order': False, 'shape': (1, 3), }\n"
FRAMES = to_npy(np.zeros((4, 1, 1, 3), np.uint8)).replace(b"(4, 1, 1, 3), }         ", b"(4, 9999, 9999999, 3), }")
STORIES = {
    "json is a bomb": ({"json": b"[" * 100_000}, "member json: "),
    "json is no object": ({"json": b"[]"}, "needed an object"),
    "json is no text": ({"json": b"\xff"}, "member json: "),
    "no id": ({"json": b"{}"}, "gives the story_id 'None'"),
    "a lone surrogate": ({"json": b'{"story_id": "\\ud800"}'}, "surrogates not allowed"),
    "score is a text": ({"json": b'{"story_id": "a", "score": "9"}'}, "needed a number or null"),
    "score is infinite": ({"json": b'{"story_id": "a", "score": 1e999}'}, "needed a number or null"),
    "score has 400 digits": ({"json": b'{"story_id": "a", "score": 1' + b"0" * 400 + b"}"}, "needed a number or null"),
    "frames without pixels": ({"frames_npy": to_npy(np.zeros((4, 0, 9, 3), np.uint8))}, "at least a pixel"),
    "split is a number": ({"json": b'{"story_id": "a", "split": 3}'}, "needed a name"),
    "a tag id of two billion": ({"tags_npy": to_npy(np.array([[0, 2**31 - 1, 1]], np.int32))}, "column tag"),
    "a negative frame": ({"tags_npy": to_npy(np.array([[-2, 2, 1]], np.int32))}, "column frame"),
    "a kind there is not": ({"tags_npy": to_npy(np.array([[0, 2, 99]], np.int32))}, "column kind"),
    "objects": ({"tags_npy": b"\x93NUMPY\x01\x00\x3b\x00" + OBJECTS}, "npy header"),
    "frames of a terabyte": ({"frames_npy": FRAMES}, "member frames.npy: holds 12 bytes, which is not"),
}


@pytest.mark.parametrize("case", STORIES)
def test_hostile_stories(tmp_path, tiny_index, case):
    members, expected = STORIES[case]
    assert expected in hostile_story(tmp_path, tiny_index, **members)


def test_wordpieces_outside_the_vocabulary(tmp_path, tiny_index):
    data = dict(read_tar(tiny_index.root / "test-000000.tar"))["test-00000000.wordpieces.npy"]
    for wordpiece in (-1, 10**9):
        changed = data[:-4] + wordpiece.to_bytes(4, "little", signed=True)
        assert "the tokenizer has" in hostile_story(tmp_path, tiny_index, wordpieces_npy=changed)


def test_an_image_of_a_story_that_is_a_bomb(tmp_path, tiny_index):
    """Its size is asked for, and refused; it is not decoded."""
    entries = read_tar(tiny_index.root / "test-000000.tar")[1:10]
    images = [(f"test-00000000.{number:03d}.png", bomb()) for number in range(4)]
    write_tar(tmp_path / "x.tar", [*images, *entries])
    done = call(index.main, [tmp_path, "--tokenizer", tiny_index.root / "tokenizer"])
    assert done.returncode == 2 and "member 000.png: Image size (2500000000 pixels)" in done.stderr, done.stderr
