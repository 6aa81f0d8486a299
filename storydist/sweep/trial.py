"""One trial: its runs as processes of launch/train.py, watched, pruned, told."""

import math
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optuna import Study
from optuna.trial import TrialState

from storydist.config import load_config
from storydist.sweep.settings import Sweep, setting
from storydist.sweep.study import OwnedTrial, next_trial
from storydist.training.log import METRICS
from storydist.training.preemption import REQUEUE, SAME_S
from storydist.verdict.report import read_metrics

OUTPUT = "output.log"  # what a run says, in its folder
POLL_S = 0.2  # well below SAME_S: a signal that reached the run too counts there as one
MAX_HANGS = 3
MAX_FAILURES = 3  # when none has ended well, the mistake is not in a trial's own settings


@dataclass(frozen=True)
class Program:
    """How a run is started: the command before its arguments, and the environment."""

    command: Sequence[str]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Outcome:
    """How a trial or a run of it ended; `value` is the metric at its last step when it is complete."""

    state: TrialState
    value: float | None = None
    error: str = ""


def run_trials(
    study: Study,
    folder: Path,
    sweep: Sweep,
    program: Program,
    asked: Callable[[], bool],
    say: Callable[[str], None],
) -> bool:
    """Runs trials until no more are needed: True; or until `asked()` comes true: False, and the trial under way is open
    for whoever comes next. Raises ValueError when trials only fail.
    """
    while not asked():
        with next_trial(study, folder, sweep) as owned:
            if owned is None:
                return True
            drawn = " ".join(setting(key, value) for key, value in owned.trial.params.items())
            say(f"{owned.path}: {drawn}")
            outcome = run_trial(owned, sweep, program, asked)
            if outcome is None:
                say(f"{owned.path}: stopped; the same command goes on with it")
                return False
            if outcome.error:
                owned.trial.set_user_attr("error", outcome.error)
            study.tell(owned.trial, outcome.value, state=outcome.state)
            value = "" if outcome.value is None else f", {sweep.settings.metric} {outcome.value:.6g}"
            say(f"{owned.path}: {outcome.state.name.lower()}{value}{outcome.error and ', '}{outcome.error}")
        _require_hope(study)
    return False


def _require_hope(study: Study) -> None:
    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    if len(ended) >= MAX_FAILURES and all(trial.state == TrialState.FAIL for trial in ended):
        last = ended[-1].user_attrs.get("error", "")
        raise ValueError(f"{len(ended)} trials have failed and none has ended well; the last: {last}")


def run_trial(owned: OwnedTrial, sweep: Sweep, program: Program, asked: Callable[[], bool]) -> Outcome | None:
    """Runs a trial to its end, going on with what former owners did of it. None when `asked()` came true before: what
    is done of it is kept, and the trial stays open.
    """
    values = []
    for seed in range(sweep.settings.seeds):
        run = owned.path if sweep.settings.seeds == 1 else owned.path / f"seed-{seed}"
        outcome = _Run(owned, sweep, run, seed).go(program, asked)
        if outcome is None or outcome.state != TrialState.COMPLETE:
            return outcome
        assert outcome.value is not None
        values.append(outcome.value)
    owned.trial.set_user_attr("values", values)
    return Outcome(TrialState.COMPLETE, math.fsum(values) / len(values))


class _Run:
    """One run of a trial. Only the first of several is shown to the pruner."""

    def __init__(self, owned: OwnedTrial, sweep: Sweep, run: Path, seed: int) -> None:
        self._trial, self._owner, self._path, self._shown = owned.trial, owned.owner, run, seed == 0
        self._metric = sweep.settings.metric
        drawn = [setting(key, value) for key, value in owned.trial.params.items()]
        own = [f"train.seed={sweep.base.train.seed + seed}", f"run.dir={run}"]
        self._words = [*sweep.overrides, *drawn, *own]
        self._config = sweep.config
        self._told = set(owned.told)
        self._seen: tuple[int, int, int] | None = None  # of which state of the file `_found` tells
        self._found: dict[int, float] = {}
        self._judged = not self._told  # a former owner may have ended between telling the pruner and asking it

    def go(self, program: Program, asked: Callable[[], bool]) -> Outcome | None:
        try:
            self._steps = load_config(self._config, self._words).train.steps
        except ValueError as error:  # settings that go alone, but not together
            return Outcome(TrialState.FAIL, error=" ".join(str(error).split()))
        self._path.mkdir(exist_ok=True)
        for _ in range(MAX_HANGS):
            if asked():
                return None
            if self._pruned():
                return Outcome(TrialState.PRUNED)
            code, pruned = self._live(program, asked)
            if pruned:
                return Outcome(TrialState.PRUNED)
            if code == 0:
                return self._complete()
            if asked():
                return None
            if code != REQUEUE:
                return Outcome(TrialState.FAIL, error=f"exit code {code}: {self._last_words()}")
            time.sleep(SAME_S)  # a signal to both of us may reach the run first
        return Outcome(TrialState.FAIL, error=f"left with {REQUEUE} {MAX_HANGS} times: {self._last_words()}")

    def _live(self, program: Program, asked: Callable[[], bool]) -> tuple[int, bool]:
        """One process from start to end: its exit code, and whether it was stopped because the trial is pruned."""
        command = [*program.command, "--config", str(self._config), *self._words, "--resume"]
        with (self._path / OUTPUT).open("ab") as output:
            process = subprocess.Popen(
                command, env=program.environment, stdout=output, stderr=subprocess.STDOUT, pass_fds=(self._owner,)
            )
        stopped = pruned = False
        try:
            while process.poll() is None:
                if not stopped and (asked() or self._pruned()):
                    stopped, pruned = True, not asked()
                    process.terminate()
                time.sleep(POLL_S)
        except BaseException:  # no run without its watcher
            process.terminate()
            process.wait()
            raise
        return process.returncode, pruned

    def _pruned(self) -> bool:
        """Tells the pruner of new evaluations; whether it gives the trial up (not at the last step)."""
        if not self._shown:
            return False
        if not self._judged:
            self._judged = True
            if self._trial.should_prune():
                return True
        for step, value in self._evaluations().items():
            if step not in self._told and step < self._steps:
                self._told.add(step)
                self._trial.report(value, step)
                if self._trial.should_prune():
                    return True
        return False

    def _complete(self) -> Outcome:
        value = self._evaluations().get(self._steps)
        if value is None:
            return Outcome(TrialState.FAIL, error=f"no {self._metric} at step {self._steps}; is its head switched off?")
        return Outcome(TrialState.COMPLETE, value)

    def _evaluations(self) -> dict[int, float]:
        """The metric by step, where it is defined. Asked for every POLL_S, so read only when the file has changed."""
        path = self._path / METRICS
        status = path.stat() if path.exists() else None
        seen = status and (status.st_ino, status.st_size, status.st_mtime_ns)
        if seen != self._seen:
            self._seen, self._found = seen, {}
            for entry in read_metrics(self._path):
                if entry["kind"] == "evaluation":
                    value = entry["metrics"].get(self._metric, {}).get("value")
                    if value is not None and math.isfinite(value):
                        self._found[entry["step"]] = value
        return self._found

    def _last_words(self) -> str:
        lines = (self._path / OUTPUT).read_text(errors="replace").splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        return ([*errors[-1:], *(line for line in reversed(lines) if line.strip()), "no word"])[0].strip()[:500]
