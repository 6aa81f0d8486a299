import pytest

from storydist.cluster.place import Place
from storydist.cluster.shards import readable, spread
from storydist.data.index import ShardIndex
from tests.servers import Nginx
from tests.tiny_shards import write_shards


def test_a_missing_shard_is_named(own_index):
    own_index.shard_path(0).unlink()
    (found,) = readable(own_index, Place())
    assert found.level == "FAIL" and "train-000000.tar" in found.what


def test_the_ranks_of_a_node_share_out_the_shards(own_index):
    own_index.shard_path(1).unlink()
    found = [readable(own_index, Place(local_rank=rank, local_world_size=2))[0].level for rank in (0, 1)]
    assert found == ["ok", "FAIL"]


def test_of_very_many_shards_the_first_the_last_and_some_between_are_looked_at():
    every = list(range(10_001))
    assert spread(every, 5) == [0, 2500, 5000, 7500, 10_000]  # type: ignore[arg-type]
    assert spread(every, 20_000) == every  # type: ignore[arg-type]


@pytest.mark.usefixtures("quick")
def test_remote_shards_are_looked_at_without_downloading_them(nginx: Nginx, files, tmp_path, monkeypatch):
    from storydist.data.storage import CacheConfig

    index = write_shards(files / "set")
    remote = ShardIndex.open(f"{nginx.url}/set", CacheConfig(dir=str(tmp_path / "cache")))
    before = remote.storage.bytes_fetched
    assert readable(remote, Place())[0].level == "ok"
    assert remote.storage.bytes_fetched - before == 2 * len(index.info.shards)
    with index.shard_path(0).open("ab") as shard:
        shard.write(b"more")
    (found,) = readable(remote, Place())
    assert found.level == "FAIL" and "train-000000.tar: has " in found.what
