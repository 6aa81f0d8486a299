"""Training and evaluation on shards that lie behind nginx; two ranks that share one node's cache."""

import shutil
import subprocess
from pathlib import Path

import pytest

from storydist.data.index import ShardIndex
from tests.servers import output, start_python
from tests.story_tables import build_set, write_source
from tests.test_commands import SMALL, build_of_six_frames, call, refused

RANK = """if True:
    import sys
    import torch
    from storydist.data.index import ShardIndex
    from storydist.data.settings import DataConfig
    from storydist.data.storage import CacheConfig
    from storydist.data.stream import Stream
    torch.set_num_threads(1)
    url, folder, max_gb, rank = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
    config = DataConfig(shards=url, cache=CacheConfig(dir=folder, max_gb=max_gb), block_shards=3, prefetch=1)
    stream = Stream(ShardIndex.open(url, config.cache), config, seed=1, global_batch=4, rank=rank, world_size=2)
    steps = stream.steps()
    for line in sys.stdin:
        print(*next(steps)[0].ids, flush=True)
    steps.close()
    """


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 training shards of 3 stories; a fifth of the stories is kept to validate."""
    folder = tmp_path_factory.mktemp("many")
    done = build_set(write_source(folder / "source", 60, 3), folder / "set", "--frames", "raw")
    assert done.returncode == 0, done.stderr
    return folder / "set"


def test_two_ranks_bring_each_shard_once_an_epoch(many_shards, files, nginx, tmp_path):
    """Read amplification: bytes that nginx sent, by those of the shards that were read. The cache holds two blocks of
    three shards, one shard for each rank to open, and one on its way; the epoch has sixteen.
    """
    shutil.copytree(many_shards, files / "set")
    index = ShardIndex.open(many_shards)
    sizes = {f"/set/{shard.name}": shard.size_bytes for shard in index.info.shards}
    tables = sum(p.stat().st_size for p in many_shards.rglob("*") if p.is_file() and p.suffix != ".tar")
    max_bytes = tables + 9 * max(sizes.values())
    place = (f"{nginx.url}/set", tmp_path / "cache", max_bytes / 1e9)
    command = [start_python(RANK, *place, rank) for rank in range(2)]
    seen: list[str] = []
    # In step, as training is; seven of twelve steps, because in the last block the next epoch's first begins to come.
    for _ in range(7):
        seen += [story for rank in command for story in _step(rank)]
    for rank in command:
        output(rank)
    assert len(seen) == len(set(seen)) == 28
    asked = nginx.downloads(".tar")
    read = {request.path for request in asked}
    amplification = sum(request.num_bytes for request in asked) / sum(sizes[path] for path in read)
    print(f"{len(read)} shards, read amplification {amplification:.3f}")
    assert len(read) >= 12 and amplification <= 1.05
    assert sum(p.stat().st_size for p in (tmp_path / "cache").rglob("*") if p.is_file()) <= max_bytes


def _step(rank: subprocess.Popen[str]) -> list[str]:
    assert rank.stdin is not None and rank.stdout is not None
    rank.stdin.write("\n")
    rank.stdin.flush()
    stories = rank.stdout.readline().split()
    assert stories, rank.communicate()[1]
    return stories


def test_a_run_on_shards_at_an_address(files, nginx, tmp_path):
    shards = build_of_six_frames(files, 8, 3, lambda number: str(number / 4))
    address, cache = f"{nginx.url}/{shards.relative_to(files)}", tmp_path / "cache"
    (tmp_path / "small.yaml").write_text(SMALL)
    settings = ["--config", tmp_path / "small.yaml", f"data.shards={address}", f"run.dir={tmp_path / 'run'}"]
    done = call("launch/train.py", *settings, f"data.cache.dir={cache}")
    assert done.returncode == 0, done.stderr
    assert nginx.downloads(".tar")
    done = call("launch/train.py", *settings, "--resume", f"data.cache.dir={tmp_path / 'moved'}", "data.cache.max_gb=2")
    assert done.returncode == 0 and "is finished" in done.stdout, done.stderr
    for command, more in (("evaluate", ["--shards", address]), ("predict", ["--num", 1]), ("report", [])):
        done = call(f"launch/{command}.py", tmp_path / "run", *more)
        assert done.returncode == 0, done.stderr
    assert call("launch/evaluate.py", tmp_path / "run", "--shards", shards).returncode == 0
    message = refused("launch/evaluate.py", tmp_path / "run", "--shards", f"{nginx.url}/elsewhere")
    assert message == (
        f"{nginx.url}/elsewhere/index.json: there is no such file; if the run's shards were moved, name them with "
        "--shards\n"
    )
    assert "only a folder is verified" in refused("shards/verify.py", address)
