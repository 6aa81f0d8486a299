"""Where a set may lie, and which names an index may give."""

from pathlib import Path

import pytest

from storydist.data.location import absolute, check_file, is_remote, join, local_folder, protocol_of, shown

SHA = "a" * 64


@pytest.mark.parametrize(
    ("location", "remote"),
    [
        ("https://h/x", True),
        ("s3://b/k", True),
        ("/data/x", False),
        ("x", False),
        ("file:///x", False),
        (Path("x"), False),
    ],
)
def test_addresses_and_folders(location, remote):
    assert is_remote(location) == remote


def test_a_file_address_is_a_folder():
    assert local_folder("file:///data/my%20set") == Path("/data/my set")
    for location in ("file://host/data", "file://data", "file:///a::zip:///b"):
        with pytest.raises(ValueError, match="three slashes and no host"):
            local_folder(location)


def test_absolute_leaves_addresses_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("set") == str(tmp_path / "set") and absolute("s3://b/../k") == "s3://b/../k"
    assert absolute("file:///data/x") == "/data/x"


@pytest.mark.parametrize(
    "address",
    [
        "simplecache::https://h/x", "s3://b/a.zip::zip://x", "pipe://cat", "reference://x", "filecache://x", "dask://x",
        "git://x", "zip://x", "HTTP://h/x", "memory://x", "data://x", "://x", "s3://", "https:///",
    ],
)  # fmt: skip
def test_addresses_that_are_refused(address):
    with pytest.raises(ValueError, match=r"chained|not read from|names no host"):
        protocol_of(address)


def test_names_are_joined_and_quoted_for_http_only():
    assert join("https://h:1/a b/?key=s%2Fx", "t/x#1 %.tar") == "https://h:1/a b/t/x%231%20%25.tar?key=s%2Fx"
    assert join("s3://b/k/", "t/x#1.tar") == "s3://b/k/t/x#1.tar"


def test_messages_show_no_secrets():
    assert shown("https://me:pass@h/x?sig=abc") == "https://h/x"


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd", "../x", "a/../x", "a//x", "", ".", ".x", "a/.x", "https://h/x", "pipe:cat", "a\\b", "C:x",
        "a\nb", "a\0b", "a/",
    ],
)  # fmt: skip
def test_hostile_names(name):
    with pytest.raises(ValueError, match=r"^there/index\.json: names a file .*do not trust"):
        check_file("there/index.json", name, SHA)


def test_hostile_hashes_and_sizes():
    for sha256, size in (("../../x", 1), ("A" * 64, 1), (SHA[1:], 1), (SHA + "\n", 1), (SHA, -1)):
        with pytest.raises(ValueError, match="build the shards again"):
            check_file("index.json", "x.tar", sha256, size)
    check_file("index.json", "part-0/…x y.tar", SHA, 0)
