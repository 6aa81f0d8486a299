"""The header walk beside Python's tarfile, which reads the same tars with other code."""

import os
import random
import tarfile
from pathlib import Path

import pytest
import webdataset

from storydist.data.tar import TarMember, walk_tar
from tests.tars import END, header, member, padded, pax, sealed, write_tar

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
LETTERS = "abcxyzABC019_-+=@ ,é猫"


def by_tarfile(path: Path) -> list[TarMember]:
    with tarfile.open(path, "r:") as tar:
        return [TarMember(entry.name, entry.offset_data, entry.size) for entry in tar if entry.isreg()]


def random_name(generator: random.Random, tar_format: int) -> str:
    """A path of one to four parts; longer than a header holds, except in USTAR."""
    longest = 18 if tar_format == tarfile.USTAR_FORMAT else generator.choice((10, 60, 200))
    lengths = [generator.randint(1, longest) for _ in range(generator.randint(1, 4))]
    return "/".join("".join(generator.choices(LETTERS, k=length)) for length in lengths) + ".jpg"


def random_tar(path: Path, generator: random.Random, tar_format: int) -> Path:
    with tarfile.open(path, "w", format=tar_format) as tar:
        for _ in range(generator.randint(0, 12)):
            entry = tarfile.TarInfo(random_name(generator, tar_format))
            entry.mtime = generator.choice((0, 1_700_000_000.5 if tar_format == tarfile.PAX_FORMAT else 7))
            entry.uname = generator.choice(("", "anna", "ánna" if tar_format == tarfile.PAX_FORMAT else "bob"))
            if generator.random() < 0.2:
                entry.type = tarfile.DIRTYPE
                tar.addfile(entry)
                continue
            entry.size = generator.choice((0, 1, 511, 512, 513, generator.randint(0, 3000)))
            tar.addfile(entry, open("/dev/urandom", "rb", buffering=0))  # noqa: SIM115
    return path


@pytest.mark.parametrize("tar_format", FORMATS.values(), ids=FORMATS)
def test_random_tars_read_as_tarfile_reads_them(tmp_path, tar_format):
    generator = random.Random(tar_format)
    for _ in range(60):
        path = random_tar(tmp_path / "x.tar", generator, tar_format)
        assert list(walk_tar(path)) == by_tarfile(path)


def test_what_webdataset_writes(tmp_path):
    path = tmp_path / "x.tar"
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for number in range(5):
            writer.write({"__key__": f"a/{number:03d}", "jpg": os.urandom(700), "json": b"{}"})
    assert list(walk_tar(path)) == by_tarfile(path)


def test_changed_headers_are_refused_or_read_as_tarfile_reads_them(tmp_path):
    """Headers changed at random, their checksums made right, and what extended headers say: where readers could differ,
    the tar is refused."""
    parts = [
        member("a/0.jpg", b"p" * 700),
        member("././@LongLink", b"n" * 120 + b"\0", b"L"),
        member("n" * 100, b"1"),
        pax({"path": "b" * 150 + ".txt", "size": "5"}),
        member("short", b"abcde"),
        pax({"comment": "hi"}, b"g"),
        member("c.npy", b"12"),
    ]
    places = [sum(map(len, parts[:number])) for number in range(len(parts))]
    path, accepted = tmp_path / "x.tar", 0
    for seed in range(1500):
        data = bytearray(b"".join(parts) + END)
        _change(data, places, random.Random(seed))
        path.write_bytes(data)
        try:
            found = list(walk_tar(path))
        except ValueError as error:
            assert "x.tar: at offset" in str(error)
            continue
        if any(data[place + 257 : place + 263] == b"ustar " and data[place + 345] for place in places):
            continue  # GNU has times there, which tarfile takes for the first half of the name
        accepted += 1
        assert found == by_tarfile(path), seed
    assert accepted > 500


def _change(data: bytearray, places: list[int], generator: random.Random) -> None:
    for place in generator.choices(places, k=generator.randint(1, 2)):
        if generator.random() < 0.3:
            data[place + 512 + generator.randrange(40)] = generator.choice(b"\0\n 019=\xff")
            continue
        # name, size, kind, magic and version, prefix
        start, end = generator.choice(((0, 12), (124, 136), (156, 157), (257, 265), (345, 350)))
        data[place + generator.randrange(start, end)] = generator.choice(b"\0 -./0157ADLMSVXgxy\x80\xff")
        data[place : place + 512] = sealed(data[place : place + 512])


@pytest.mark.parametrize("cut", range(0, 4 * 1024, 100))
def test_no_cut_passes(tmp_path, cut):
    whole = member("a.jpg", b"p" * 700) + member("a.txt", b"q" * 3) + END
    (tmp_path / "x.tar").write_bytes(whole[: min(cut, len(whole) - 1)])
    with pytest.raises(ValueError, match=r"x\.tar: at offset \d+: "):
        list(walk_tar(tmp_path / "x.tar"))


def test_no_flipped_bit_in_a_header_passes(tmp_path):
    """Except where a number's end is written, which says nothing."""
    generator, path = random.Random(1), tmp_path / "x.tar"
    whole = member("a.jpg", b"p" * 700) + member("a.txt", b"q" * 3) + END
    path.write_bytes(whole)
    members = list(walk_tar(path))
    for _ in range(500):
        data = bytearray(whole)
        data[generator.choice((0, 1536)) + generator.randrange(512)] ^= 1 << generator.randrange(8)
        path.write_bytes(data)
        try:
            assert list(walk_tar(path)) == members
        except ValueError as error:
            assert "x.tar: at offset" in str(error)


def test_old_headers_and_other_writers(tmp_path):
    """V7 has no magic and marks folders by a slash; some writers sum signed characters, or end numbers by blanks."""
    spaced = sealed(header("c.txt", b"          3 "))
    path = tmp_path / "x.tar"
    path.write_bytes(
        header("d/", 0, b"\0", magic=b"") + member("d/a.txt", b"1", b"\0", magic=b"")
        + header("é.txt", 2, signed=True) + padded(b"22") + spaced + padded(b"333")
        + member("e.txt", b"4444", b"7") + END + bytes(512)
    )  # fmt: skip
    assert [(found.name, found.size) for found in walk_tar(path)] == [
        ("d/a.txt", 1), ("é.txt", 2), ("c.txt", 3), ("e.txt", 4),
    ]  # fmt: skip
    assert list(walk_tar(path)) == by_tarfile(path)


def test_prefixes_are_ustars_only(tmp_path):
    """GNU's format has times where USTAR has the first half of a name."""
    path = tmp_path / "x.tar"
    path.write_bytes(
        member("a.txt", prefix=b"long") + member("b.txt", prefix=b"00000000000", magic=b"ustar  \0") + END
    )  # fmt: skip
    assert [found.name for found in walk_tar(path)] == ["long/a.txt", "b.txt"]


@pytest.mark.parametrize("tar_format", ["gnu", "pax"])
def test_members_above_8_gib(tmp_path, tar_format):
    """The size is in base 256, or in a pax header; the file is a hole, which takes no space on the disk."""
    path, size = tmp_path / "x.tar", 9 << 30
    entry = tarfile.TarInfo("big.bin")
    entry.size = size
    head = entry.tobuf(tarfile.GNU_FORMAT if tar_format == "gnu" else tarfile.PAX_FORMAT)
    with open(path, "wb") as file:
        file.write(head)
        file.seek(len(head) + size)
        file.write(member("b.txt") + END)
    assert list(walk_tar(path)) == [("big.bin", len(head), size), ("b.txt", len(head) + size + 512, 1)]


def test_an_empty_archive_has_no_members(tmp_path):
    assert list(walk_tar(write_tar(tmp_path / "x.tar", []))) == []
