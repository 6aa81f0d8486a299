"""What a sweep's file may say; who has a trial; what a folder holds and what is drawn, whoever draws it."""

import errno
import fcntl
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from optuna.trial import TrialState

from storydist.sweep.owner import held
from storydist.sweep.settings import load_sweep, setting
from storydist.sweep.study import JOURNAL, next_trial, open_study, read_study, suggest
from tests.small_sweeps import SPACE, small_sweep, write_sweep

RANGE = {"low": 0.0, "high": 0.4}


def mistakes_of(folder: Path, *overrides: str, **changes) -> list[str]:
    """The lines of the one message that a sweep's file is refused with."""
    with pytest.raises(ValueError) as caught:
        small_sweep(folder, *overrides, **changes)
    return str(caught.value).splitlines()


def test_every_mistake_in_the_form_of_a_sweep_is_listed_at_once(tmp_path):
    space = {
        "model.dropout": {"low": 0.4, "high": 0.4},
        "optim.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True, "step": 1e-4},
        "optim.warmup_steps": {"low": 0, "high": 10, "log": True},
        "model.width": {"low": 8},
        "train.steps": {"choices": []},
        "train.micro_batch": {"choices": [4], "low": 1},
    }
    head, *lines = mistakes_of(tmp_path, space=space, metric="text R@11", trials=0, samplr="random")
    told = "\n".join(lines)
    assert head.endswith(f"sweep.yaml: {len(lines)} mistakes") and len(lines) == 9, told
    for words in (
        "space.model.dropout: low 0.4 is not below high 0.4",
        "space.optim.learning_rate: log needs low above 0 and takes no step",
        "space.optim.warmup_steps: log needs low above 0",
        "space.model.width: needs low and high, or choices",
        "space.train.steps.choices: ",
        "space.train.micro_batch: choices go with no low, high, log or step",
        "metric: 'text R@11' cannot choose the best checkpoint, because it is no metric; use ",
        "trials: input should be greater than or equal to 1, found 0",
        "samplr: no such key; did you mean sampler?",
    ):
        assert words in told, told


def test_a_sweep_without_a_metric_is_refused(tmp_path):
    assert "metric has to be given" in mistakes_of(tmp_path, metric=None)[0]


def test_every_setting_that_a_trial_could_not_take_is_listed_at_once(tmp_path):
    space = {
        "model.dropuot": RANGE,
        "model.dropout": {"low": 0.2, "high": 1.5},
        "model.width": {"choices": [64, "wide"]},
        "train.micro_batch": {"low": 0, "high": 4},
        "run.dir": {"choices": ["a", "b"]},
        "train.seed": {"low": 0, "high": 9},
    }
    head, *lines = mistakes_of(tmp_path, "train.evaluate_every=0", space=space)
    told = "\n".join(lines)
    assert head.endswith("7 mistake(s)") and len(lines) == 7, told
    for words in (
        "train.evaluate_every is 0, so no trial would have a metric",
        "space.model.dropuot: model.dropuot: no such key; did you mean model.dropout?",
        "space.model.dropout: model.dropout: input should be less than",
        "space.model.width: model.width: ",
        "space.train.micro_batch: train.micro_batch: ",
        "space.run.dir: is given by the sweep itself",
        "space.train.seed: is given by the sweep itself",
    ):
        assert words in told, told


def test_a_range_of_real_numbers_is_checked_between_its_ends(tmp_path):
    space = {"train.micro_batch": {"low": 1, "high": 4.0}}  # both ends are whole, what lies between is not
    assert "space.train.micro_batch: train.micro_batch: " in mistakes_of(tmp_path, space=space)[1]


@pytest.mark.parametrize(
    ("axis", "whole"),
    [
        ({"low": 1, "high": 4}, True),
        ({"low": 1, "high": 9, "step": 2}, True),
        ({"low": 1, "high": 4.0}, False),
        ({"low": 1, "high": 4, "step": 0.5}, False),
    ],
)
def test_whole_numbers_where_all_given_are(tmp_path, axis, whole):
    sweep = small_sweep(tmp_path, space={"evaluate.resamples" if whole else "optim.weight_decay": axis})
    study = open_study(tmp_path / "sweep", sweep)
    trial = study.ask()
    suggest(trial, "x", next(iter(sweep.settings.space.values())))
    assert isinstance(trial.params["x"], int) == whole


def test_choices_may_be_lists_and_reach_a_run_as_such(tmp_path):
    sweep = small_sweep(tmp_path, space={"model.frame_channels": {"choices": [[4, 8], [8, 16, 32]]}})
    words = sweep.settings.space["model.frame_channels"].words()
    found = [load_sweep(tmp_path / "sweep.yaml", [setting("model.frame_channels", w)]).base for w in words]
    assert [list(base.model.frame_channels) for base in found] == [[4, 8], [8, 16, 32]]
    assert "space.model.frame_channels" in mistakes_of(tmp_path, space={"model.frame_channels": {"choices": [[0]]}})[1]


def test_which_way_is_better_follows_from_the_metric(tmp_path):
    directions = [small_sweep(tmp_path, metric=metric).settings.direction for metric in ("text R@10", "text CE")]
    assert directions == ["maximize", "minimize"]


def test_the_command_line_comes_after_the_file(tmp_path):
    path = write_sweep(tmp_path, overrides=["train.steps=7", "model.width=32"])
    sweep = load_sweep(path, ["train.steps=9"], trials=5)
    assert (sweep.base.train.steps, sweep.base.model.width, sweep.settings.trials) == (9, 32, 5)


def test_a_lock_has_one_owner(tmp_path):
    with held(tmp_path / "lock", wait=False) as first, held(tmp_path / "lock", wait=False) as second:
        assert first is not None and second is None
    with held(tmp_path / "lock", wait=False) as third:
        assert third is not None


def test_a_child_that_got_the_descriptor_keeps_the_lock(tmp_path):
    path = tmp_path / "lock"
    child = [sys.executable, "-I", "-S", "-c", "import sys; sys.stdin.read()"]
    with held(path, wait=False) as owner:
        assert owner is not None
        heir = subprocess.Popen(child, stdin=subprocess.PIPE, pass_fds=(owner,))
        other = subprocess.Popen(child, stdin=subprocess.PIPE)
    try:
        with held(path, wait=False) as found:
            assert found is None
        heir.communicate()
        with held(path, wait=False) as found:  # the other child still lives, and was given nothing
            assert found is not None
    finally:
        heir.communicate()
        other.communicate()


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOLCK, ValueError, "keeps no locks .* choose a --dir on one that does"),
        (errno.ENOSYS, ValueError, "keeps no locks"),
        (errno.EOPNOTSUPP, ValueError, "keeps no locks"),
        (errno.EIO, OSError, "Input/output error"),
    ],
)
def test_a_lock_that_cannot_be_had(tmp_path, monkeypatch, number, kind, words):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(kind, match=words), held(tmp_path / "lock", wait=True):
        pass


def drawn(folder: Path, sweep, count: int) -> dict[int, dict]:
    """{number: settings} of `count` trials that are ended as they come."""
    study, found = open_study(folder, sweep), {}
    for _ in range(count):
        with next_trial(study, folder, sweep) as owned:
            assert owned is not None
            found[owned.trial.number] = owned.trial.params
            study.tell(owned.trial, state=TrialState.FAIL)
    return found


SEVERAL = SPACE | {"model.dropout": RANGE, "model.score_dropout": RANGE, "model.width": {"choices": [16, 32, 64]}}


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_trial_has_the_same_settings_whoever_draws_them(tmp_path, sampler):
    sweep = small_sweep(tmp_path, trials=4, space=SEVERAL, sampler=sampler)
    alone = drawn(tmp_path / "alone", sweep, 4)
    folder = tmp_path / "shared"
    lives = drawn(folder, sweep, 1)
    with ExitStack() as stack:  # two tasks at once, the later one begun by another life
        for study in (open_study(folder, sweep), open_study(folder, sweep)):
            owned = stack.enter_context(next_trial(study, folder, sweep))
            assert owned is not None
            lives[owned.trial.number] = owned.trial.params
            study.tell(owned.trial, state=TrialState.FAIL)
    assert lives | drawn(folder, sweep, 1) == alone
    assert all(params["model.dropout"] != params["model.score_dropout"] for params in alone.values())
    assert len({params["optim.learning_rate"] for params in alone.values()}) == 4
    assert drawn(tmp_path / "other", small_sweep(tmp_path, trials=4, space=SEVERAL, seed=1), 1)[0] != alone[0]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_trial_cut_off_while_it_was_drawn_is_drawn_on_as_if_it_had_not_been(tmp_path, sampler, monkeypatch):
    sweep = small_sweep(tmp_path, space=SEVERAL, sampler=sampler)
    whole = drawn(tmp_path / "whole", sweep, 1)[0]

    def cut_off(trial, key, axis):
        if key == "model.dropout":
            raise KeyboardInterrupt
        suggest(trial, key, axis)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("storydist.sweep.study.suggest", cut_off)
        drawn(tmp_path / "cut", sweep, 1)
    assert list(read_study(tmp_path / "cut").trials[0].params) == ["optim.learning_rate"]
    assert drawn(tmp_path / "cut", sweep, 1)[0] == whole


def test_a_folder_takes_one_sweep(tmp_path):
    folder = tmp_path / "sweep"
    open_study(folder, small_sweep(tmp_path))
    open_study(folder, small_sweep(tmp_path, "data.threads=3", "data.shards=elsewhere", trials=9))  # may differ
    space = {"optim.learning_rate": {"low": 1e-3, "high": 1e-2, "log": True}}
    with pytest.raises(ValueError) as caught:
        open_study(folder, small_sweep(tmp_path, "model.width=48", space=space, seeds=2))
    for words in (
        f"{folder} holds a sweep of other settings: ",
        "space.optim.learning_rate.low was 0.0001, is 0.001",
        "seeds was None, is 2",
        "model.width was ",
        ", is 48",
        "choose another --dir",
    ):
        assert words in str(caught.value)
    assert "high was" not in str(caught.value)


def test_a_journal_whose_last_line_is_half_written_is_mended(tmp_path):
    sweep, folder = small_sweep(tmp_path), tmp_path / "sweep"
    drawn(folder, sweep, 2)
    journal = folder / JOURNAL
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"')
    assert len(read_study(folder).trials) == 2
    drawn(folder, sweep, 1)
    assert [trial.state for trial in read_study(folder).trials] == [TrialState.FAIL] * 3
    assert not journal.with_name(f"{JOURNAL}.lock").exists()


def test_an_abandoned_trial_is_taken_up_before_a_new_one_is_asked_for(tmp_path):
    sweep, folder = small_sweep(tmp_path), tmp_path / "sweep"
    studies = [open_study(folder, sweep) for _ in range(3)]
    with next_trial(studies[0], folder, sweep) as first:
        assert first is not None and first.told == frozenset()
        first.trial.report(0.5, 2)
        with next_trial(studies[1], folder, sweep) as second:
            assert second is not None and second.trial.number == 1  # the first one is still owned
    with next_trial(studies[2], folder, sweep) as again:
        assert again is not None and again.trial.number == 0
        assert again.trial.params == first.trial.params and again.told == {2}
        studies[2].tell(again.trial, 0.5)
    with next_trial(open_study(folder, sweep), folder, sweep) as again:
        assert again is not None and again.trial.number == 1


def test_a_trial_that_its_owner_ends_just_then_is_not_taken_up(tmp_path, monkeypatch):
    sweep, folder = small_sweep(tmp_path), tmp_path / "sweep"
    owner, other = open_study(folder, sweep), open_study(folder, sweep)
    listed = other.get_trials
    with ExitStack() as stack:
        owned = stack.enter_context(next_trial(owner, folder, sweep))
        assert owned is not None

        def list_and_be_late(**options):
            found = listed(**options)
            owner.tell(owned.trial, 0.5)
            stack.close()
            monkeypatch.undo()
            return found

        monkeypatch.setattr(other, "get_trials", list_and_be_late)
        with next_trial(other, folder, sweep) as following:
            assert following is not None and following.trial.number == 1


def test_no_more_trials_than_wanted(tmp_path):
    sweep, folder = small_sweep(tmp_path, trials=2), tmp_path / "sweep"
    drawn(folder, sweep, 2)
    with next_trial(open_study(folder, sweep), folder, sweep) as none:
        assert none is None
    assert list(drawn(folder, load_sweep(tmp_path / "sweep.yaml", trials=3), 1)) == [2]


def test_a_folder_without_a_sweep_is_said_to_be_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no sweep"):
        read_study(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lines", [0, 1])
def test_a_sweep_that_was_killed_before_it_was_begun(tmp_path, lines):
    """An empty journal, or one that has a study of which it does not say yet what it searches."""
    sweep, folder = small_sweep(tmp_path), tmp_path / "sweep"
    open_study(folder, sweep)
    journal = folder / JOURNAL
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:lines]))
    with pytest.raises(FileNotFoundError, match="holds no sweep"):
        read_study(folder)
    assert len(drawn(folder, sweep, 1)) == len(read_study(folder).trials) == 1
