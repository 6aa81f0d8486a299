import concurrent.futures
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from accelerate.state import AcceleratorState

from storydist.run_folder import load_run, write_facts
from storydist.training import micro_batch
from storydist.training.checkpoint import TrainState
from storydist.training.difference import first_difference
from storydist.training.keep import checkpoint_path, list_steps
from storydist.training.log import MEASURED
from storydist.training.preemption import REQUEUE
from storydist.training.trainer import build_run, restore_newest, train
from storydist.training.writer import CheckpointWriter
from storydist.verdict.truth import truth_of
from tests.small_runs import SMALL, small_config


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps precision and device for the whole process; each test has its own."""
    AcceleratorState._reset_state(reset_partial_state=True)


def run_to_end(index, folder: Path, *, stop_after: int | None = None, **sections: Any):
    """Trains (or goes on); with `stop_after`, a signal is asked for at that step. Returns exit code and Run."""
    config = small_config(index, folder, **sections)
    run = build_run(config, index, "test")
    restore_newest(run, print)
    if stop_after is not None:
        ask_at(run, stop_after)
    write_facts(folder, config)
    return train(run), run


def ask_at(run, step: int) -> None:
    load = run.stream.load_step

    def load_and_ask(samples_seen: int):
        if samples_seen == step * run.config.train.global_batch:
            os.kill(os.getpid(), signal.SIGUSR1)
        return load(samples_seen)

    run.stream.load_step = load_and_ask


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def timeless(lines: list[dict]) -> list[dict]:
    """The lines without what a clock or the machine's memory says."""
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines]


def weights(folder: Path, step: int, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(checkpoint_path(folder, step) / name)


def test_a_run_leaves_everything_it_promises(tiny_index, tmp_path):
    code, _ = run_to_end(tiny_index, tmp_path, train={"evaluate_every": 3, "evaluate_split": "test"})
    assert code == 0
    assert {"config.yaml", "environment.json", "metrics.jsonl", "train.log", "tensorboard", "checkpoints"} <= {
        p.name for p in tmp_path.iterdir()
    }
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if line["kind"] == "evaluation"] == [3, 6]
    assert {"loss", "loss/score", "learning_rate", "gradient_norm", "samples_per_s", "data_wait_share"} <= lines[
        0
    ].keys()
    assert lines[-1]["metrics"]["image L1"]["floors"]
    loaded = load_run(tmp_path)
    assert loaded.step == 6 and not loaded.model.training


def test_an_error_of_the_model_names_the_stories_it_was_made_of(tiny_index, tmp_path, monkeypatch):
    run = build_run(small_config(tiny_index, tmp_path), tiny_index, "test")
    (batch,) = run.stream.load_step(0)
    monkeypatch.setattr(run.model, "forward", lambda batch: batch.no_such_tensor)
    with pytest.raises(AttributeError) as raised:
        train(run)
    assert raised.value.__notes__ == [f"rank 0, step 1, micro-batch 0: stories {', '.join(batch.ids)}"]


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"train": {"micro_batch": 2, "log_every": 4}},
        {"optim": {"ema_decay": 0.9}},
        {"train": {"precision": "bf16"}},
    ],
    ids=str,
)
def test_resuming_is_exact(tiny_index, tmp_path, sections):
    run_to_end(tiny_index, tmp_path / "straight", **sections)
    for stop in (2, 4):  # stopped twice, dropout on, across an epoch's end
        code, run = run_to_end(tiny_index, tmp_path / "stopped", stop_after=stop, **sections)
        assert code == REQUEUE and run.state.step < 6
    assert run_to_end(tiny_index, tmp_path / "stopped", **sections)[0] == 0
    assert first_difference(tmp_path / "straight", tmp_path / "stopped") is None


def test_resuming_that_is_not_exact_is_found(tiny_index, tmp_path, monkeypatch):
    run_to_end(tiny_index, tmp_path / "straight")
    assert run_to_end(tiny_index, tmp_path / "stopped", stop_after=2)[0] == REQUEUE
    monkeypatch.setattr(micro_batch, "mix64", lambda *_, items: items)  # dropout does not know where the run stands
    run_to_end(tiny_index, tmp_path / "stopped")
    found = first_difference(tmp_path / "straight", tmp_path / "stopped")
    assert found is not None and found.startswith("model.safetensors: ")


def test_accumulation_changes_no_loss(tiny_index, tmp_path):
    off: dict[str, Any] = {"model": SMALL | {"dropout": 0.0, "score_dropout": 0.0, "word_dropout": 0.0}}
    for size in (4, 1):
        run_to_end(tiny_index, tmp_path / str(size), train={"micro_batch": size}, **off)
    for one, other in zip(metrics(tmp_path / "4"), metrics(tmp_path / "1"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_a_checkpoint_that_cannot_be_written_ends_the_run_at_the_next_step(tiny_index, tmp_path, monkeypatch):
    save, written = CheckpointWriter.save, list[int]()

    def save_and_wait(writer: CheckpointWriter, state: TrainState, *args: Any) -> None:
        save(writer, state, *args)
        written.append(state.step)
        assert writer._under_way is not None
        concurrent.futures.wait([writer._under_way])

    monkeypatch.setattr(CheckpointWriter, "save", save_and_wait)
    tmp_path.joinpath("checkpoints").touch()
    with pytest.raises(FileExistsError):
        run_to_end(tiny_index, tmp_path, train={"save_every": 3})
    assert written == [3] and metrics(tmp_path)[-1]["step"] == 3


def test_a_finished_run_is_left_alone(tiny_index, tmp_path):
    run_to_end(tiny_index, tmp_path)
    before = {
        path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "tensorboard" not in str(path)
    }
    run_to_end(tiny_index, tmp_path)
    assert list_steps(tmp_path) == [6]
    assert all(path.read_bytes() == data for path, data in before.items() if path.suffix in (".safetensors", ".jsonl"))


def test_a_gradient_that_is_not_finite_stops_before_the_update(tiny_index, tmp_path):
    run = build_run(small_config(tiny_index, tmp_path), tiny_index, "test")
    with torch.no_grad():
        run.model.text_decoder.bias[0] = float("nan")
    before = {name: p.clone() for name, p in run.model.named_parameters()}
    with pytest.raises(
        FloatingPointError, match=r"not finite at step 1, which was left out: .* of rank 0, stories train/"
    ):
        train(run)
    assert all(torch.equal(p, before[name]) or p.isnan().any() for name, p in run.model.named_parameters())
    assert list_steps(tmp_path) == []


def test_the_best_checkpoint_is_kept(tiny_index, tmp_path):
    sections: dict[str, Any] = {
        "train": {"evaluate_every": 2, "save_every": 2, "evaluate_split": "test"},
        "checkpoint": {"keep_last": 1, "best_metric": "image L1"},
    }
    _, run = run_to_end(tiny_index, tmp_path, **sections)
    values = {
        line["step"]: line["metrics"]["image L1"]["value"] for line in metrics(tmp_path) if line["kind"] == "evaluation"
    }
    assert run.state.best_step == min(values, key=values.__getitem__)
    assert set(list_steps(tmp_path)) == {6, run.state.best_step}
    assert load_run(tmp_path, "best").step == run.state.best_step


@pytest.mark.parametrize("stop", [2, 6])
def test_an_evaluation_that_a_signal_put_off_is_made_up(tiny_index, tmp_path, stop):
    sections: dict[str, Any] = {"train": {"evaluate_every": 2, "evaluate_split": "test"}}
    run_to_end(tiny_index, tmp_path / "straight", **sections)
    assert run_to_end(tiny_index, tmp_path / "stopped", stop_after=stop - 1, **sections)[0] == REQUEUE
    assert run_to_end(tiny_index, tmp_path / "stopped", **sections)[0] == 0
    assert timeless(metrics(tmp_path / "stopped")) == timeless(metrics(tmp_path / "straight"))


@pytest.mark.parametrize("batch", [1, 4])  # while it measures; while it generates
def test_an_evaluation_that_a_signal_ends_is_made_up(tiny_index, tmp_path, monkeypatch, batch):
    sections: dict[str, Any] = {
        "train": {"evaluate_every": 2, "evaluate_split": "test"},
        "evaluate": {"batch_stories": 2, "generate_windows": 4, "resamples": 10, "num_examples": 1},
    }
    run_to_end(tiny_index, tmp_path / "straight", **sections)
    calls = 0

    def counted(truth_of):
        def judge(*arguments):
            nonlocal calls
            calls += 1
            if calls == batch:
                os.kill(os.getpid(), signal.SIGTERM)
            return truth_of(*arguments)

        return judge

    for room in ("evaluate", "generate"):
        monkeypatch.setattr(f"storydist.verdict.{room}.truth_of", counted(truth_of))
    code, run = run_to_end(tiny_index, tmp_path / "stopped", **sections)
    assert (code, run.state.step, run.state.owes_evaluation) == (REQUEUE, 2, True) and calls == batch
    assert run_to_end(tiny_index, tmp_path / "stopped", **sections)[0] == 0
    assert timeless(metrics(tmp_path / "stopped")) == timeless(metrics(tmp_path / "straight"))


def test_every_judged_step_is_saved_so_that_the_best_exists(tiny_index, tmp_path):
    train = {"evaluate_every": 2, "save_every": 5, "evaluate_split": "test"}
    _, run = run_to_end(tiny_index, tmp_path, train=train, checkpoint={"keep_last": 1, "best_metric": "image L1"})
    assert run.state.best_step in list_steps(tmp_path)


def test_a_damaged_best_checkpoint_is_not_loaded(tiny_index, tmp_path):
    sections: dict[str, Any] = {"train": {"evaluate_every": 3, "evaluate_split": "test"}}
    _, run = run_to_end(tiny_index, tmp_path, **sections)
    path = checkpoint_path(tmp_path, 3) / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="step 3 is damaged"):
        load_run(tmp_path, 3)
    if run.state.best_step == 3:
        with pytest.raises(ValueError, match="step 3 is damaged"):
            load_run(tmp_path, "best")


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_afresh(tiny_index, tmp_path):
    run_to_end(tiny_index, tmp_path)
    (checkpoint_path(tmp_path, 6) / "manifest.json").unlink()
    with pytest.raises(ValueError, match="are damaged; move them away"):
        run_to_end(tiny_index, tmp_path)


def test_a_launcher_s_accumulation_setting_changes_no_gradient(tiny_index, tmp_path, monkeypatch):
    run_to_end(tiny_index, tmp_path / "plain", train={"steps": 1})
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    AcceleratorState._reset_state(reset_partial_state=True)
    run_to_end(tiny_index, tmp_path / "set", train={"steps": 1})
    assert timeless(metrics(tmp_path / "plain")) == timeless(metrics(tmp_path / "set"))


def test_threads_do_not_make_a_run_unrepeatable(tiny_index, tmp_path):
    # Wide enough that torch adds the gradients of shared frames on both threads.
    wide = SMALL | {"width": 1024, "attention_heads": 0}
    sections: dict[str, Any] = {
        "model": wide,
        "train": {"threads": 2, "steps": 2, "global_batch": 12, "micro_batch": 12},
    }
    for name in ("one", "two", "three"):
        run_to_end(tiny_index, tmp_path / name, **sections)
    first = weights(tmp_path / "one", 2)
    for name in ("two", "three"):
        again = weights(tmp_path / name, 2)
        assert [key for key in first if not torch.equal(first[key], again[key])] == []
