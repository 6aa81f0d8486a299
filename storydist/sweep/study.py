"""The trials of a sweep, in a journal that tasks on many nodes share: which there are, which one is next, whose it is.

DIR/journal.log       every trial: settings, figures, how it ended (Optuna's JournalFileBackend)
DIR/sweep.lock        held while a trial is chosen
DIR/trial-0007/       the run of a trial, or its runs: seed-0/, seed-1/, ...
DIR/trial-0007/.owner held by the task that has it, and by the run
"""

import logging
import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import Trial, TrialState

from storydist.sweep.owner import held
from storydist.sweep.settings import Axis, Sweep
from storydist.training.identity import flatten

JOURNAL, LOCK, OWNER = "journal.log", "sweep.lock", ".owner"
NAME = "sweep"
IDENTITY = "sweep"  # the user attribute that says what is searched

logging.getLogger("optuna").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


@dataclass(frozen=True)
class OwnedTrial:
    """A trial that is ours. `owner`: the lock's descriptor, for its run; `told`: at which steps the pruner knows it."""

    trial: Trial
    path: Path
    owner: int
    told: frozenset[int]


def trial_path(folder: Path, number: int) -> Path:
    return folder / f"trial-{number:04d}"


def open_study(folder: Path, sweep: Sweep) -> optuna.Study:
    """The sweep's study, begun if there is none. Raises ValueError when the folder's is of other settings."""
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder / LOCK, wait=True):
        study = optuna.create_study(
            storage=_storage(folder),
            study_name=NAME,
            direction=sweep.settings.direction,
            pruner=_pruner(sweep),
            load_if_exists=True,
        )
        found, wanted = study.user_attrs.get(IDENTITY), sweep.identity()
        if found is None:
            study.set_user_attr(IDENTITY, wanted)
        elif found != wanted:
            raise ValueError(
                f"{folder} holds a sweep of other settings: {_difference(found, wanted)}; choose another --dir"
            )
    return study


def read_study(folder: Path) -> optuna.Study:
    """The study of a folder, to look at. Raises FileNotFoundError when there is none."""
    if (folder / JOURNAL).is_file():
        storage = _storage(folder)
        if any(IDENTITY in study.user_attrs for study in storage.get_all_studies()):
            return optuna.load_study(study_name=NAME, storage=storage)
    raise FileNotFoundError(
        f"{folder} holds no sweep (none in {JOURNAL}); launch/sweep.py SWEEP.yaml --dir DIR begins one"
    )


def _storage(folder: Path) -> JournalStorage:
    path = folder / JOURNAL
    lock = JournalFileOpenLock(str(path))  # by a file's creation, which holds on NFS as well
    _drop_half_line(path, lock)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _drop_half_line(path: Path, lock: JournalFileOpenLock) -> None:
    """Removes a last line that a full disk or a kill cut short; the next one would be written behind it, and neither be
    read again.
    """
    lock.acquire()
    try:
        if path.exists():
            with path.open("r+b") as file:
                whole = file.read().rfind(b"\n") + 1
                file.truncate(whole)
                os.fsync(file.fileno())
    finally:
        lock.release()


def _difference(found: Any, wanted: Any) -> str:
    old, new = flatten(found), flatten(wanted)
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return "; ".join(f"{key.split('.', 1)[1]} was {old.get(key)!r}, is {new.get(key)!r}" for key in keys)


def _pruner(sweep: Sweep) -> optuna.pruners.BasePruner:
    settings, train = sweep.settings, sweep.base.train
    if settings.pruner == "median":
        return optuna.pruners.MedianPruner(settings.startup_trials, settings.warmup_steps)
    if settings.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=train.evaluate_every, max_resource=train.steps)
    return optuna.pruners.NopPruner()


def _sampler(sweep: Sweep, number: int, key: str) -> optuna.samplers.BaseSampler:
    """Of one setting of a trial, whatever was drawn before it: which task or life draws it is of no account."""
    entropy = [sweep.settings.seed, number, zlib.crc32(key.encode())]
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    if sweep.settings.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, multivariate=False, constant_liar=True)


@contextmanager
def next_trial(study: optuna.Study, folder: Path, sweep: Sweep) -> Iterator[OwnedTrial | None]:
    """A trial to run, ours until the block ends: one that nobody owns any more, or a new one. None: no more needed."""
    with ExitStack() as stack:
        with held(folder / LOCK, wait=True):
            owned = _abandoned(study, folder, stack)
            if owned is None and len(study.get_trials(deepcopy=False)) < sweep.settings.trials:
                owned = _own(study.ask(), folder, stack)
        if owned is not None:
            for key, axis in sweep.settings.space.items():
                study.sampler = _sampler(sweep, owned.trial.number, key)
                suggest(owned.trial, key, axis)
        yield owned


def _abandoned(study: optuna.Study, folder: Path, stack: ExitStack) -> OwnedTrial | None:
    for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        owned = _own(Trial(study, frozen._trial_id), folder, stack)
        if owned is None:
            continue
        now = study.get_trials(deepcopy=False)[frozen.number]  # its owner may have told more, its end as well
        if now.state == TrialState.RUNNING:
            return replace(owned, told=frozenset(now.intermediate_values))
    return None


def _own(trial: Trial, folder: Path, stack: ExitStack) -> OwnedTrial | None:
    path = trial_path(folder, trial.number)
    path.mkdir(exist_ok=True)
    owner = stack.enter_context(held(path / OWNER, wait=False))
    return None if owner is None else OwnedTrial(trial, path, owner, frozenset())


def suggest(trial: Trial, key: str, axis: Axis) -> None:
    """Draws a setting for a trial; one that was drawn before stays."""
    if axis.choices is not None:
        trial.suggest_categorical(key, axis.words())
        return
    assert axis.low is not None and axis.high is not None
    if axis.is_whole:
        trial.suggest_int(key, int(axis.low), int(axis.high), step=int(axis.step or 1), log=axis.log)
    else:
        trial.suggest_float(key, axis.low, axis.high, step=axis.step, log=axis.log)
