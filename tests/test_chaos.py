"""The benchmark that kills runs: it starts, kills, resumes and compares for real; and what is wrong does not pass."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.chaos import LAUNCHERS
from benchmarks.chaos_compare import difference, distance
from benchmarks.chaos_life import DEEDS, Life, Plan, _judge, draw
from benchmarks.chaos_tables import tables
from storydist.training import checkpoint
from storydist.training.checkpoint import TrainState
from storydist.training.keep import checkpoint_path
from storydist.training.log import LOG, METRICS
from tests.test_checkpoint import IDENTITY, trained

ROOT = Path(__file__).resolve().parents[1]
PLAN = Plan("torchrun", DEEDS[0], 0, "any", 1, 0.0, 0.0, 2, "ddp")


def save(run: Path, step: int, num_updates: int = 2) -> None:
    model, optimizer = trained(num_updates)
    tensors = checkpoint.live_tensors(model, optimizer, None)
    checkpoint.write(checkpoint_path(run, step), TrainState(step=step), IDENTITY, tensors)
    (run / METRICS).touch()


def judged(
    run: Path, told: str = "", *, former: int = 0, expected: int = 0, killed: bool = True, overlaps: bool = False
) -> list[str]:
    life = Life(PLAN, killed=killed, code=1)
    _judge(run, life, told, former, expected, overlaps)
    return life.problems


def test_three_killed_lives_end_as_one_that_was_not(tmp_path):
    words = ["--kills", "3", "--steps", "12", "--cases", "ddp-fp32-2", "--launchers", "python", "--seed", "4"]
    done = subprocess.run(
        [sys.executable, "benchmarks/chaos.py", "--out", str(tmp_path), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    journal = json.loads((tmp_path / "chaos.json").read_text())["ddp-fp32-2"]
    lives = [entry for entry in journal if entry["kind"] == "life"]
    assert sum(life["killed"] for life in lives) == 3 and not any(life["problems"] for life in lives)
    assert len({life["resumed_at"] for life in lives} - {None}) > 1
    assert journal[-1] == {"kind": "end", "run": "run-0", "difference": None}


def test_plans_follow_from_the_seed_and_cover_everything():
    plans = [draw(random.Random(number), LAUNCHERS, (1, 2), ("ddp", "zero2")) for number in range(1000)]
    assert plans == [draw(random.Random(number), LAUNCHERS, (1, 2), ("ddp", "zero2")) for number in range(1000)]
    assert {plan.deed for plan in plans} == set(DEEDS) and {plan.launcher for plan in plans} == set(LAUNCHERS)
    assert not any(plan.launcher == "python" and "launcher" in plan.deed for plan in plans)
    assert {(plan.world_size, plan.rank) for plan in plans} == {(1, 0), (2, 0), (2, 1)}


def test_a_life_that_went_well_has_no_problem(tmp_path):
    save(tmp_path, 3)
    (tmp_path / LOG).write_text(
        "2026-01-01 00:00:00 step 3 saved in 0.1 s; the loop waited; for the checkpoint before\n"
    )
    assert judged(tmp_path, "RUN: step 3 of 9, 24 samples", former=3, expected=3) == []


def test_a_resume_from_another_checkpoint_is_wrong(tmp_path):
    save(tmp_path, 3)
    assert judged(tmp_path, "RUN: step 0 of 9, 24 samples", expected=3) == ["wrong: it went on from step 0, not from 3"]


def test_what_the_ranks_of_a_killed_launcher_save_later_may_be_gone_on_from(tmp_path):
    save(tmp_path, 6)
    assert judged(tmp_path, "RUN: step 6 of 9, 24 samples", expected=3, overlaps=True) == []
    assert judged(tmp_path, "RUN: step 0 of 9, 24 samples", expected=3, overlaps=True) != []


def test_a_damaged_checkpoint_is_wrong(tmp_path):
    save(tmp_path, 3)
    (checkpoint_path(tmp_path, 3) / checkpoint.MODEL).unlink()
    (problem,) = judged(tmp_path)
    assert problem.startswith("wrong: ") and "No such file" in problem


def test_a_checkpoint_that_was_told_and_is_gone_is_lost(tmp_path):
    save(tmp_path, 3)
    (tmp_path / LOG).write_text(
        "2026-01-01 00:00:00 step 6 saved in 0.1 s; the loop waited; for the checkpoint before\n"
    )
    (problem,) = judged(tmp_path)
    assert problem == "lost: step 6 was told as saved, the newest is of step 3"


def test_a_life_that_ends_by_itself_and_not_well_is_lost(tmp_path):
    (problem,) = judged(tmp_path, "error: no", killed=False)
    assert problem == "lost: it ended by itself with 1: error: no"


@pytest.mark.parametrize("step", [3, 6], ids=["an earlier one", "the last one"])
def test_another_checkpoint_that_differs_is_found(tmp_path, step):
    one, other = tmp_path / "one", tmp_path / "other"
    for run in (one, other):
        save(run, 3)
        save(run, 6)
    assert difference(one, other) is None
    shutil.rmtree(checkpoint_path(other, step))
    save(other, step, num_updates=3)
    assert difference(one, other) is not None


def test_losses_that_are_further_apart_than_rounding_are_found(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for run, loss, seen in ((one, 2.0, 8), (other, 2.00001, 8)):
        save(run, 6)
        line = {"step": 6, "kind": "train", "loss": loss, "samples_seen": seen}
        (run / METRICS).write_text(json.dumps(line) + "\n")
    assert distance(one, other) == (None, pytest.approx(5e-6), 0.0)
    (other / METRICS).write_text(json.dumps(line | {"loss": 2.0001}) + "\n")
    assert distance(one, other)[0] == "losses are 5.0e-05 apart"
    (other / METRICS).write_text(json.dumps(line | {"samples_seen": 12}) + "\n")
    assert distance(one, other)[0] == "they have seen other numbers of samples"


def test_the_tables_count_what_went_wrong():
    well = {"kind": "life", "run": "run-0", "number": 0, **Life(PLAN, killed=True, phase="save").as_json()}
    wrong = well | {"number": 1, "problems": ["wrong: it went on from step 0, not from 3"]}
    end = {"kind": "end", "run": "run-0", "difference": None}
    text, is_well = tables({"ddp": [well, well, end]})
    assert is_well and "| ddp | 2 | 1 | 0 | 0 | 0 | 1 of 1 |" in text and "| save | 2 |" in text
    text, is_well = tables({"ddp": [well, wrong, end | {"difference": "model.safetensors: w[0]"}]})
    assert not is_well and "| ddp | 2 | 0 | 0 | 1 | 0 | 0 of 1 |" in text
    assert "- ddp run-0 life 1: wrong: it went on" in text and "- ddp run-0: model.safetensors: w[0]" in text
