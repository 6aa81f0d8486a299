"""What a resumed run has to agree in with its checkpoint."""

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from storydist.training.checkpoint import Identity

FINGERPRINT = "fingerprint"
# May differ between a checkpoint and the run that resumes it: where, when and how fast, which changes rounding at most.
FREE_SECTIONS = ("run.", "data.cache.")
FREE_KEYS = frozenset(
    (
        *("data.shards", "data.threads", "data.prefetch", "data.verify", "data.max_skipped"),
        *("train.threads", "train.device", "train.strategy"),
        *("train.log_every", "train.save_every", "train.evaluate_every"),
        "train.hang_s",
        *("checkpoint.keep_last", "checkpoint.keep_best"),
    )
)
PLACES = ("run.", "data.shards", "data.cache.")  # where things lie may be called otherwise on another node
ABSENT = object()


def require_same(found: Identity, wanted: Identity, allow_change: Collection[str], folder: Path) -> list[str]:
    """Raises ValueError naming every setting in which a resumed run would differ from its checkpoint in `folder`.

    Returns those differences that `allow_change` names.
    """
    old, new = flatten(found.config), flatten(wanted.config)
    _require_known(allow_change, old.keys() | new.keys())
    changes = {
        key: f"{key} was {_told(old, key)}, is {_told(new, key)}"
        for key in sorted(old.keys() | new.keys())
        if not _is_free(key) and old.get(key, ABSENT) != new.get(key, ABSENT)
    }
    if found.fingerprint != wanted.fingerprint:
        changes[FINGERPRINT] = f"fingerprint of the shards was {found.fingerprint[:12]}, is {wanted.fingerprint[:12]}"
    problems = [change for key, change in changes.items() if key not in allow_change]
    if problems:
        raise ValueError(
            f"{folder} was made with other settings: {'; '.join(problems)}; "
            "give the former values, or allow each by name with --allow-change KEY"
        )
    return list(changes.values())


def of_all_ranks(identity: Identity) -> dict[str, Any]:
    """{key: value} of what every rank of a run has to begin with."""
    flat = flatten(identity.config)
    return {key: flat[key] for key in flat if not key.startswith(PLACES)} | {FINGERPRINT: identity.fingerprint}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of nested settings."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def _is_free(key: str) -> bool:
    return key in FREE_KEYS or key.startswith(FREE_SECTIONS)


def _told(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "not there"


def _require_known(allow_change: Collection[str], keys: Collection[str]) -> None:
    for key in allow_change:
        if key not in keys and key != FINGERPRINT:
            near = difflib.get_close_matches(key, [*keys, FINGERPRINT], n=1, cutoff=0.5)
            raise ValueError(f"--allow-change {key}: no such setting" + (f"; did you mean {near[0]}?" if near else ""))
