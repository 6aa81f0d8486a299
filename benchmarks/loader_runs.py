"""Which loader is read how for which table, and the processes in which that happens."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.peers import BY_NAME, OUR_TARS

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 900
TABLES = ("jpeg", "jpeg0", "headline", "raw", "scaling", "decoders")
PEERS = ("webdataset", "mosaicml", "litdata", "energon", "hf_streaming", "hf_map")
LOADERS = ("ours", *PEERS)
RAW_FRAMES = 80_000  # a run over raw frames reads at least so many, or MAX_EPOCHS: opening and starting hardly count
MAX_EPOCHS = 30
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


@dataclass(frozen=True)
class Run:
    """One measurement of a round. Contestant "decoder" is a decoder alone; `ranks` processes read at the same time."""

    contestant: str
    decoder: str
    workers: int = 0
    layout: str = "windows"
    unit: str = "story"
    epochs: int = 1
    ranks: int = 1

    @property
    def frames(self) -> str:
        """How frames are stored."""
        return "raw" if self.decoder == "raw" else "original"

    @property
    def name(self) -> str:
        parts = [self.contestant, self.decoder, f"w{self.workers}"]
        parts += ["once"] * (self.layout == "once") + ["window"] * (self.unit == "window")
        return "-".join(parts + [f"{self.ranks} ranks"] * (self.ranks > 1))


def workers_of(contestant: str, workers: int) -> int:
    """A loader without workers reads in its own process; storydist has at least one thread."""
    return max(workers, 1) if contestant == "ours" else workers


def jpeg_runs(workers: int) -> list[Run]:
    """Everyone with the fast decoder; with workers also the two leanest peers sending each frame once."""
    runs = [Run(name, "fast", workers_of(name, workers)) for name in LOADERS]
    return runs + [Run(name, "fast", workers, layout="once") for name in ("litdata", "hf_map") if workers]


def headline_runs() -> list[Run]:
    """Everyone as its documentation has it, with Pillow; webdataset and storydist with the fast decoder too."""
    return [Run(name, "pil", 2) for name in LOADERS] + [Run(name, "fast", 2) for name in ("webdataset", "ours")]


def raw_runs(num_frames: int) -> list[Run]:
    many = min(MAX_EPOCHS, -(-RAW_FRAMES // num_frames))
    few = -(-many // 4)  # of what is several times slower
    ours = [Run("ours", "raw", threads, unit=unit, epochs=many) for unit in ("story", "window") for threads in (1, 2)]
    tars = [Run(name, "raw", workers, epochs=few) for name in ("webdataset_same", "webdataset") for workers in (0, 2)]
    limits = [Run("memory_map", "raw", unit=unit, epochs=4 * many) for unit in ("story", "window")]
    return [*ours, *tars, *limits]


def scaling_runs() -> list[Run]:
    return [Run("ours", "fast", 1), Run("ours", "fast", 2), Run("ours", "fast", 1, ranks=2)]


def decoder_runs() -> list[Run]:
    return [Run("decoder", decoder) for decoder in ("pil", "fast", "scaled")]


def runs_of(tables: Sequence[str], only: Sequence[str], num_frames: int) -> list[Run]:
    """The runs of these tables, each once, of the contestants in `only` (empty: all). Limits are always among them."""
    made = {
        "jpeg": jpeg_runs(2),
        "jpeg0": jpeg_runs(0),
        "headline": headline_runs(),
        "raw": raw_runs(num_frames),
        "scaling": scaling_runs(),
        "decoders": decoder_runs(),
    }
    wanted = [run for table in tables for run in made[table]]
    base_names = {"webdataset_same": "webdataset"}
    limits = {"memory_map", "decoder"}
    kept = [r for r in wanted if not only or {r.contestant, base_names.get(r.contestant)} & {*only, *limits}]
    # What matters most is measured together: a machine that others use changes from minute to minute.
    one, two, ranks = scaling_runs()
    together = [ranks, one, two, Run("webdataset", "pil", 2), *jpeg_runs(2)]
    return list(dict.fromkeys([*(run for run in together if run in kept), *kept]))


class RunError(Exception):
    """A process that did not answer; the text is its last words."""


def stored_at(data: Path, contestant: str, frames: str) -> Path:
    return data / f"{BY_NAME[contestant].stored}-{frames}"


def prepare(data: Path, contestant: str, frames: str) -> None:
    """Writes the stories in the contestant's format, unless they are there. Raises RunError."""
    folder = stored_at(data, contestant, frames)
    beside = folder.with_name(f".{folder.name}.partial")
    if folder.exists() or BY_NAME[contestant].stored == OUR_TARS:
        return
    subprocess.run(["rm", "-rf", str(beside)], check=True)
    beside.mkdir(parents=True)
    samples = data / f"{OUR_TARS}-{frames}"
    _run([{"task": "prepare", "module": BY_NAME[contestant].module, "samples": str(samples), "folder": str(beside)}])
    beside.rename(folder)


def measure(data: Path, run: Run, round_number: int, check: bool) -> dict[str, Any]:
    """What one run gave; of several ranks the sums of work and CPU time and the longest wall time. Raises RunError."""
    if run.contestant == "decoder":
        folder = data / f"{OUR_TARS}-original"
        [answer] = _run([{"task": "decode", "decoder": run.decoder, "folder": str(folder), "frames": 2000}])
    else:
        task = {
            "task": "read",
            "module": BY_NAME[run.contestant].module,
            "folder": str(stored_at(data, run.contestant, run.frames)),
            "seed": 100 * round_number,
            "check": check and run.ranks == 1,
            "world_size": run.ranks,
            **{name: getattr(run, name) for name in ("decoder", "workers", "layout", "unit", "epochs")},
        }
        answers = _run([{**task, "rank": rank} for rank in range(run.ranks)])
        answer = answers[0]
        for other in answers[1:]:
            answer |= {name: answer[name] + other[name] for name in ("frames", "windows", "cpu_s")}
            answer |= {name: max(answer[name], other[name]) for name in ("wall_s", "first_batch_s")}
    answer["other_cores"] = max(0.0, answer.pop("busy_s") - answer["cpu_s"]) / answer.pop("elapsed_s")
    return {"run": run.name, "round": round_number, "load_average": os.getloadavg()[0], **answer}


def _run(tasks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers of processes that begin their work together, once all have imported what they need."""
    environment = {**os.environ, **ONE_THREAD, **OFFLINE}
    with tempfile.TemporaryFile("w+") as words:
        command = [sys.executable, "-m", "benchmarks.loader_measure"]
        processes = [
            subprocess.Popen(
                [*command, json.dumps(task)], cwd=ROOT, env=environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words,
            )
            for task in tasks
        ]  # fmt: skip
        timers = [threading.Timer(TIMEOUT_S, process.kill) for process in processes]
        try:
            for timer in timers:
                timer.start()
            for process in processes:
                _expect(process, words)
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            return [json.loads(_expect(process, words)) for process in processes]
        finally:
            for process, timer in zip(processes, timers, strict=True):
                process.communicate()
                timer.cancel()


def _expect(process: subprocess.Popen[str], words: IO[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if line:
        return line
    process.wait()
    words.seek(0)
    said = [text.strip() for text in words.read().splitlines() if text.strip()]
    raise RunError(said[-1][:300] if said else f"ended with code {process.returncode} without a word")
