"""What a run tells has no gap and nothing twice, however often it was killed."""

import json
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from storydist.training.checkpoint import TrainState
from storydist.training.log import LOG, METRICS, RunLog

VALUES = {"loss": 1.0, "skipped_samples": 0, "samples_per_s": 1.0, "data_wait_share": 0.0}
EVALUATION: dict[str, Any] = {"split": "val", "num_skipped": 0, "metrics": {"image L1": {"value": 1.0, "floors": {}}}}


def train(log: RunLog, *steps: int) -> None:
    for step in steps:
        log.train(step, 9, VALUES | {"loss": float(step)})


def lines(run: Path, kind: str = "train") -> list[int]:
    records = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    return [record["step"] for record in records if record["kind"] == kind]


def drawn(run: Path, tag: str = "train/loss") -> list[int]:
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    return [event.step for event in board.Scalars(tag)]


def test_a_run_killed_behind_its_checkpoint_tells_each_step_once(tmp_path):
    killed = RunLog(tmp_path, TrainState(), 9)
    train(killed, 1, 2, 3)
    killed.to_disk()  # as the checkpoint of step 3 does
    train(killed, 4, 5)
    killed.board.flush()
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 6, "ki')
    (events,) = (tmp_path / "tensorboard").iterdir()
    events.write_bytes(events.read_bytes()[:-7])
    (tmp_path / f".{METRICS}.tmp-1").touch()
    again = RunLog(tmp_path, TrainState(step=3), 9)  # the former is never closed
    train(again, 4, 5, 6)
    again.to_disk()
    assert lines(tmp_path) == drawn(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert not (tmp_path / f".{METRICS}.tmp-1").exists()


def test_an_evaluation_that_is_made_again_is_told_once(tmp_path):
    killed = RunLog(tmp_path, TrainState(), 9)
    train(killed, 1, 2)
    killed.evaluation(2, EVALUATION)
    killed.to_disk()
    again = RunLog(tmp_path, TrainState(step=2, owes_evaluation=True), 9)
    again.evaluation(2, EVALUATION)
    train(again, 3)
    again.to_disk()
    assert lines(tmp_path) == drawn(tmp_path) == [1, 2, 3]
    assert lines(tmp_path, "evaluation") == drawn(tmp_path, "val/image L1") == [2]


def test_a_run_that_starts_afresh_tells_nothing_of_the_former(tmp_path, monkeypatch):
    # Names of event files hold their second, and a number that grows within the process: 10 sorts before 9.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(9))
    killed = RunLog(tmp_path, TrainState(), 9)
    train(killed, 1, 2)
    killed.to_disk()
    again = RunLog(tmp_path, TrainState(), 9)
    train(again, 1)
    again.to_disk()
    assert lines(tmp_path) == drawn(tmp_path) == [1]


def test_a_damaged_line_takes_no_other_with_it(tmp_path, capsys):
    with RunLog(tmp_path, TrainState(), 9) as log:
        train(log, 1, 2, 3)
    data = (tmp_path / METRICS).read_bytes()
    (tmp_path / METRICS).write_bytes(data.replace(b'"step": 2', b'"st\xffp": 2'))
    with RunLog(tmp_path, TrainState(step=3), 9) as log:
        train(log, 4)
    assert lines(tmp_path) == [1, 3, 4]
    assert "metrics.jsonl: 1 damaged line(s) left out" in capsys.readouterr().out


def test_a_full_disk_is_told_with_the_file_and_all_is_closed(tmp_path):
    with pytest.raises(OSError, match="No space left on device") as told, RunLog(tmp_path, TrainState(), 9) as log:
        log._metrics = full = open("/dev/full", "a")  # noqa: SIM115
        train(log, 1)
    assert told.value.filename == str(tmp_path / METRICS)
    assert full.closed and log._log.closed
    assert "stopped by OSError" in (tmp_path / LOG).read_text()


def test_a_full_disk_does_not_hide_what_the_run_ends_with(tmp_path):
    with pytest.raises(KeyError, match="a defect"), RunLog(tmp_path, TrainState(), 9) as log:
        log._log = log._metrics = open("/dev/full", "a")  # noqa: SIM115
        log._metrics.write("waits to be flushed")
        raise KeyError("a defect")
