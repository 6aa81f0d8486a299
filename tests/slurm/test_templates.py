"""The templates besides train.sbatch on a real Slurm, unchanged: shards built by an array, a pipeline, a sweep."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from storydist.training.processes import last_step
from tests.slurm.box import ROOT, Box
from tests.small_runs import SMALL
from tests.story_tables import build_arguments, build_set, content, row, write_metadata, write_source, write_table

pytestmark = pytest.mark.slurm

TEMPLATES = sorted((ROOT / "slurm").glob("*.sbatch"))
ON_CPU = "--gpus-per-node=0 --cpus-per-task=1"
ONE_RANK = "--gpus-per-node=2 --ntasks-per-node=1"  # the box has 16 CPUs and 2 GPUs on each node
ENVIRONMENT = {"PYTHON": sys.executable, "PREFLIGHT": ""}


def settings(path: Path, **train: object) -> Path:
    """A run's settings, small and on the CPU."""
    small = {"global_batch": 4, "micro_batch": 4, "threads": 1, "device": "cpu", "evaluate_split": "test"}
    often = {"log_every": 1, "save_every": 20, "evaluate_every": 20}
    evaluate = {"generate_windows": 0, "resamples": 10, "num_examples": 1}
    values = {"model": SMALL, "data": {"max_wordpieces": 20}, "train": small | often | train, "evaluate": evaluate}
    path.write_text(yaml.safe_dump(values))
    return path


def tried(box: Box, *command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command of Slurm's or of ours that may fail."""
    given = box.environment | environment
    return subprocess.run([*map(str, command)], env=given, cwd=ROOT, capture_output=True, text=True)


def ends_well(box: Box, job: str, seconds: float = 120) -> bool:
    return box.wait(job, seconds=seconds)["ExitCode"] == "0:0"


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_slurm_takes_every_template(box, template):
    assert tried(box, "sbatch", "--test-only", *ONE_RANK.split(), template, "words").returncode == 0


def test_an_array_builds_a_shard_set_and_a_failed_task_is_run_again_alone(box, tmp_path):
    source, out = write_source(tmp_path / "source"), tmp_path / "shards"
    words = build_arguments(source, out)
    options = [*words[words.index("--out") + 2 :], "--workers", "1"]
    command = ["slurm/shard.sbatch", source, source / "metadata.csv", out, *options]
    log = f"--output={tmp_path}/%x-%A_%a.log"
    in_the_way = out / ".build" / "train-000001.tar.npz"  # of part 4/8
    in_the_way.mkdir(parents=True)
    array = box.submit(log, *command, **ENVIRONMENT)
    ended = {task: ends_well(box, f"{array}_{task}") for task in range(1, 9)}
    assert ended == {task: task != 4 for task in range(1, 9)}
    logs = {path.name: path.read_text() for path in tmp_path.glob("*.log")}
    assert len(logs) == 8 and "train-000001.tar.npz" in logs[f"storydist-shard-{array}_4.log"], logs
    box.wait(box.submit("--array=3", f"--output={tmp_path}/third", *command, **ENVIRONMENT) + "_3")
    missing = "part 3/8 is built, in [^;]*; to be built yet: part 4/8 \\(1 shard from train-000001.tar\\)"
    assert re.search(missing, (tmp_path / "third").read_text())
    in_the_way.rmdir()
    again = box.submit("--array=4", log, *command, **ENVIRONMENT)
    assert ends_well(box, f"{again}_4")
    assert build_set(source, tmp_path / "single").returncode == 0
    assert content(out) == content(tmp_path / "single")


def test_a_part_that_is_not_there_is_named(box, tmp_path):
    job = box.submit("--array=9", f"--output={tmp_path}/log", "slurm/shard.sbatch", "a", "b", "c", **ENVIRONMENT)
    assert not ends_well(box, f"{job}_9")
    assert "there are 8 parts and no part 9" in (tmp_path / "log").read_text()


def test_a_pipeline_ends_in_a_report_though_its_training_is_requeued(box, tmp_path):
    source = write_source(tmp_path / "source", 2, 1)
    write_table(source / "train-00000-of-00001.parquet", [row(number, 7) for number in range(12)])
    write_table(source / "test-00000-of-00001.parquet", [row(number, 7) for number in range(12, 16)])
    write_metadata(source, {f"s{number}": str(number / 4) for number in range(16)})
    config, run = settings(tmp_path / "settings.yaml", steps=80, evaluate_every=0), tmp_path / "run"
    logs = f"--output={tmp_path}/%x.log"
    words = ["slurm/pipeline.sh", source, source / "metadata.csv", tmp_path / "shards", config, run, "data.context=4"]
    shard_words = ["--", "--size", "12x20", "--tokenizer", "train:200", "--val", "0.1", "--workers", "1"]
    told = box.run(
        *words,
        *shard_words,
        **ENVIRONMENT,
        SHARD_SBATCH=f"--cpus-per-task=1 --output={tmp_path}/%x-%a.log",
        TRAIN_SBATCH=f"{ON_CPU} --ntasks-per-node=1 {logs}",
        EVALUATE_SBATCH=f"{ON_CPU} {logs}",
    )
    shard, train, evaluate = re.findall(r"^(?:shard|train|evaluate) +(\d+)", told, re.MULTILINE)
    assert f"scancel {shard} {train} {evaluate}" in told
    box.wait(train, lambda: last_step(run) >= 5)
    box.run("scancel", "--batch", "--signal=USR1", train)
    assert ends_well(box, evaluate, 180), (tmp_path / "storydist.log").read_text()
    assert box.job(train)["Restarts"] == "1" and last_step(run) == 80
    assert json.loads((run / "evaluation.json").read_text())["metrics"]
    assert "<html" in (run / "report.html").read_text()


def test_a_pipeline_whose_shards_fail_leaves_nothing_waiting(box, tmp_path):
    logs = f"--output={tmp_path}/%x-%a.log"
    nowhere, out = (tmp_path / "no", tmp_path / "no.csv"), (tmp_path / "shards", "no.yaml", tmp_path / "run")
    words = ["slurm/pipeline.sh", *nowhere, *out]
    told = box.run(*words, **ENVIRONMENT, SHARD_SBATCH=f"--array=1-2 {logs}", TRAIN_SBATCH=ONE_RANK)
    train, evaluate = re.findall(r"^(?:train|evaluate) +(\d+)", told, re.MULTILINE)
    assert box.wait(train)["JobState"] == box.wait(evaluate)["JobState"] == "CANCELLED"


def test_a_pipeline_is_only_tried_and_each_step_that_slurm_refuses_is_named(box):
    before = box.run("squeue", "-h")
    words = ["slurm/pipeline.sh", "--test-only", "a", "b", "c", "d", "e"]
    box.run(*words, TRAIN_SBATCH=ONE_RANK)
    too_much = {"SHARD_SBATCH": "-c 99", "TRAIN_SBATCH": ONE_RANK, "EVALUATE_SBATCH": "--partition=none"}
    refused = tried(box, *words, **too_much)
    assert refused.returncode == 1, refused.stderr
    assert re.findall("refused: slurm/(.*).sbatch", refused.stderr) == ["shard", "evaluate"]
    assert box.run("squeue", "-h") == before


def test_a_pipeline_of_which_a_step_is_refused_leaves_nothing_queued(box, tmp_path):
    words = ["slurm/pipeline.sh", "a", "b", tmp_path / "c", "d", tmp_path / "e"]
    asked = {"SHARD_SBATCH": "--hold", "TRAIN_SBATCH": ONE_RANK, "EVALUATE_SBATCH": "--partition=none"}
    refused = tried(box, *words, **asked)
    assert refused.returncode == 1 and "evaluate" not in refused.stdout, refused.stdout
    assert box.run("squeue", "-h", "--states=pending,running", "--name=storydist-shard,storydist") == ""


def test_two_tasks_share_a_sweep_and_one_is_requeued(box, tiny_index, tmp_path):
    settings(tmp_path / "settings.yaml", steps=60)
    sweep = {
        "config": "settings.yaml",
        "space": {"optim.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}},
        "metric": "text CE",
        "trials": 4,
        "pruner": "none",
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    folder = tmp_path / "sweep"
    job = box.submit(
        *("--array=1-2", *ON_CPU.split(), f"--output={tmp_path}/%A_%a.log"),
        *("slurm/sweep.sbatch", tmp_path / "sweep.yaml", "--dir", folder, f"data.shards={tiny_index.root}"),
        **ENVIRONMENT,
    )
    logs = {task: tmp_path / f"{job}_{task}.log" for task in (1, 2)}

    def trial_of(task: int) -> Path | None:
        found = re.findall(r"^(\S+/trial-\d+): optim", logs[task].read_text(), re.M) if logs[task].exists() else []
        return Path(found[0]) if found else None

    for task in (1, 2):  # the one that has the array's number as its own, and one that has not
        box.wait(f"{job}_{task}", lambda task=task: (run := trial_of(task)) is not None and last_step(run) > 0)
    box.run("scancel", "--batch", "--signal=USR1", f"{job}_2")
    assert all(ends_well(box, f"{job}_{task}", 180) for task in (1, 2)), logs[2].read_text()
    assert (box.job(f"{job}_1")["Restarts"], box.job(f"{job}_2")["Restarts"]) == ("0", "1")
    for number in range(4):
        run = folder / f"trial-{number:04d}"
        steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in steps if line["kind"] == "train"] == list(range(1, 61))
    assert "4 complete; lower is better" in logs[1].read_text() + logs[2].read_text()
    assert "<svg" in (folder / "sweep.html").read_text()
