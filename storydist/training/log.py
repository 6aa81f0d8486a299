"""What a run tells of itself while it goes: metrics.jsonl, TensorBoard, a log file, and a progress bar on a terminal.
Rank 0 only.
"""

import base64
import io
import json
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch.utils.tensorboard import SummaryWriter

from storydist.data.files import naming, remove_leftovers, sync, write_atomic
from storydist.training.checkpoint import TrainState

METRICS, LOG, BOARD = "metrics.jsonl", "train.log", "tensorboard"
MEASURED = ("samples_per_s", "data_wait_share", "peak_memory_bytes")  # not the same in the same run made twice


class RunLog:
    """Appends to the logs of RUN; a resumed run first drops what was logged after its checkpoint, so that no step
    appears twice.
    """

    def __init__(self, run: Path, state: TrainState, num_steps: int):
        run.mkdir(parents=True, exist_ok=True)
        self._run, self._lock = run, threading.Lock()  # checkpoints are told by their own thread
        self._log = (run / LOG).open("a", encoding="utf-8")
        of_this_step, num_damaged = _truncate(run / METRICS, state)
        self._metrics = (run / METRICS).open("a", encoding="utf-8")
        _let_a_second_pass(run / BOARD)
        self.board = SummaryWriter(str(run / BOARD), purge_step=state.step if state.owes_evaluation else state.step + 1)
        if state.owes_evaluation:  # TensorBoard drops whole steps; what stays of this one is told again
            for record in of_this_step:
                self._draw(record["step"], {k: v for k, v in record.items() if k not in ("step", "kind")})
        self.terminal = sys.stderr.isatty()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TaskProgressColumn())
        times = (TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
        self._progress = Progress(*columns, *times, console=Console(stderr=True), disable=not self.terminal)
        self._task = self._progress.add_task("training", total=num_steps, completed=state.step, note="")
        if num_damaged:
            self.say(f"{run / METRICS}: {num_damaged} damaged line(s) left out")

    def __enter__(self) -> "RunLog":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What the run ends with is told, not that the disk is full for its last words too.
        with suppress(OSError) if error is not None else nullcontext(), ExitStack() as stack:
            for close in (self._log.close, self._metrics.close, self.board.close, self._progress.stop):
                stack.callback(close)  # each, the last first, whatever becomes of another
            if error is not None:
                self.say(f"stopped by {type(error).__name__}: {error}", shown=False)

    def say(self, text: str, shown: bool = True) -> None:
        """One line into the log file and, unless `shown` is off, to the user. Any thread may call it."""
        with self._lock, naming(self._run / LOG):
            self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
            self._log.flush()
        if shown:
            self._progress.console.print(
                text, markup=False, highlight=False, soft_wrap=True
            ) if self.terminal else print(text, flush=True)

    def to_disk(self) -> None:
        """Flushes what was logged so far: no checkpoint may outlive the lines before it. Any thread may call it."""
        with naming(self._run / BOARD):
            self.board.flush()
        for path in (self._run / METRICS, *(self._run / BOARD).iterdir(), self._run / BOARD, self._run):
            sync(path)

    def advance(self, step: int) -> None:
        """Moves the progress bar."""
        self._progress.update(self._task, completed=step)

    def train(self, step: int, num_steps: int, values: Mapping[str, float]) -> None:
        """One training line: losses, learning rate, gradient norm, speed."""
        self._write({"step": step, "kind": "train", **values})
        self._draw(step, values)
        losses = " ".join(
            f"{name.removeprefix('loss/')} {value:.4f}" for name, value in values.items() if name.startswith("loss")
        )
        self.say(
            f"step {step}/{num_steps} {losses} | {values['samples_per_s']:.1f} samples/s, "
            f"{100 * values['data_wait_share']:.0f} % waiting for data"
            + (f", {values['skipped_samples']:.0f} samples skipped" if values["skipped_samples"] else "")
            + (f", {values['skipped_steps']:.0f} updates left out" if values.get("skipped_steps") else ""),
            shown=not self.terminal,
        )
        note = f"loss {values['loss']:.3f}  {values['samples_per_s']:.1f} samples/s"
        self._progress.update(self._task, completed=step, note=note)

    def _draw(self, step: int, values: Mapping[str, float]) -> None:
        with naming(self._run / BOARD):
            for name, value in values.items():
                self.board.add_scalar(name if "/" in name else f"train/{name}", value, step)

    def evaluation(self, step: int, evaluation: Mapping[str, Any]) -> None:
        """One evaluation line: every metric and its floors."""
        metrics = {name: {"value": m["value"], "floors": m["floors"]} for name, m in evaluation["metrics"].items()}
        facts = {"split": evaluation["split"], "num_skipped": evaluation["num_skipped"]}
        self._write({"step": step, "kind": "evaluation", **facts, "metrics": metrics})
        for name, metric in metrics.items():
            floors = {f"{name} | floor: {floor}": value for floor, value in metric["floors"].items()}
            drawn = {name: metric["value"], **floors}
            self._draw(step, {f"{evaluation['split']}/{tag}": value for tag, value in drawn.items()})
        told = ", ".join(
            f"{name} {metrics[name]['value']:.3f}"
            for name in ("image L1", "text R@10", "text CE", "character F1", "score R2")
            if name in metrics
        )
        skipped = f", {evaluation['num_skipped']} stories skipped" if evaluation["num_skipped"] else ""
        self.say(f"step {step} {evaluation['split']}: {told}{skipped}")

    def examples(self, step: int, records: Sequence[Mapping[str, Any]]) -> None:
        """The evaluation's example windows, as TensorBoard shows them: inputs, target and prediction in a row, and the
        texts.
        """
        for number, record in enumerate(records):
            pictures = [
                *record["input_frames"],
                record["target_frame"],
                *([record["predicted_frame"]] if record["predicted_frame"] else []),
            ]
            row = np.concatenate([_pixels(picture) for picture in pictures], axis=1)
            with naming(self._run / BOARD):
                self.board.add_image(f"examples/{number}: inputs, target, prediction", row, step, dataformats="HWC")
                if record["generated_text"] is not None:
                    text = f"**target**: {record['target_text']}\n\n**generated**: {record['generated_text']}"
                    self.board.add_text(f"examples/{number}", text, step)

    def _write(self, line: Mapping[str, Any]) -> None:
        with naming(self._run / METRICS):
            self._metrics.write(json.dumps(line) + "\n")
            self._metrics.flush()


def _let_a_second_pass(board: Path) -> None:
    """TensorBoard reads its files in the order of their names, which begin with the second they were made in; of two in
    one second the later might be read first.
    """
    newest = max((path.name for path in board.glob("events.out.tfevents.*")), default="")
    now = time.time()
    if newest.split(".")[3:4] == [str(int(now))]:
        time.sleep(1 - now % 1)


def _pixels(jpeg_base64: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(jpeg_base64))))


def _truncate(path: Path, state: TrainState) -> tuple[list[dict[str, Any]], int]:
    """Keeps the lines up to the state's step; an evaluation that is still owed is left out, and so is a damaged line.

    Returns the records kept of the state's own step, and how many damaged lines there were; a last line that was only
    half written is none.
    """
    remove_leftovers(path)
    if not path.exists():
        return [], 0
    kept, of_this_step, num_damaged = [], [], 0
    lines = path.read_bytes().split(b"\n")  # what follows the last newline was only half written
    for line in lines[:-1]:
        try:
            record = json.loads(line)
            step, kind = record["step"], record["kind"]
        except (ValueError, KeyError, TypeError):
            num_damaged += 1
            continue
        if step > state.step or (state.owes_evaluation and kind == "evaluation" and step == state.step):
            continue
        kept.append(line + b"\n")
        if step == state.step:
            of_this_step.append(record)
    write_atomic(path, b"".join(kept))
    return of_this_step, num_damaged
