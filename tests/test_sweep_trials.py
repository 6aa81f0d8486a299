"""A trial from its runs to its end, with a program in the place of launch/train.py; the command, with the real one."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from storydist.sweep.owner import held
from storydist.sweep.report import print_table, ranked, write_page
from storydist.sweep.study import OWNER, open_study, read_study
from storydist.sweep.trial import run_trials
from storydist.training.keep import list_steps
from storydist.verdict.report import read_metrics
from tests.small_runs import SMALL
from tests.small_sweeps import METRIC, SPACE, lives_of, small_sweep, told_program
from tests.story_tables import ROOT, environment, run_file

Start = Callable[..., subprocess.Popen[bytes]]
GOOD = [{"values": {2: 0.1, 4: 0.9, 6: 0.5}}]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    for name, value in {"POLL_S": 0.01, "SAME_S": 0.0}.items():
        monkeypatch.setattr(f"storydist.sweep.trial.{name}", value)


class Ran:
    """A sweep in DIR/sweep that `go`es on until it ends or `asked()`; what is said of it."""

    def __init__(self, folder: Path, *overrides: str, **changes) -> None:
        self.sweep = small_sweep(folder, *overrides, **changes)
        self.folder, self._at = folder / "sweep", folder
        self.said: list[str] = []

    def go(self, lives, asked=lambda: False) -> bool:
        study = open_study(self.folder, self.sweep)
        program = told_program(self._at, lives)
        return run_trials(study, self.folder, self.sweep, program, asked, self.said.append)

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return read_study(self.folder).trials

    def run(self, name: str) -> Path:
        return self.folder / name


def test_the_value_of_a_trial_is_the_metric_at_its_last_step(tmp_path):
    ran = Ran(tmp_path, "model.width=48", trials=1)
    assert ran.go({"": GOOD})
    (trial,) = ran.trials
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.5)
    run, rate = ran.run("trial-0000"), trial.params["optim.learning_rate"]
    own = [f"optim.learning_rate={rate!r}", "train.seed=0", f"run.dir={run}", "--resume"]
    assert lives_of(run) == [["--config", str(tmp_path / "run.yaml"), "model.width=48", *own]]
    assert ran.said == [f"{run}: optim.learning_rate={rate!r}", f"{run}: complete, {METRIC} 0.5"]


def test_several_seeds_count_by_their_mean_and_the_pruner_sees_the_first(tmp_path):
    ran = Ran(tmp_path, "train.seed=5", trials=1, seeds=2)
    first = [{"values": {2: 0.25}, "code": 75}, {"values": {6: 0.5}}]
    assert ran.go({"seed-0": first, "seed-1": [{"values": {4: 0.5}, "code": 75}, {"values": {6: 0.25}}]})
    (trial,) = ran.trials
    assert trial.value == 0.375 and trial.user_attrs["values"] == [0.5, 0.25]
    assert trial.intermediate_values == {2: 0.25}
    words = [lives_of(ran.run(f"trial-0000/seed-{seed}"))[0] for seed in (0, 1)]
    assert ["train.seed=5" in words[0], "train.seed=6" in words[1]] == [True, True]


def test_of_several_seeds_one_that_fails_ends_the_trial(tmp_path):
    ran = Ran(tmp_path, trials=1, seeds=3)
    assert ran.go({"seed-0": GOOD, "seed-1": [{"code": 1, "says": "Killed"}]})
    assert ran.trials[0].state == TrialState.FAIL and not ran.run("trial-0000/seed-2").exists()


@pytest.mark.parametrize(
    ("life", "error"),
    [
        ({"code": 2, "says": "error: the shards are gone\nsome more"}, "exit code 2: error: the shards are gone"),
        ({"code": 1, "says": "Traceback\nKeyError: 'a'\n\n"}, "exit code 1: KeyError: 'a'"),
        ({"code": 3}, "exit code 3: no word"),
        ({"code": 75, "says": "a rank hangs"}, "left with 75 3 times: a rank hangs"),
        ({"values": {4: 0.5}}, f"no {METRIC} at step 6; is its head switched off?"),
        ({"values": {6: float("nan")}}, f"no {METRIC} at step 6; is its head switched off?"),
        ({"values": {6: None}}, f"no {METRIC} at step 6; is its head switched off?"),
    ],
)
def test_a_trial_that_fails_is_listed_with_its_last_words_and_ends_itself_only(tmp_path, life, error):
    ran = Ran(tmp_path, trials=2, pruner="none")
    assert ran.go({"trial-0000": [life], "": GOOD})
    assert [trial.state for trial in ran.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert ran.trials[0].user_attrs["error"] == error
    assert ran.said[1].endswith(f": fail, {error}")
    assert len(lives_of(ran.run("trial-0000"))) == (3 if life.get("code") == 75 else 1)


def test_a_run_that_asks_to_be_run_again_is(tmp_path):
    ran = Ran(tmp_path, trials=1)
    assert ran.go({"": [{"values": {2: 0.1}, "code": 75}, {"code": 75}, *GOOD]})
    assert ran.trials[0].value == 0.5 and len(lives_of(ran.run("trial-0000"))) == 3


def test_settings_that_go_alone_but_not_together_fail_without_a_run(tmp_path):
    space = {"train.precision": {"choices": ["fp32", "fp16"]}, "train.strategy": {"choices": ["ddp", "zero2"]}}
    ran = Ran(tmp_path, trials=8, space=space)
    assert ran.go({"": GOOD})
    ends = {}
    for trial in ran.trials:
        started = bool(lives_of(ran.run(f"trial-{trial.number:04d}")))
        ends[tuple(trial.params.values())] = (trial.state, started, trial.user_attrs.get("error", ""))
    state, started, error = ends.pop(("fp16", "zero2"))
    assert (state, started) == (TrialState.FAIL, False) and "fp16 goes with strategy ddp only" in error
    assert ends and set(ends.values()) == {(TrialState.COMPLETE, True, "")}


def test_trials_that_only_fail_end_the_sweep(tmp_path):
    ran = Ran(tmp_path, trials=9)
    with pytest.raises(ValueError, match=r"^3 trials have failed and none has ended well; the last: exit code 2: .*x$"):
        ran.go({"": [{"code": 2, "says": "error: x"}]})
    assert [trial.state for trial in ran.trials] == [TrialState.FAIL] * 3


def test_trials_that_fail_after_one_that_ended_well_do_not(tmp_path):
    ran = Ran(tmp_path, trials=5)
    assert ran.go({"trial-0000": GOOD, "": [{"code": 2}]})
    assert len(ran.trials) == 5


# Its second life tells the pruner, for certain, what its first one has written.
BEST = [{"values": {2: 0.9, 4: 0.9}, "code": 75}, {"values": {6: 0.9}}]


def test_a_trial_that_the_pruner_gives_up_is_stopped_like_a_job(tmp_path):
    ran = Ran(tmp_path, trials=2, startup_trials=1)
    assert ran.go({"trial-0000": BEST, "trial-0001": [{"values": {2: 0.1}, "waits": True}]})
    assert [trial.state for trial in ran.trials] == [TrialState.COMPLETE, TrialState.PRUNED]
    assert ran.trials[0].intermediate_values == {2: 0.9, 4: 0.9}  # the last step's is not for the pruner
    assert ran.trials[1].intermediate_values == {2: 0.1}
    assert (ran.run("trial-0001") / "got-term").exists() and len(lives_of(ran.run("trial-0001"))) == 1
    assert ran.said[-1].endswith("trial-0001: pruned")


def test_the_last_evaluation_is_for_the_value_and_not_for_the_pruner(tmp_path):
    ran = Ran(tmp_path, trials=2, startup_trials=1)
    late = [{"values": {2: 0.95, 4: 0.95, 6: 0.1}, "code": 75}, {}]
    assert ran.go({"trial-0000": BEST, "trial-0001": late})
    assert [trial.value for trial in ran.trials] == [0.9, 0.1]
    assert ran.trials[1].intermediate_values == {2: 0.95, 4: 0.95}


def test_a_trial_that_was_to_be_pruned_when_its_task_ended_is_not_run_again(tmp_path):
    ran = Ran(tmp_path, trials=2, startup_trials=1)
    ran.go({"": BEST}, asked=lambda: len(ran.said) == 2)
    assert len(ran.trials) == 1
    trial = open_study(ran.folder, ran.sweep).ask()  # a task that told the pruner and was gone
    trial.report(0.1, 2)
    assert ran.go({"": BEST})
    assert ran.trials[1].state == TrialState.PRUNED and lives_of(ran.run("trial-0001")) == []


@pytest.mark.parametrize("code", [75, 1])  # a run that a stop ends badly is of no other account
def test_a_stop_leaves_the_trial_open_and_the_next_call_goes_on_with_it(tmp_path, code):
    ran = Ran(tmp_path, trials=2, pruner="none")
    run = ran.run("trial-0000")
    told = {"trial-0000": [{"values": {2: 0.1}, "waits": True, "code": code}, {"values": {6: 0.5}}], "": GOOD}
    assert not ran.go(told, asked=(run / "waits").exists)
    (trial,) = ran.trials
    assert trial.state == TrialState.RUNNING and (run / "got-term").exists()
    assert (run / "owned").read_text() == str(run / OWNER)  # by the run too, should its task be killed
    assert ran.said[-1] == f"{run}: stopped; the same command goes on with it"
    assert ran.go(told)
    assert [trial.value for trial in ran.trials] == [0.5, 0.5] and ran.trials[0].params == trial.params
    first, second = lives_of(run)
    assert first == second and "--resume" in second


def test_a_stop_before_the_first_trial_begins_none(tmp_path):
    ran = Ran(tmp_path)
    assert not ran.go({"": GOOD}, asked=lambda: True)
    assert ran.trials == []


def test_a_watcher_that_fails_takes_its_run_along(tmp_path):
    ran = Ran(tmp_path, trials=1)
    run = ran.run("trial-0000")

    def asked() -> bool:
        if (run / "waits").exists():
            raise OSError("the disk is gone")
        return False

    with pytest.raises(OSError, match="the disk is gone"):
        ran.go({"": [{"waits": True}]}, asked)
    assert (run / "got-term").exists() and ran.trials[0].state == TrialState.RUNNING
    with held(run / OWNER, wait=False) as owner:
        assert owner is not None


def test_the_report_has_the_best_first_then_what_did_not_end_well(tmp_path, capsys):
    ran = Ran(tmp_path, trials=5, startup_trials=1)
    told = {
        "0000": BEST,
        "0001": [{"values": {2: 0.1}, "waits": True}],
        "0002": [{"code": 2, "says": "error: <b> gone"}],
    }
    assert not ran.go(
        told | {"0003": [{"values": {6: 0.95}}], "0004": [{"waits": True}]}, (ran.run("trial-0004/waits")).exists
    )
    study = read_study(ran.folder)
    assert [trial.number for trial in ranked(study)] == [3, 0, 1, 2, 4]
    page = write_page(study, ran.folder).read_text()
    assert "2 complete, 1 pruned, 1 failed, 1 open; higher is better" in page
    assert "&lt;b&gt; gone" in page and "<b>" not in page and page.count("<svg") == 3
    assert f"Best: trial 3 in {ran.run('trial-0003')}" in page
    print_table(study)
    assert "error: <b> gone" in capsys.readouterr().out


@pytest.fixture
def start(tmp_path) -> Iterator[Start]:
    """Starts a sweep's command in the test's folder, in a process group with its run."""
    processes: list[subprocess.Popen[bytes]] = []

    def started(script: Path, **variables: str) -> subprocess.Popen[bytes]:
        words = [script, tmp_path / "sweep.yaml", "--dir", tmp_path / "sweep"]
        given = environment() | {"PYTHONPATH": str(ROOT)} | variables
        with (tmp_path / "output").open("ab") as output:
            command = [sys.executable, *map(str, words)]
            process = subprocess.Popen(command, env=given, stdout=output, stderr=output, start_new_session=True)
        processes.append(process)
        return process

    yield started
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until(there: Callable[[], object], process: subprocess.Popen[bytes], output: Path) -> None:
    while not there():
        assert process.poll() is None, output.read_text()
        time.sleep(0.02)


@pytest.fixture
def told_command(tmp_path) -> Callable[[dict], Path]:
    """The command, with a program in the place of launch/train.py beside it."""

    def made(lives: dict) -> Path:
        words = list(told_program(tmp_path, lives).command)
        (tmp_path / "launch").mkdir(exist_ok=True)
        kept = f"open({str(tmp_path / 'environment')!r}, 'w').write(json.dumps(dict(os.environ)))"
        (tmp_path / "launch/train.py").write_text(
            f"import json, os, sys\n{kept}\nos.execv({words[0]!r}, {words!r} + sys.argv[1:])\n"
        )
        return Path(shutil.copy(ROOT / "launch/sweep.py", tmp_path / "launch"))

    return made


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_to_a_task_stops_its_run_and_ends_it_with_75(tmp_path, told_command, start, number):
    small_sweep(tmp_path, trials=1)
    run, output = tmp_path / "sweep/trial-0000", tmp_path / "output"
    process = start(told_command({"": [{"waits": True}, *GOOD]}), RANK="3", WORLD_SIZE="4", OTHER="kept")
    wait_until((run / "waits").exists, process, output)
    process.send_signal(number)
    assert process.wait(60) == 75 and (run / "got-term").exists(), output.read_text()
    assert output.read_text().endswith(f"{run}: stopped; the same command goes on with it\n")
    assert read_study(tmp_path / "sweep").trials[0].state == TrialState.RUNNING
    given = json.loads((tmp_path / "environment").read_text())  # a run of its own, no rank of the sweep's launcher
    assert "RANK" not in given and "WORLD_SIZE" not in given and given["OTHER"] == "kept"
    assert "ACCELERATE_MIXED_PRECISION" in given  # by which it knows that it has to stop when the sweep is gone


def test_trials_that_only_fail_end_the_command_with_2(tmp_path, told_command, start):
    small_sweep(tmp_path, trials=4)
    process = start(told_command({"": [{"code": 2, "says": "error: the shards are gone"}]}))
    assert process.wait(60) == 2
    last = (tmp_path / "output").read_text().splitlines()[-1]
    assert (
        last == "error: 3 trials have failed and none has ended well; the last: exit code 2: error: the shards are gone"
    )


def write_real_sweep(folder: Path, shards: Path, steps: int) -> None:
    train = {"steps": steps, "global_batch": 4, "micro_batch": 4, "threads": 1, "device": "cpu", "log_every": 1}
    train |= {"evaluate_every": steps, "evaluate_split": "test", "save_every": 5}
    evaluate = {"generate_windows": 0, "resamples": 10, "num_examples": 1}
    data = {"shards": str(shards), "max_wordpieces": 20}
    settings = {"model": SMALL, "train": train, "data": data, "evaluate": evaluate}
    sweep = {"config": "run.yaml", "space": SPACE, "metric": "text CE", "trials": 2, "pruner": "none"}
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))


def test_a_sweep_that_is_killed_goes_on_with_the_same_trials(tiny_index, tmp_path, start):
    write_real_sweep(tmp_path, tiny_index.root, steps=40)
    folder, output = tmp_path / "sweep", tmp_path / "output"
    runs = [folder / f"trial-000{number}" for number in (0, 1)]
    process = start(ROOT / "launch/sweep.py")
    wait_until(lambda: list_steps(runs[0]), process, output)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    drawn = read_study(folder).trials[0].params

    process = start(ROOT / "launch/sweep.py")
    report = run_file("launch/sweep.py", folder, "--report")  # while the sweep goes on
    assert report.returncode == 0 and "1 open; lower is better" in report.stdout
    assert process.wait(120) == 0, output.read_text()
    trials = read_study(folder).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2 and trials[0].params == drawn
    for run, trial in zip(runs, trials, strict=True):
        lines = read_metrics(run)
        assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 41))
        (last,) = [line for line in lines if line["kind"] == "evaluation"]
        assert trial.value == last["metrics"]["text CE"]["value"]
    assert [len(re.findall("step 0 of 40,", (run / "output.log").read_text())) for run in runs] == [1, 1]
    assert "2 complete; lower is better" in output.read_text()
    assert "2 complete" in (page := (folder / "sweep.html").read_text()) and "<svg" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["configs/sweeps/demo.yaml"], "--dir DIR is needed: the folder of the sweep"),
        (["none", "--report", "--trials", "3"], "--report takes the sweep's folder and nothing else"),
        (["none", "--report"], "none holds no sweep"),
        (
            ["configs/sweeps/demo.yaml", "--dir", "none", "model.widht=3"],
            "model.widht: no such key; did you mean model.width?",
        ),
    ],
)
def test_the_command_refuses(tmp_path, words, message):
    none = tmp_path / "none"
    done = run_file("launch/sweep.py", *(str(none) if word == "none" else word for word in words))
    assert done.returncode == 2 and message in done.stderr
    assert "Traceback" not in done.stderr and not none.exists()
