"""A life's ledger: every moment is of one kind, and what a kill or a full disk leaves can be read."""

import json
import time
from pathlib import Path

import pytest

from storydist.training.checkpoint import TrainState
from storydist.training.ledger import EVALUATION, SAVING, TRAINING, WAITING, Ledger, process_start

FACTS = {"steps": 10, "world_size": 1}


@pytest.fixture
def clock(monkeypatch):
    """Moves only when it is told to."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    return passes


def ledger(path: Path) -> Ledger:
    return Ledger(path, former_sign=None, facts=FACTS)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_moment_is_of_one_kind(tmp_path, clock):
    book, state = ledger(tmp_path / "l"), TrainState()
    with book.life(state):
        clock(100)  # start-up
        with book.spent(WAITING):
            clock(1)
        clock(10)
        state.step = 1
        book.note("steps")
        with book.spent(EVALUATION):
            clock(4)
            with book.spent(SAVING):
                clock(2)
            clock(3)
        clock(20)
    begin, steps, end = lines(tmp_path / "l")
    assert (begin["kind"], begin["step"], begin["steps"]) == ("begin", 0, 10)
    assert (steps["step"], steps["seconds"][TRAINING]) == (1, 10)
    assert end["seconds"] == {TRAINING: 30, WAITING: 1, SAVING: 2, EVALUATION: 7}
    assert (end["kind"], end["error"]) == ("end", "")


def test_an_error_is_named_and_its_kind_is_left(tmp_path, clock):
    book = ledger(tmp_path / "l")
    with pytest.raises(KeyError), book.life(TrainState()):
        with pytest.raises(OSError), book.spent(WAITING):
            raise OSError
        clock(5)
        raise KeyError
    assert lines(tmp_path / "l")[-1]["error"] == "KeyError"
    assert lines(tmp_path / "l")[-1]["seconds"][TRAINING] == 5


def test_a_finished_run_has_no_life(tmp_path):
    book = ledger(tmp_path / "l")
    with book.life(TrainState(step=10)), book.spent(SAVING):
        pass
    assert not (tmp_path / "l").exists()


def test_lives_follow_each_other_and_a_cut_line_harms_only_itself(tmp_path):
    for _ in range(2):
        book = ledger(tmp_path / "l")
        with book.life(TrainState()), book.spent(WAITING):
            pass
        with (tmp_path / "l").open("a") as file:
            file.write('{"kind": "ste')
    texts = (tmp_path / "l").read_text().splitlines()
    assert [json.loads(text)["kind"] for text in texts if text.endswith("}")] == ["begin", "end"] * 2
    assert len(texts) == 6


def test_a_folder_that_refuses_stops_nothing(tmp_path):
    book = ledger(tmp_path / "no" / "such" / "folder")
    with book.life(TrainState()), book.spent(WAITING):
        book.note("steps")
        book.written(1, write_s=0.1)


def test_the_process_began_before_now():
    uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    assert 0 <= time.time() - process_start() <= uptime_s
