"""Losses over global counts: however a step is split over ranks and micro-batches, its gradients are the same."""

import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from storydist.data.index import ShardIndex
from storydist.losses import counts
from storydist.training.trainer import Meter, _agree, build_run, update
from tests.distributed.forked import fork_ranks, fresh_accelerate, run_module
from tests.small_runs import STILL, small_config

GLOBAL_BATCH = 16
ACCUMULATIONS = (1, 2, 4)


def gradients(index: ShardIndex, num_micro_batches: int, world_size: int) -> dict[str, Tensor]:
    """Those of the first step, over all ranks, by parameter."""
    fresh_accelerate()
    micro_batch = GLOBAL_BATCH // (world_size * num_micro_batches)
    steps = {"global_batch": GLOBAL_BATCH, "micro_batch": micro_batch}
    run = build_run(small_config(index, Path("unused"), model=STILL, train=steps), index, "test")
    assert run.accelerator.num_processes == world_size
    found: dict[str, Tensor] = {}

    def keep(learning_rate: float) -> tuple[float, bool]:
        found.update({name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None})
        return 0.0, True

    run.strategy.step = keep  # type: ignore[method-assign]
    with closing(run.stream.steps(0)) as stream:
        micro_batches = next(stream)
    if num_micro_batches > 1:
        assert len({float(counts(("next_text",), batch)) for batch in micro_batches}) > 1, "the texts are to be uneven"
    update(run, micro_batches, _agree(run, micro_batches)[0], 0.0, Meter(run))
    return found


def test_gradients_are_the_same_at_any_world_size_and_accumulation(tiny_index, tmp_path):
    run_module("tests.distributed.test_gradients", tiny_index.root, tmp_path)
    expected = gradients(tiny_index, 1, 1)
    whole = torch.cat([g.flatten() for g in expected.values()]).norm()
    cases = {(1, number): gradients(tiny_index, number, 1) for number in ACCUMULATIONS[1:]}
    for world_size in (2, 4):
        for number in ACCUMULATIONS:
            cases[world_size, number] = safetensors.torch.load_file(tmp_path / f"{world_size}-{number}.safetensors")
    for case, found in cases.items():
        assert found.keys() == expected.keys()
        off = {name: (found[name] - g).norm() for name, g in expected.items()}
        assert torch.stack(list(off.values())).norm() < 1e-6 * whole, case
        for name, gradient in expected.items():
            # The bias of a convolution ahead of a norm has none but what rounding leaves.
            assert off[name] < 3e-6 * gradient.norm() or gradient.norm() < 1e-6 * whole, (case, name)


def write_gradients(shards: Path, out: Path, world_size: int) -> None:
    for number in ACCUMULATIONS:
        found = gradients(ShardIndex.open(shards), number, world_size)
        if torch.distributed.get_rank() == 0:
            safetensors.torch.save_file(found, out / f"{world_size}-{number}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    for num_ranks in (2, 4):
        fork_ranks(num_ranks, partial(write_gradients, Path(sys.argv[1]), Path(sys.argv[2]), num_ranks))
