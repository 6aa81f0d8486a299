"""Fixtures that many tests share. One thread per process: the suite runs on two cores."""

from pathlib import Path

import pytest
import torch

from storydist.data.index import ShardIndex
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
