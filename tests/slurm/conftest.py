"""One cluster for all tests that need Slurm; without Slurm they are skipped."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.box import Box

SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [program for program in PROGRAMS if shutil.which(program, path=SBIN) is None]
    reason = f"{', '.join(missing)} not installed: apt-get install slurm-wlm munge" if missing else "Slurm needs root"
    for item in items:
        if "slurm" in item.keywords and Path(__file__).parent in item.path.parents and (missing or os.getuid() != 0):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """Two nodes, n1 and n2, of 16 pretended CPUs and 2 pretended GPUs each; partitions `train` and `urgent`.

    In the folder SLURM_BOX if that is set, so that whoever started the tests can end it, should they not.
    """
    cluster = Box(Path(os.environ.get("SLURM_BOX") or tmp_path_factory.mktemp("slurm") / "box"))
    yield cluster
    cluster.down()
