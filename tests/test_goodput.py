"""The ledger added up: what was lost is found, kinds add up to the wall time, also for real runs that are killed."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from storydist.cluster.goodput import Spent, goodput_of, read_lives, spent, total
from storydist.training.heartbeat import heartbeat_path
from storydist.training.ledger import LEDGER
from storydist.training.processes import Stop, run_ranks
from tests.ledger_lines import begin, line, write_ledger
from tests.small_runs import SMALL
from tests.story_tables import ROOT, run_file


def of(run: Path, *lines: dict) -> list[Spent]:
    write_ledger(run, *lines)
    return spent(read_lives(run))


def add_up(parts: list[Spent]) -> bool:
    return all(sum(part.seconds.values()) == pytest.approx(part.wall_s) for part in parts)


def test_a_run_in_one_piece(tmp_path):
    (part,) = of(
        tmp_path,
        begin(105, started=100),
        line("saved", 126, 10, 20, saving=1),
        line("end", 150, 20, 40, saving=2, evaluation=3),
    )
    assert part.seconds == {
        "training": 40, "waiting": 0, "saving": 2, "evaluation": 3, "start": 5, "lost": 0, "queued": 0,
    }  # fmt: skip
    assert (part.wall_s, part.goodput) == (50, 0.8) and read_lives(tmp_path)[0].ended == "finished"


def test_what_a_killed_life_did_behind_its_checkpoint_is_lost(tmp_path):
    parts = of(
        tmp_path,
        begin(105, started=100),
        line("saved", 116, 10, 10, saving=1),
        line("steps", 126, 14, 19, saving=1, waiting=1),
        begin(150, started=145, step=10, former_sign=128.5),
        line("end", 160, 20, 10),
    )
    first, second = parts
    assert (first.seconds["training"], first.seconds["lost"], first.seconds["saving"]) == (10, 9 + 1 + 2.5, 1)
    assert (first.wall_s, second.seconds["queued"]) == (28.5, 16.5)
    assert add_up(parts) and total(parts).wall_s == 60
    assert [life.ended for life in read_lives(tmp_path)] == ["killed", "finished"]


def test_an_evaluation_that_a_signal_ended_is_lost(tmp_path):
    parts = of(
        tmp_path,
        begin(105, started=100),
        line("saved", 115, 10, 10, owes=True),
        line("end", 118, 10, 10, owes=True, evaluation=3),
        begin(125, started=120, step=10, owes=True),
        line("saved", 135, 10, 0, evaluation=10),
        line("end", 145, 20, 10, evaluation=10),
    )
    assert (parts[0].seconds["evaluation"], parts[0].seconds["lost"]) == (0, 3)
    assert (parts[1].seconds["evaluation"], parts[1].seconds["lost"]) == (10, 0) and add_up(parts)


def test_a_life_whose_checkpoints_were_passed_over_is_lost_afterwards(tmp_path):
    parts = of(
        tmp_path,
        begin(100, started=100),
        line("saved", 105, 5, 5),
        line("saved", 110, 10, 10),
        line("end", 110, 10, 10),
        begin(110, started=110, step=10),
        line("saved", 115, 15, 5),
        line("end", 115, 15, 5),
        begin(115, started=115, step=5),  # those of 10 and 15 were damaged
        line("end", 130, 20, 15),
    )
    assert [part.seconds["lost"] for part in parts] == [5, 5, 0] and add_up(parts)


def test_the_queue_is_told_by_slurm(tmp_path):
    parts = of(
        tmp_path,
        begin(1005, started=1002, job={"id": "7", "submitted": 400, "eligible": 400, "started": 1000}),
        line("end", 1015, 10, 10),
        begin(1305, started=1303, step=10, job={"id": "7", "submitted": 1014, "eligible": 1134, "started": 1300}),
        line("end", 1315, 20, 10),
    )
    assert [part.seconds["queued"] for part in parts] == [600, 1300 - 1015]
    assert [part.seconds["start"] for part in parts] == [5, 5]
    assert add_up(parts) and total(parts).wall_s == 1315 - 400


def test_a_life_that_still_runs_counts_until_its_last_sign(tmp_path):
    path = heartbeat_path(tmp_path, 0)
    path.parent.mkdir()
    path.touch()
    os.utime(path, (130, 130))
    (part,) = of(tmp_path, begin(105, started=100), line("steps", 120, 10, 15))
    assert (part.wall_s, part.seconds["training"], part.seconds["lost"]) == (30, 25, 0)
    assert read_lives(tmp_path)[0].ended == "killed or running"


def test_lives_of_one_process_do_not_overlap(tmp_path):
    parts = of(
        tmp_path,
        begin(105, started=100),
        line("end", 115, 10, 10),
        begin(116, started=100, step=10),
        line("end", 126, 20, 10),
    )
    assert parts[1].seconds["start"] == 1 and add_up(parts) and total(parts).wall_s == 26


def test_a_run_without_a_ledger_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no ledger.jsonl"):
        read_lives(tmp_path)
    assert goodput_of(tmp_path) == ""
    (tmp_path / LEDGER).write_text("{\n")
    with pytest.raises(ValueError, match="no line that can be read"):
        read_lives(tmp_path)


def test_a_real_run_that_is_killed_adds_up(tiny_index, tmp_path):
    run, settings = tmp_path / "run", tmp_path / "small.yaml"
    train = {"steps": 24, "global_batch": 4, "micro_batch": 4, "save_every": 10, "evaluate_every": 0, "log_every": 2}
    data = {"shards": str(tiny_index.root), "max_wordpieces": 20}
    settings.write_text(json.dumps({"model": SMALL, "train": train, "run": {"dir": str(run)}, "data": data}))
    program = [sys.executable, str(ROOT / "launch/train.py"), "--config", str(settings), "--resume", "train.threads=1"]
    began = time.time()
    run_ranks(program, run, 1, os.environ, Stop(signal.SIGKILL, behind=14))
    before = (run / LEDGER).read_bytes()
    run_ranks(program, run, 1, os.environ, None)
    took_s = time.time() - began
    assert (run / LEDGER).read_bytes().startswith(before)
    lives = read_lives(run)
    assert [life.ended for life in lives] == ["killed", "finished"]
    assert (lives[1].begin["step"], lives[1].last_step) in ((10, 24), (20, 24))
    parts = spent(lives)
    assert parts[0].seconds["lost"] > 0 == parts[1].seconds["lost"]
    whole = total(parts)
    assert sum(whole.seconds.values()) == pytest.approx(whole.wall_s, rel=0.01) and 0 < whole.wall_s < took_s
    told = json.loads(run_file("launch/goodput.py", run, "--json").stdout)
    assert [life["ended"] for life in told["lives"]] == ["killed", "finished"]
    assert told["total"]["goodput"] == pytest.approx(whole.goodput)
