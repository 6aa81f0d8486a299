"""Shard sets in a bucket: a real S3 client against moto's server."""

import hashlib
from pathlib import Path

import pytest

from storydist.data.index import ShardIndex
from storydist.data.storage import CacheConfig, RemoteStorage
from tests.servers import FailingLine

boto3 = pytest.importorskip("boto3", reason="moto[server] is not installed")
s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
server = pytest.importorskip("moto.server", reason="moto[server] is not installed")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch):
    """A bucket named `shards`, and the environment that leads to it."""
    moto = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    made = boto3.resource("s3").Bucket("shards")
    made.create()
    yield made
    made.objects.delete()
    moto.stop()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def cache(tmp_path: Path) -> CacheConfig:
    return CacheConfig(dir=str(tmp_path / "cache"))


@pytest.mark.usefixtures("quick")
def test_a_set_in_a_bucket(bucket, tiny_index, cache):
    for path in tiny_index.root.rglob("*"):
        if path.is_file():
            bucket.upload_file(str(path), f"sets/a b/{path.relative_to(tiny_index.root)}")
    index = ShardIndex.open("s3://shards/sets/a b", cache)
    assert index.info == tiny_index.info
    for shard in range(len(index.info.shards)):
        assert index.fetch_shard(shard).read_bytes() == tiny_index.fetch_shard(shard).read_bytes()
    brought = sum(path.stat().st_size for path in tiny_index.root.rglob("*") if path.is_file())
    assert index.storage.bytes_fetched == brought


def test_what_is_not_there_or_not_allowed(bucket, cache):
    with pytest.raises(FileNotFoundError, match=r"^s3://shards/none/index\.json: there is no such file"):
        ShardIndex.open("s3://shards/none", cache)
    with pytest.raises(FileNotFoundError, match=r"^s3://no-such-bucket/x/index\.json: there is no such file"):
        ShardIndex.open("s3://no-such-bucket/x", cache)


def test_no_credentials(bucket, cache, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(PermissionError, match=r"access is refused \(NoCredentialsError: .*docs/storage\.md"):
        ShardIndex.open("s3://shards/none", cache)


@pytest.mark.usefixtures("quick")
def test_an_object_that_changes_is_told(bucket, cache):
    bucket.put_object(Key="x.tar", Body=b"1" * 200_000)
    with pytest.raises(ValueError, match=r"^s3://shards/x\.tar: has SHA-256 \w{64}, the index says 0{64}"):
        RemoteStorage("s3://shards", cache).fetch("x.tar", 200_000, "0" * 64)


@pytest.mark.usefixtures("quick")
def test_a_line_to_a_bucket_that_drops(bucket, cache, monkeypatch):
    content = bytes(range(256)) * 2000
    bucket.put_object(Key="x.tar", Body=content)
    port = int(bucket.meta.client.meta.endpoint_url.rpartition(":")[2])
    line = FailingLine(port, lambda n: 100_000 if n < 4 else None)
    monkeypatch.setenv("AWS_ENDPOINT_URL", line.url)
    storage = RemoteStorage("s3://shards", cache)
    path = storage.fetch("x.tar", len(content), hashlib.sha256(content).hexdigest())
    assert path.read_bytes() == content and line.num_connections >= 5
    line.stop()
