"""Downloads from a real nginx that is slow, crowded or without ranges, over a line that drops."""

import hashlib
import random
import socket
import sys
from pathlib import Path

import pytest

from storydist.data import download
from storydist.data.download import Source
from tests.servers import FailingLine, output, start_python

CONTENT = random.Random(1).randbytes(1_000_003)
SHA = hashlib.sha256(CONTENT).hexdigest()

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def served(files):
    (files / "x.tar").write_bytes(CONTENT)
    return files


def fetch(url: str, path: Path, content: bytes = CONTENT) -> Source:
    source = Source(url)
    source.download("x.tar", path, len(content), hashlib.sha256(content).hexdigest())
    assert path.read_bytes() == content
    return source


def test_each_range_once(served, nginx, tmp_path):
    source = fetch(nginx.url, tmp_path / "x")
    asked = nginx.downloads("x.tar")
    assert [r.byte_range for r in asked] == [(n, min(n + 65535, 1_000_002)) for n in range(0, 1_000_003, 65536)]
    assert sum(r.num_bytes for r in asked) == len(CONTENT) == source.bytes_fetched


@pytest.mark.parametrize("allowed", [0, 100, 40_000, 300_000])
def test_dropped_connections(served, nginx, tmp_path, allowed):
    """The first five connections are cut, at their beginning, in the headers, in a range, after several ranges."""
    line = FailingLine(nginx.port, lambda n: allowed if n < 5 else None)
    fetch(line.url, tmp_path / "x")
    assert line.num_connections == (4 if allowed == 300_000 else 6)
    line.stop()


def test_a_line_that_always_drops_within_a_range_still_gets_on(served, nginx, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "RANGE_BYTES", 1 << 20)
    line = FailingLine(nginx.port, lambda n: 200_000)
    fetch(line.url, tmp_path / "x")
    line.stop()


def test_the_last_try_tells_what_was_seen_and_how_often(served, nginx, tmp_path):
    line = FailingLine(nginx.port, lambda n: 20)
    with pytest.raises(OSError, match=rf"^{line.url}/x\.tar: \w+: .+; given up after 8 tries$"):
        fetch(line.url, tmp_path / "x")
    assert 8 <= line.num_connections <= 16, "aiohttp asks once more by itself"
    line.stop()


def test_a_silent_server_times_out(served, nginx, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SILENCE_S", 0.1)
    line = FailingLine(nginx.port, lambda n: -1 if n < 2 else None)
    fetch(line.url, tmp_path / "x")
    assert line.num_connections == 3
    line.stop()


def test_a_crowded_server_is_asked_again(served, nginx, tmp_path):
    """nginx lets 20 requests a second through and answers 503 to the others."""
    fetch(f"{nginx.url}/crowded", tmp_path / "x")
    statuses = [r.status for r in nginx.downloads("x.tar")]
    assert statuses.count(206) == 16 and statuses.count(503) > 0 and len(statuses) == 16 + statuses.count(503)


def test_a_server_that_stays_away(served, nginx, tmp_path):
    with pytest.raises(OSError, match=r"/away/x\.tar: HTTP status 503; given up after 8 tries"):
        fetch(f"{nginx.url}/away", tmp_path / "x")
    assert len(nginx.downloads("x.tar")) == 8


@pytest.mark.parametrize(
    ("place", "error", "words"),
    [
        ("nowhere", FileNotFoundError, r"/nowhere/x\.tar: there is no such file$"),
        ("secret", PermissionError, r"/secret/x\.tar: access is refused \(HTTP status 403\)"),
    ],
)
def test_what_will_not_pass_is_not_tried_again(served, nginx, tmp_path, place, error, words):
    source = Source(f"{nginx.url}/{place}")
    with pytest.raises(error, match=words):
        source.download("x.tar", tmp_path / "x", len(CONTENT), SHA)
    assert len(nginx.requests()) == 1
    for call in (source.read, source.size):
        with pytest.raises(error, match=words):
            call("x.tar")
    assert len(nginx.requests()) == 4, "a size is asked for by HEAD, then by GET"


def test_a_size_is_tried_again_too(served, nginx):
    with pytest.raises(OSError, match="HTTP status 503; given up after 8 tries"):
        Source(f"{nginx.url}/away").size("x.tar")
    line = FailingLine(nginx.port, lambda n: 0 if n < 4 else None)
    assert Source(line.url).size("x.tar") == len(CONTENT)
    line.stop()


def test_a_server_without_ranges(served, nginx, tmp_path, monkeypatch):
    fetch(f"{nginx.url}/noranges", tmp_path / "x")
    asked = nginx.downloads("x.tar")
    assert [r.status for r in asked] == [200, 200, 200], "a range, the next range, then all in one stream"
    assert asked[-1].byte_range is None and asked[-1].num_bytes == len(CONTENT)
    (tmp_path / "x").write_bytes(CONTENT[:500_000])
    line = FailingLine(nginx.port, lambda n: 700_000 if n in (1, 2) else None)
    fetch(f"{line.url}/noranges", tmp_path / "x")
    assert line.num_connections == 4
    line.plan = lambda n: 700_000
    with pytest.raises(OSError, match=r"x\.tar: .+; given up after 8 tries"):
        fetch(f"{line.url}/noranges", tmp_path / "y")
    line.stop()


@pytest.mark.parametrize("there", [0, 1, 65_536, 500_000, 1_000_003])
def test_a_beginning_is_gone_on_from(served, nginx, tmp_path, there):
    (tmp_path / "x").write_bytes(CONTENT[:there])
    fetch(nginx.url, tmp_path / "x")
    assert sum(r.num_bytes for r in nginx.downloads()) == len(CONTENT) - there


@pytest.mark.parametrize("beginning", [b"of other content", CONTENT + b"."])
def test_a_wrong_beginning_costs_one_more_download(served, nginx, tmp_path, beginning):
    (tmp_path / "x").write_bytes(beginning)
    fetch(nginx.url, tmp_path / "x")


def test_a_flipped_byte_is_told_after_one_download(served, nginx, tmp_path):
    bad = bytearray(CONTENT)
    bad[700_000] ^= 1
    (served / "x.tar").write_bytes(bad)
    found = hashlib.sha256(bad).hexdigest()
    with pytest.raises(ValueError, match=rf"^{nginx.url}/x\.tar: has SHA-256 {found}, the index says {SHA}; .* upload"):
        fetch(nginx.url, tmp_path / "x")
    assert not (tmp_path / "x").exists() and sum(r.num_bytes for r in nginx.downloads()) == len(CONTENT)


def test_a_file_that_is_cut_short_there(served, nginx, tmp_path):
    (served / "x.tar").write_bytes(CONTENT[:-10])
    with pytest.raises(OSError, match=r"x\.tar: .* bytes came of \d+ at offset 9\d+; given up after 8 tries"):
        fetch(nginx.url, tmp_path / "x")


def test_a_disk_that_takes_no_more_is_no_failure_of_the_network(served, nginx, tmp_path):
    code = """if True:
        import resource, sys
        from pathlib import Path
        from storydist.data.download import Source
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
        try:
            Source(sys.argv[1]).download("x.tar", Path(sys.argv[2]), int(sys.argv[3]), "0" * 64)
        except OSError as error:
            print(error.filename, error.strerror)
        """
    process = start_python(code, nginx.url, tmp_path / "x", len(CONTENT))
    assert output(process) == f"{tmp_path / 'x'} File too large\n" and len(nginx.downloads()) == 1


def test_names_that_mean_something_in_an_address(files, nginx, tmp_path):
    name = "part 1/50%25 #1?x=[a].tar"
    (files / "part 1").mkdir()
    (files / name).write_bytes(CONTENT)
    source = Source(f"{nginx.url}/?key=secret")
    source.download(name, tmp_path / "x", len(CONTENT), SHA)
    assert source.size(name) == len(CONTENT)
    assert "?key=secret" in nginx.requests()[0].path and "secret" not in source.where(name)


def test_an_unknown_host_and_a_closed_port(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(OSError, match=rf"^http://127\.0\.0\.1:{port}/x\.tar: .*; given up after 8 tries"):
        Source(f"http://127.0.0.1:{port}").read("x.tar")


@pytest.mark.parametrize(("address", "missing", "extra"), [("https://h/x", "aiohttp", "http")])
def test_a_missing_driver_names_the_extra(monkeypatch, address, missing, extra):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match=rf"^{address}/index\.json: .* not installed .*pip install '\.\[{extra}\]'"):
        Source(address).read("index.json")


def test_pauses_leave_the_run_s_randomness_alone(served, nginx, tmp_path):
    line = FailingLine(nginx.port, lambda n: 0 if n < 3 else None)
    before = random.getstate()
    fetch(line.url, tmp_path / "x")
    assert random.getstate() == before
    line.stop()
