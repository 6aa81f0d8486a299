"""Real processes: two ranks on the CPU (gloo), started the way a user starts them."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.small_runs import SMALL, small_config
from tests.tiny_shards import write_shards

ROOT = Path(__file__).resolve().parents[2]
STEPS = 20
LAUNCHERS = {
    "python": [],
    "accelerate": [
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ],
    "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node", "2"],
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment() -> dict[str, str]:
    """Without a GPU, and without a word that the ranks are to use the CPU."""
    return {k: v for k, v in os.environ.items() if k != "ACCELERATE_USE_CPU"} | {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }


def command(launcher: str, config: Path, *words: str) -> list[str]:
    flags = {"accelerate": "--main_process_port", "torchrun": "--master_port"}
    port = [flags[launcher], str(free_port())] if launcher in flags else []
    program = [str(ROOT / "launch" / "train.py"), "--config", str(config)]
    return [sys.executable, *LAUNCHERS[launcher], *port, *program, *words]


def launch(launcher: str, config: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(launcher, config, *words),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=ROOT,
        env=environment(),
    )


@pytest.fixture(scope="module")
def config_file(tiny_index, tmp_path_factory) -> Path:
    """A small model without dropout, so that ranks draw nothing at random."""
    folder = tmp_path_factory.mktemp("ranks")
    still = SMALL | {"dropout": 0.0, "score_dropout": 0.0, "word_dropout": 0.0}
    config = small_config(
        tiny_index,
        folder,
        model=still,
        train={"steps": STEPS, "evaluate_every": STEPS, "evaluate_split": "test"},
        evaluate={"batch_stories": 2},  # several batches, so that the ranks share them
    )
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def one_process(config_file, tmp_path_factory) -> list[dict]:
    run = tmp_path_factory.mktemp("one")
    done = launch("python", config_file, f"run.dir={run}")
    assert done.returncode == 0, done.stderr
    return lines(run)


@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_two_ranks_lose_as_one(launcher, config_file, one_process, tmp_path):
    done = launch(launcher, config_file, f"run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "2 rank(s) on cpu" in done.stdout
    found = lines(tmp_path)
    assert [line["step"] for line in found if line["kind"] == "train"] == list(range(1, STEPS + 1))
    for one, two in zip(one_process, found, strict=True):
        if one["kind"] == "train":
            for name, value in one.items():
                if name.startswith("loss"):
                    assert two[name] == pytest.approx(value, rel=1e-5), (one["step"], name)
        else:
            for name, metric in one["metrics"].items():
                assert two["metrics"][name]["value"] == pytest.approx(metric["value"], rel=1e-4, abs=1e-5), name


def test_a_mistake_ends_all_ranks_with_one_message(config_file, tmp_path):
    done = launch("torchrun", config_file, f"run.dir={tmp_path}", "train.global_batch=3")
    assert done.returncode != 0
    assert "train.global_batch 3 cannot be split over 2 ranks" in done.stderr


def test_ranks_that_begin_with_something_else_are_named(config_file, tmp_path):
    """As with a node that has another copy of the settings and of the index."""
    write_shards(tmp_path / "other", seed=4)
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    own = {"0": [], "1": [f"data.shards={tmp_path / 'other'}", "train.log_every=7"]}
    ranks = [
        subprocess.Popen(
            command("python", config_file, f"run.dir={tmp_path / 'run'}", *words),
            cwd=ROOT,
            env=environment() | meeting | {"RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, words in own.items()
    ]
    for rank in ranks:
        _, told = rank.communicate(timeout=120)
        assert rank.returncode == 2, told
        assert "fingerprint is " in told and "train.log_every is 7 on rank 1, 1 on rank 0" in told
        assert "data.shards" not in told
    assert not (tmp_path / "run").exists()


def test_a_signal_to_one_rank_stops_all_at_one_step_and_resuming_ends_the_same(config_file, tmp_path):
    """USR1 reaches rank 1 alone, the ranks agree, rank 0 saves; --resume ends with the undisturbed weights."""
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert launch("torchrun", config_file, f"run.dir={straight}").returncode == 0
    first = subprocess.Popen(
        command("torchrun", config_file, f"run.dir={stopped}"),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout is not None
    for line in first.stdout:
        if line.startswith("step 3/"):
            break
    os.kill(rank_pid(stopped, 1), signal.SIGUSR1)
    first.communicate(timeout=120)
    assert first.returncode != 0
    steps = [line["step"] for line in lines(stopped)]
    assert 3 <= steps[-1] < STEPS and steps == list(range(1, steps[-1] + 1))
    done = launch("torchrun", config_file, f"run.dir={stopped}", "--resume")
    assert done.returncode == 0, done.stderr
    name = f"checkpoints/step-{STEPS:08d}/model.safetensors"
    assert (stopped / name).read_bytes() == (straight / name).read_bytes()


def rank_pid(run: Path, rank: int) -> int:
    """The process of a rank of the run in this folder, found by its command line and environment."""
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            values = (entry / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        if (
            f"run.dir={run}".encode() in words
            and f"RANK={rank}".encode() in values
            and b"torch.distributed.run" not in words
        ):
            return int(entry.name)
    raise AssertionError(f"no process of rank {rank} is running for {run}")


def test_a_run_that_is_killed_ends_as_if_it_had_not_been(config_file):
    done = subprocess.run(
        [sys.executable, "launch/verify_resume.py", "--config", config_file, "--steps", "8", "--stops", "3"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=ROOT,
        env=environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stopped run: stopped by SIGKILL" in done.stdout and "the same, bit for bit, after 1 stops" in done.stdout


def test_what_one_rank_cannot_save_ends_both(config_file, tmp_path):
    (tmp_path / "checkpoints").touch()
    done = launch("torchrun", config_file, f"run.dir={tmp_path}", "train.steps=2", "train.evaluate_every=0")
    assert done.returncode != 0
    assert f"error: {tmp_path / 'checkpoints'}: File exists" in done.stderr
    assert f"error: rank 0: {tmp_path / 'checkpoints'}: File exists" in done.stderr
