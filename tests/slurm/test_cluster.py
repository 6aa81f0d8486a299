"""The cluster in a box itself."""

import subprocess

import pytest

from tests.slurm.box import SCRIPT, Box

pytestmark = pytest.mark.slurm


def test_nodes_are_told_apart_and_have_gpus(box):
    told = box.run(
        "srun", "-N2", "--ntasks-per-node=1", "--gpus-per-node=2", "printenv", "SLURMD_NODENAME", "CUDA_VISIBLE_DEVICES"
    )
    assert sorted(told.split()) == ["0,1", "0,1", "n1", "n2"]


def test_two_clusters_run_at_once_and_one_ends_alone_leaving_nothing(box, tmp_path):
    other = Box(tmp_path / "other", NODES="1", GPUS="0")
    stubborn = "trap '' TERM USR1; setsid sleep 600 & while :; do sleep 1; done"
    job = other.submit("--output=/dev/null", f"--wrap={stubborn}")
    other.wait(job, lambda: any("sleep 600" in p.command for p in other.processes().values()))
    other.down()
    assert not other.folder.exists() and other.processes() == {}
    assert box.run("sinfo", "-h", "-p", "train", "-o", "%D %t").split() == ["2", "idle"]


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine").touch()
    for word, code in ("up", 1), ("down", 0):
        done = subprocess.run([SCRIPT, word, tmp_path], capture_output=True, text=True)
        assert done.returncode == code and (tmp_path / "mine").exists()
    assert (
        "exists; choose another folder"
        in subprocess.run([SCRIPT, "up", tmp_path], capture_output=True, text=True).stderr
    )
