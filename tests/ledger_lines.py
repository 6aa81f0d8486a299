"""Lines of a run's ledger, for tests of what is made of them."""

import json
from pathlib import Path

from storydist.training.ledger import LEDGER


def begin(at: float, started: float, step: int = 0, owes: bool = False, **facts: object) -> dict:
    place = {"at": at, "step": step, "owes_evaluation": owes}
    return {"kind": "begin", **place, "started": started, "steps": 20, "job": {}, "former_sign": None, **facts}


def line(kind: str, at: float, step: int, training: float, *, owes: bool = False, **seconds: float) -> dict:
    spent = {"training": training, "waiting": 0.0, "saving": 0.0, "evaluation": 0.0, **seconds}
    place = {"at": at, "step": step, "owes_evaluation": owes}
    return {"kind": kind, **place, "seconds": spent, "error": ""}


def written(step: int, write_s: float, stall_s: float, waited_s: float = 0.0) -> dict:
    return {"kind": "written", "at": 0, "step": step, "write_s": write_s, "stall_s": stall_s, "waited_s": waited_s}


def write_ledger(run: Path, *lines: dict) -> None:
    run.mkdir(exist_ok=True)
    (run / LEDGER).write_text("".join(json.dumps(one) + "\n" for one in lines))
