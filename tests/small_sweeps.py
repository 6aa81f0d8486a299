"""Small sweeps for tests, and a program in the place of launch/train.py that does what it is told."""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from storydist.sweep.settings import Sweep, load_sweep
from storydist.sweep.trial import Program

STEPS = 6
METRIC = "text R@10"  # higher is better
SPACE: dict[str, Any] = {"optim.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
# A life is told by {"values": {step: metric}, "code": exit code, "says": last words, "waits": until TERM, then the code
# or 75}. Each writes down its arguments, the lock of the owner if it has one, and the signal that it got.
PROGRAM = """
import json, os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
lives = json.loads(open(sys.argv[1]).read())
run = next(word for word in sys.argv if word.startswith("run.dir="))[len("run.dir="):]
with open(run + "/lives", "a+") as file:
    file.write(json.dumps(sys.argv[2:]) + chr(10))
    file.seek(0)
    number = len(file.readlines()) - 1
own = next((told for end, told in lives.items() if run.endswith(end)), lives.get("", [{}]))
life = own[min(number, len(own) - 1)]
with open(run + "/owned", "w") as file:
    open_files = (os.path.realpath("/proc/self/fd/" + number) for number in os.listdir("/proc/self/fd"))
    file.write(" ".join(path for path in open_files if path.endswith(".owner")))
with open(run + "/metrics.jsonl", "a") as file:
    for step, value in life.get("values", {}).items():
        metrics = {METRIC: {"value": value}}
        file.write(json.dumps({"kind": "evaluation", "split": "val", "step": int(step), "metrics": metrics}) + chr(10))
print(life.get("says", ""), flush=True)
if life.get("waits"):
    open(run + "/waits", "w").close()
    if signal.sigtimedwait([signal.SIGTERM], 60):
        open(run + "/got-term", "w").close()
        os._exit(life.get("code", 75))
os._exit(life.get("code", 0))
"""


def write_sweep(folder: Path, **changes: Any) -> Path:
    """A sweep's file and that of its runs; a change to None leaves a key out."""
    train = {"steps": STEPS, "evaluate_every": 2}
    (folder / "run.yaml").write_text(yaml.safe_dump({"data": {"shards": "none"}, "train": train}))
    values = {"config": "run.yaml", "space": SPACE, "metric": METRIC, "trials": 3, "sampler": "random"} | changes
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}, sort_keys=False))
    return path


def small_sweep(folder: Path, *overrides: str, **changes: Any) -> Sweep:
    return load_sweep(write_sweep(folder, **changes), overrides)


def told_program(folder: Path, lives: dict[str, list[dict[str, Any]]]) -> Program:
    """`lives`: how each life of a run goes, the last one again and again, by the end of the run's path; "": others."""
    script, told = folder / "program.py", folder / "lives.json"
    script.write_text(f"METRIC = {METRIC!r}\n{PROGRAM}")
    told.write_text(json.dumps(lives))
    return Program([sys.executable, "-I", "-S", str(script), str(told)], {})


def lives_of(run: Path) -> list[list[str]]:
    """The arguments of each process that a run had."""
    path = run / "lives"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
