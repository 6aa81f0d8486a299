"""Fixtures that many tests share. One thread per process: the suite runs on two cores."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from storydist.data.index import ShardIndex
from tests.servers import NGINX, Nginx
from tests.tiny_shards import write_shards

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    """24 training and 6 test stories of 12x24 pixels; not to be written to."""
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def own_index(tmp_path: Path) -> ShardIndex:
    """The same shards, for a test that damages them."""
    return write_shards(tmp_path / "shards")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The folder that `nginx` serves."""
    folder = tmp_path / "files"
    folder.mkdir()
    return folder


@pytest.fixture
def nginx(tmp_path: Path, files: Path) -> Iterator[Nginx]:
    if NGINX is None:
        pytest.skip("nginx is not installed (apt-get install nginx-light)")
    server = Nginx(tmp_path / "nginx", files)
    yield server
    server.stop()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of milliseconds, and small ranges, so that a file of a megabyte has many."""
    for name, value in {"FIRST_PAUSE_S": 0.01, "LONGEST_PAUSE_S": 0.05, "RANGE_BYTES": 1 << 16}.items():
        monkeypatch.setattr(f"storydist.data.download.{name}", value)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
