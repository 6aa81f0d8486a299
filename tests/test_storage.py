"""Shard sets over http: opened, cached, shared by processes, killed, damaged, changed."""

import hashlib
import pickle
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from storydist.data.index import TABLES, ShardIndex
from storydist.data.storage import CacheConfig, RemoteStorage
from storydist.data.text import Wordpieces
from tests.servers import output, start_python, wait_until
from tests.test_index import write
from tests.tiny_shards import write_shards

OPEN_AND_FETCH = """if True:
    import sys
    from storydist.data.files import sha256_file
    from storydist.data.index import ShardIndex
    from storydist.data.storage import CacheConfig
    index = ShardIndex.open(sys.argv[1], CacheConfig(dir=sys.argv[2]))
    print(*[sha256_file(index.fetch_shard(shard)) for shard in range(len(index.info.shards))])
    """
FETCH = """if True:
    import sys
    from pathlib import Path
    from storydist.data import download
    from storydist.data.storage import CacheConfig, RemoteStorage
    download.RANGE_BYTES = 1 << 16
    storage = RemoteStorage(sys.argv[1], CacheConfig(dir=sys.argv[2]))
    print(storage.fetch("x.tar", int(sys.argv[3]), sys.argv[4]), flush=True)
    """
CONTENT = np.random.default_rng(1).bytes(1_000_003)
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def served(files, nginx) -> str:
    """The address of a set."""
    write_shards(files / "set")
    return f"{nginx.url}/set"


@pytest.fixture
def cache(tmp_path) -> CacheConfig:
    return CacheConfig(dir=str(tmp_path / "cache"))


def put(folder: Path, content: bytes, name: str = "x.tar") -> tuple[str, int, str]:
    """Writes a file to be served. Returns what an index says of it."""
    (folder / name).write_bytes(content)
    return name, len(content), hashlib.sha256(content).hexdigest()


def test_a_set_at_an_address_is_the_set(served, nginx, files, cache):
    here, there = ShardIndex.open(files / "set"), ShardIndex.open(served, cache)
    assert there.info == here.info and str(there) == served
    assert all((there.root / name).read_bytes() == (here.root / name).read_bytes() for name in (*TABLES, "index.json"))
    assert Wordpieces.load(there.root / "tokenizer").vocabulary_size == there.info.vocabulary_size
    assert not nginx.downloads(".tar")
    for shard, info in enumerate(here.info.shards):
        assert there.fetch_shard(shard).read_bytes() == here.fetch_shard(shard).read_bytes()
        assert there.storage.where(info.name) == f"{served}/{info.name}"
    brought = sum(path.stat().st_size for path in here.root.rglob("*") if path.is_file())
    assert there.storage.bytes_fetched == brought and here.storage.bytes_fetched == 0


def test_opening_again_asks_for_the_index_only(served, nginx, cache):
    first = ShardIndex.open(served, cache)
    before = len(nginx.requests())
    sent = pickle.dumps(first)
    second = pickle.loads(sent)
    assert len(sent) < 1000 and second.info == first.info and (second.location, second.cache) == (served, cache)
    assert [r.path for r in nginx.requests()[before:]] == ["/set/index.json"]


def test_many_processes_share_one_download(served, nginx, files, cache):
    served = served.replace("/set", "/slow/set")
    ranks = [start_python(OPEN_AND_FETCH, served, cache.dir) for _ in range(4)]
    printed = {output(rank) for rank in ranks}
    assert printed == {" ".join(s.sha256 for s in ShardIndex.open(files / "set").info.shards) + "\n"}
    asked = Counter((r.path, r.byte_range) for r in nginx.downloads())
    assert asked.pop(("/slow/set/index.json", None)) == 4, "each looks at the index"
    assert set(asked.values()) == {1}, asked


def test_a_killed_download_is_gone_on_from(files, nginx, cache):
    shard = put(files, CONTENT)
    killed = start_python(FETCH, f"{nginx.url}/slow", cache.dir, *shard[1:])
    partial = Path(cache.dir) / "partial" / f"{SHA}.{len(CONTENT)}" / "data"
    wait_until(lambda: partial.exists() and partial.stat().st_size >= 3 << 16)
    killed.kill()
    killed.communicate()
    before, there = len(nginx.requests()), partial.stat().st_size
    assert there < len(CONTENT) and not list((Path(cache.dir) / "whole").iterdir())
    path = Path(output(start_python(FETCH, nginx.url, cache.dir, *shard[1:])).strip())
    assert path.read_bytes() == CONTENT
    asked = nginx.requests()[before:]
    assert asked[0].byte_range is not None and asked[0].byte_range[0] == there
    assert sum(r.num_bytes for r in asked) == len(CONTENT) - there


def test_a_waiting_process_takes_over_from_a_killed_one(files, nginx, cache):
    shard = put(files, CONTENT)
    killed = start_python(FETCH, f"{nginx.url}/slow", cache.dir, *shard[1:])
    partial = Path(cache.dir) / "partial" / f"{SHA}.{len(CONTENT)}" / "data"
    wait_until(lambda: partial.exists() and partial.stat().st_size > 0)
    waiting = start_python(FETCH, nginx.url, cache.dir, *shard[1:])
    wait_until(lambda: partial.stat().st_size >= 5 << 16)
    killed.kill()
    assert Path(output(waiting).strip()).read_bytes() == CONTENT
    killed.communicate()


def test_a_damaged_shard_is_told_each_time_and_never_kept(files, nginx, cache):
    name, size, _ = put(files, CONTENT)
    storage = RemoteStorage(nginx.url, cache)
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"^{nginx.url}/x\.tar: has SHA-256 {SHA}, the index says {'0' * 64}"):
            storage.fetch(name, size, "0" * 64)
    assert not any(path.is_file() for path in Path(cache.dir, "whole").rglob("*"))
    assert not list(Path(cache.dir, "partial").iterdir())


def test_a_damaged_table_is_told(served, files, cache):
    table = files / "set" / "index.members.npy"
    content = bytearray(table.read_bytes())
    content[-1] ^= 1
    table.write_bytes(content)
    with pytest.raises(ValueError, match=r"/set/index\.members\.npy: has SHA-256"):
        ShardIndex.open(served, cache)


def test_a_changed_set_never_gets_old_bytes(served, files, cache):
    old = ShardIndex.open(served, cache)
    kept = old.fetch_shard(0).read_bytes()
    shutil.rmtree(files / "set")
    changed = write_shards(files / "set", seed=4)
    with pytest.raises(ValueError, match=r"train-000000\.tar: (has SHA-256|.*bytes came)|HTTP"):
        ShardIndex.open(served, CacheConfig(dir=cache.dir + "-2")).storage.fetch("train-000000.tar", 10, "0" * 64)
    new = ShardIndex.open(served, cache)
    assert new.info.fingerprint == changed.info.fingerprint != old.info.fingerprint
    assert new.fetch_shard(0).read_bytes() == changed.fetch_shard(0).read_bytes() != kept
    assert old.fetch_shard(0).read_bytes() == kept, "it is still in the cache, under its hash"


def test_two_sets_share_a_cache_that_holds_little(served, files, nginx, cache):
    write_shards(files / "other", seed=4)
    sizes = [s.size_bytes for s in ShardIndex.open(files / "set").info.shards]
    tables = sum(f.stat().st_size for f in (files / "set").rglob("*") if f.is_file()) - sum(sizes)
    small = CacheConfig(dir=cache.dir, max_gb=(2 * tables + max(sizes) + 4096) / 1e9)
    indexes = [ShardIndex.open(f"{nginx.url}/{name}", small) for name in ("set", "other")]
    for _ in range(2):
        for index in indexes:
            for shard, info in enumerate(index.info.shards):
                with ThreadPoolExecutor(1) as run:  # a thread of its own, which holds no shard once it has ended
                    content = run.submit(lambda: index.fetch_shard(shard).read_bytes()).result()  # noqa: B023
                assert hashlib.sha256(content).hexdigest() == info.sha256
                held = sum(f.stat().st_size for f in Path(cache.dir).rglob("*") if f.is_file())
                assert held <= small.max_gb * 1e9
    assert (indexes[0].root / "index.json").exists(), "the tables of an opened set stay"


def test_a_shard_that_is_larger_than_the_cache_is_not_begun(files, nginx, cache):
    storage = RemoteStorage(nginx.url, CacheConfig(dir=cache.dir, max_gb=0.0005))
    with pytest.raises(ValueError, match="does not fit a cache of 500000"):
        storage.fetch(*put(files, CONTENT))
    assert not nginx.requests()


def test_what_was_handed_out_last_is_not_removed(files, nginx, cache):
    """Another process wants all the room; what this thread has yet to open stays."""
    small = CacheConfig(dir=cache.dir, max_gb=0.002)
    storage, other = RemoteStorage(nginx.url, small), RemoteStorage(nginx.url, small)
    path = storage.fetch(*put(files, CONTENT))
    for number in range(3):
        other.fetch(*put(files, bytes([number]) * 600_000, f"{number}.tar"))
        assert path.exists()
    with pytest.raises(ValueError, match=r"no room.*raise data\.cache\.max_gb"):
        other.fetch(*put(files, b"." * 1_500_000, "large.tar"))
    assert path.read_bytes() == CONTENT


def test_prefetch_brings_shards_before_they_are_asked_for(served, nginx, cache):
    index = ShardIndex.open(served, cache)
    index.prefetch_shards([1, 0])
    whole = Path(cache.dir, "whole")
    wait_until(lambda: all((whole / shard.sha256).exists() for shard in index.info.shards))
    before = len(nginx.requests())
    paths = [index.fetch_shard(shard) for shard in (0, 1)]
    index.prefetch_shards([0, 1])
    assert len(nginx.requests()) == before and paths[0] != paths[1]
    ShardIndex.open(index.root.parent / index.info.fingerprint).prefetch_shards([0])  # of a folder: nothing to do


@pytest.mark.usefixtures("quick")
def test_a_failed_prefetch_is_told_by_fetch(files, nginx, cache, capfd):
    storage = RemoteStorage(nginx.url, cache)
    missing = ("x.tar", len(CONTENT), SHA)
    storage.prefetch([missing, ("y.tar", 5, "0" * 64)])
    wait_until(lambda: storage._num_threads == 0)
    assert capfd.readouterr().err == ""
    with pytest.raises(FileNotFoundError, match=r"/x\.tar: there is no such file"):
        storage.fetch(*missing)
    put(files, CONTENT)
    assert storage.fetch(*missing).read_bytes() == CONTENT


def test_prefetching_holds_up_no_exit(files, nginx, cache):
    """The process ends while its background download is on its way, and leaves nothing that looks whole."""
    shard = put(files, CONTENT)
    code = FETCH.replace("print(storage.fetch(", "storage.prefetch([(").replace("), flush=True)", ")])")
    code += (
        "\n    import time; from tests.servers import wait_until\n    wait_until(lambda: storage.bytes_fetched > 0)\n"
    )
    assert output(start_python(code, f"{nginx.url}/slow", cache.dir, *shard[1:])) == ""
    assert not list(Path(cache.dir, "whole").iterdir())
    partial = next(Path(cache.dir, "partial").iterdir()) / "data"
    assert 0 < partial.stat().st_size < len(CONTENT)


@pytest.mark.parametrize("name", ["../x.tar", "/etc/passwd", "https://h/x", ".ssh/key", "pipe:id"])
@pytest.mark.parametrize("where", ["shards", "files"])
def test_an_index_with_hostile_names_is_refused(files, nginx, cache, name, where):
    shards = [{"name": "x.tar", "num_stories": 3, "size_bytes": 1, "sha256": "0" * 64}]
    changes = {"shards": shards, "files": {}}
    if where == "shards":
        shards[0]["name"] = name
    else:
        changes["files"] = {name: "0" * 64}
    write(files, **changes)
    for place in (files, nginx.url):
        with pytest.raises(ValueError, match=r"index\.json: names a file .* do not trust this one"):
            ShardIndex.open(place, cache)
    assert [r.path for r in nginx.requests()] == ["/index.json"] and not any(Path(cache.dir, "whole").iterdir())


def test_no_set_at_an_address(nginx, cache):
    with pytest.raises(FileNotFoundError, match=rf"^{nginx.url}/nothing/index\.json: there is no such file"):
        ShardIndex.open(f"{nginx.url}/nothing", cache)
    with pytest.raises(PermissionError, match=r"/secret/index\.json: access is refused \(HTTP status 403\)"):
        ShardIndex.open(f"{nginx.url}/secret", cache)


def test_a_file_address_is_read_in_place(tiny_index, cache):
    index = ShardIndex.open(f"file://{tiny_index.root}", cache)
    assert index.root == tiny_index.root and index.fetch_shard(0) == tiny_index.fetch_shard(0)
    assert pickle.loads(pickle.dumps(index)).root == index.root and not Path(cache.dir).exists()
