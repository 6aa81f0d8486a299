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
