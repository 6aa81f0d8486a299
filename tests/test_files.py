"""Whole or absent."""

import hashlib
import os

import pytest

from storydist.data.files import sha256_file, write_atomic


def test_written_and_replaced(tmp_path):
    write_atomic(tmp_path / "f", b"one")
    write_atomic(str(tmp_path / "f"), memoryview(b"two"))
    assert (tmp_path / "f").read_bytes() == b"two" and len(list(tmp_path.iterdir())) == 1


def test_failure_keeps_the_former_content(tmp_path, monkeypatch):
    write_atomic(tmp_path / "f", b"one")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(tmp_path / "f", b"two")
    assert (tmp_path / "f").read_bytes() == b"one" and len(list(tmp_path.iterdir())) == 1


def test_sha256(tmp_path):
    data = bytes(range(256)) * 9000
    (tmp_path / "f").write_bytes(data)
    assert sha256_file(tmp_path / "f") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("name", ["missing/f", "folder"])
def test_errors_name_the_file_that_was_asked_for(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as caught:
        write_atomic(tmp_path / name, b"x")
    assert caught.value.filename == str(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
