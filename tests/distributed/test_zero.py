"""DeepSpeed's ZeRO on two CPU ranks: the losses of DDP, exact resuming, checkpoints that any strategy goes on from.

All runs happen in one launch, because starting ranks and importing DeepSpeed takes longer than training.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from torch import Tensor, nn

from storydist.data.index import ShardIndex
from storydist.training import zero
from storydist.training.keep import checkpoint_path
from storydist.training.micro_batch import NotFiniteError
from storydist.training.trainer import Run, build_run, restore_newest, train
from storydist.training.zero import Zero
from tests.distributed.forked import ROOT, fork_ranks, free_port, fresh_accelerate, run_module
from tests.distributed.test_ranks import launch
from tests.small_runs import SMALL, STILL, small_config
from tests.test_numerics import nan_backwards
from tests.test_trainer import metrics, timeless, weights

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.timeout(600)

STAGES = ("zero1", "zero2", "zero3")
STEPS, HALF = 10, 5
FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")


def build(index: ShardIndex, folder: Path, strategy: str, **settings: Any) -> Run:
    """Two micro-batches a step and rank, a moving average. Dropout is on in bf16 only, as its draws differ by rank."""
    fresh_accelerate()
    train = {"steps": STEPS, "global_batch": 4, "micro_batch": 1, "save_every": HALF, "strategy": strategy} | settings
    model = SMALL if "precision" in settings else STILL
    return build_run(small_config(index, folder, model=model, optim={"ema_decay": 0.9}, train=train), index, "test")


def go_on(index: ShardIndex, folder: Path, strategy: str) -> None:
    run = build(index, folder, strategy)
    restore_newest(run, print)
    assert run.state.step == HALF and train(run) == 0


def at_half(former: Path, folder: Path) -> Path:
    """A new run that has what `former` had when half of its steps were done."""
    shutil.copytree(checkpoint_path(former, HALF), checkpoint_path(folder, HALF))
    shutil.copy(former / "metrics.jsonl", folder)
    return folder


def spoil_score(run: Run, step: int) -> None:
    """Makes a score of rank 1's second micro-batch unusable at `step`."""
    load = run.stream.load_step

    def load_spoilt(samples_seen: int) -> Any:
        batches = load(samples_seen)
        if run.accelerator.process_index == 1 and samples_seen == (step - 1) * run.config.train.global_batch:
            batches[1].score_B[:] = torch.nan
            batches[1].score_known_B[:] = 1
        return batches

    run.stream.load_step = load_spoilt  # type: ignore[method-assign]


def spoil_gradient(run: Run, step: int) -> None:
    """Makes the gradients of rank 1's second micro-batch NaN at `step`; its losses stay as they are."""
    passes = itertools.count(1)

    def spoil(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        number = next(passes)
        spoilt = run.accelerator.process_index == 1 and run.state.step == step - 1 and number % 2 == 0
        return nan_backwards(module, inputs, output) if spoilt else output

    run.model.character_out.register_forward_hook(spoil)


def stop_at_a_spoilt_step(
    index: ShardIndex, folder: Path, strategy: str, spoil: Callable[[Run, int], None] = spoil_score
) -> None:
    """Writes, for each rank, what stopped it at step 2 and whether its weights are those of step 1."""
    run = build(index, folder, strategy, steps=2, save_every=1)
    spoil(run, 2)
    with pytest.raises(NotFiniteError) as caught:
        train(run)
    full = run.strategy.full_state()
    saved = safetensors.torch.load_file(checkpoint_path(folder, 1) / "model.safetensors")
    kept = all(torch.equal(saved[name], full.model.state_dict()[name]) for name in saved)
    told = {"message": str(caught.value), "kept": kept, "ids": [c.ids for c in caught.value.culprits]}
    (folder / f"stopped-{run.accelerator.process_index}.json").write_text(json.dumps(told))


def all_runs(shards: Path, out: Path) -> None:
    """What each rank of the launch does."""
    index = ShardIndex.open(shards)
    zero.PERSISTENT_NUMEL = 100  # so that stage 3 cuts up parameters of this small a model
    for strategy in ("ddp", *STAGES):
        train(build(index, out / f"bf16-{strategy}", strategy, steps=3, precision="bf16"))
        run = build(index, out / strategy, strategy)
        train(run)
        if isinstance(run.strategy, Zero):
            held = sum(part.numel() for part in run.strategy._parts)  # whose moments this rank keeps
            assert run.num_weights / 2 <= held < 0.6 * run.num_weights
            assert (sum(p.numel() for p in run.model.parameters()) < 0.3 * run.num_weights) == (strategy == "zero3")
        stop_at_a_spoilt_step(index, out / f"spoilt-{strategy}", strategy)
    stop_at_a_spoilt_step(index, out / "spoilt-gradient", "ddp", spoil_gradient)
    for strategy in STAGES:
        go_on(index, at_half_by_main(out / strategy, out / f"resumed-{strategy}"), strategy)
    go_on(index, at_half_by_main(out / "ddp", out / "zero3-after-ddp"), "zero3")
    go_on(index, at_half_by_main(out / "zero2", out / "ddp-after-zero2"), "ddp")
    torch.distributed.destroy_process_group()


def at_half_by_main(former: Path, folder: Path) -> Path:
    if torch.distributed.get_rank() == 0:
        at_half(former, folder)
    torch.distributed.barrier()
    return folder


@pytest.fixture(scope="module")
def runs(tiny_index, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("zero")
    run_module("tests.distributed.test_zero", tiny_index.root, out, timeout_s=570)
    return out


def most_off(one: Path, other: Path) -> float:
    """Largest relative difference of a loss or gradient norm between two runs' lines."""
    lines = list(zip(metrics(one), metrics(other), strict=True))
    assert lines
    keys = [key for key in lines[0][0] if key.startswith("loss") or key == "gradient_norm"]
    assert len(keys) == 8
    return max(abs(b[key] / a[key] - 1) for a, b in lines for key in keys)


@pytest.mark.parametrize("strategy", STAGES)
def test_losses_are_those_of_ddp(runs, strategy):
    assert most_off(runs / "ddp", runs / strategy) < 1e-6  # measured: 2e-7


@pytest.mark.parametrize("strategy", STAGES)
def test_bf16_losses_are_those_of_ddp(runs, strategy):
    # Stage 3 has linear layers of DeepSpeed's own, which round bfloat16 in other places.
    assert most_off(runs / "bf16-ddp", runs / f"bf16-{strategy}") < (1e-2 if strategy == "zero3" else 1e-6)


@pytest.mark.parametrize("strategy", STAGES)
def test_resuming_is_exact(runs, strategy):
    for name in FILES:
        one, other = weights(runs / strategy, STEPS, name), weights(runs / f"resumed-{strategy}", STEPS, name)
        assert [key for key in one if not torch.equal(one[key], other[key])] == []
    assert timeless(metrics(runs / strategy)) == timeless(metrics(runs / f"resumed-{strategy}"))


@pytest.mark.parametrize("strategy", STAGES)
def test_checkpoints_hold_what_ddp_s_hold(runs, strategy):
    for name in FILES:
        one, other = weights(runs / "ddp", STEPS, name), weights(runs / strategy, STEPS, name)
        assert one.keys() == other.keys()
        assert all(one[key].shape == other[key].shape and one[key].dtype == other[key].dtype for key in one)
        # Where a gradient is but rounding, Adam makes full steps of it: hence no tighter.
        off = sum(float((one[key].double() - other[key].double()).square().sum()) for key in one)
        assert off < 1e-8 * sum(float(one[key].double().square().sum()) for key in one), name


@pytest.mark.parametrize("run", ["zero3-after-ddp", "ddp-after-zero2"])
def test_another_strategy_goes_on_from_a_checkpoint(runs, run):
    assert most_off(runs / "ddp", runs / run) < 1e-6


def test_another_world_size_goes_on_from_a_checkpoint(runs, tiny_index, tmp_path):
    go_on(tiny_index, at_half(runs / "zero3", tmp_path), "ddp")  # in one process
    assert most_off(runs / "ddp", tmp_path) < 1e-6


@pytest.mark.parametrize("run", ["ddp", *STAGES, "gradient"])
def test_what_one_rank_sees_stops_all_before_the_update(runs, run):
    told = [json.loads((runs / f"spoilt-{run}" / f"stopped-{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0] == told[1] and told[0]["kept"]
    what = "a gradient" if run == "gradient" else "loss score"
    assert f"finite at step 2, which was left out: {what} of rank 1, stories train/" in told[0]["message"]
    assert len(told[0]["ids"]) == 1 and len(told[0]["ids"][0]) == 1  # the one story of the micro-batch


def test_it_is_launched_as_ddp_is_and_says_no_more(tiny_index, tmp_path):
    config = small_config(tiny_index, tmp_path / "run", train={"steps": 2})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    done = launch("accelerate", tmp_path / "config.yaml", "train.strategy=zero1")
    assert done.returncode == 0, done.stderr
    start, mixed, *steps = done.stdout.splitlines()
    assert "2 rank(s) on cpu" in start and mixed.startswith("of 12 neighbours")
    assert [line.split()[1] for line in steps] == ["1/2", "2/2"]
    assert "deepspeed" not in done.stderr.lower() and "FutureWarning" not in done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gpus_lose_alike_under_every_strategy(tiny_index, tmp_path, precision):
    """On all GPUs there are, with recurrent networks large enough for stage 3 to cut up."""
    model = STILL | {"width": 256, "text_hidden": 256}
    train = {"precision": precision, "steps": 3, "global_batch": 4 * torch.cuda.device_count()}
    config = small_config(tiny_index, tmp_path, model=model, train=train)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    words = ["-m", "torch.distributed.run", "--nproc_per_node", "gpu", "--master_port", str(free_port())]
    for strategy in ("ddp", *STAGES):
        program = ["launch/train.py", "--config", str(tmp_path / "config.yaml")]
        settings = [f"train.strategy={strategy}", f"run.dir={tmp_path / strategy}"]
        subprocess.run([sys.executable, *words, *program, *settings], check=True, cwd=ROOT)
        assert most_off(tmp_path / "ddp", tmp_path / strategy) < (1e-2 if precision == "bf16" else 1e-4), strategy


if __name__ == "__main__":
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed  # noqa: F401  (once, for both ranks)

    fork_ranks(2, partial(all_runs, Path(sys.argv[1]), Path(sys.argv[2])))
