"""Shell that is not run by any test is at least read by shellcheck."""

import shutil
import subprocess

import pytest

from tests.slurm.box import ROOT

pytestmark = pytest.mark.slurm


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    scripts = [*ROOT.glob("slurm/*"), *ROOT.glob("tests/slurm/*.sh"), ROOT / ".ci" / "run"]
    done = subprocess.run(["shellcheck", "-x", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
