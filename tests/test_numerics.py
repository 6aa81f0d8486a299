"""What stays float32 under autocast, and what happens when a number is not finite."""

from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from storydist.model.layers import recur
from storydist.training import micro_batch, trainer
from storydist.training.keep import list_steps
from storydist.training.micro_batch import NotFiniteError
from storydist.training.trainer import Meter, Run, _agree, build_run, restore_newest, train, update
from tests.small_runs import SMALL, small_config
from tests.test_trainer import metrics

F32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps precision and device for the whole process; each test has its own."""
    AcceleratorState._reset_state(reset_partial_state=True)


class Recorder(TorchDispatchMode):
    """Types of the tensors that go into each operation, after autocast, and of those that come out."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: dict[str, set[torch.dtype]] = defaultdict(set)
        self.outputs: dict[str, set[tuple[torch.dtype, ...]]] = defaultdict(set)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.inputs[name] |= {a.dtype for a in args if isinstance(a, Tensor)}
        results = out if isinstance(out, tuple) else (out,)
        self.outputs[name].add(tuple(o.dtype for o in results if isinstance(o, Tensor)))
        return out


def first_step(run: Run) -> float:
    """Makes the first update; returns its gradient norm."""
    with closing(run.stream.steps(0)) as stream:
        micro_batches = next(stream)
    return update(run, micro_batches, _agree(run, micro_batches)[0], 1e-3, Meter(run))


@pytest.mark.parametrize("temporal", ["gru", "lstm"])
def test_bf16_keeps_in_float32_what_has_to_be(tiny_index, tmp_path, temporal):
    config = small_config(
        tiny_index,
        tmp_path,
        model=SMALL | {"temporal": temporal},
        optim={"ema_decay": 0.9},
        train={"precision": "bf16"},
    )
    run = build_run(config, tiny_index, "test")
    with Recorder() as seen:
        first_step(run)
    assert seen.inputs["convolution"] == {BF16} and BF16 in seen.inputs["addmm"]  # autocast is on
    assert seen.inputs["_softmax"] == seen.inputs["_log_softmax"] == {F32}
    assert seen.inputs["binary_cross_entropy_with_logits"] == {F32}
    assert seen.inputs["nll_loss_forward"] == {F32, torch.int64}
    assert seen.inputs["mkldnn_rnn_layer"] == {F32}  # on the CPU; see `recur`
    for norm in ("native_group_norm", "native_layer_norm"):
        assert {types[1:] for types in seen.outputs[norm]} == {(F32, F32)}  # mean and deviation
    assert seen.inputs["addcdiv_"] == seen.inputs["lerp_"] == {F32}  # the optimizer
    full = run.strategy.full_state()
    assert full.ema is not None
    for module in (full.model, full.ema):
        assert {p.dtype for p in module.parameters()} == {F32}
    assert {v.dtype for state in full.optimizer.state.values() for v in state.values()} == {F32}
    assert {p.grad.dtype for p in run.model.parameters() if p.grad is not None} <= {F32}


def test_losses_are_float32_under_bf16(tiny_index, tmp_path):
    run = build_run(small_config(tiny_index, tmp_path, train={"precision": "bf16"}), tiny_index, "test")
    with closing(run.stream.steps(0)) as stream:
        (batch,) = next(stream)
    counts = _agree(run, [batch])[0]
    losses, loss = micro_batch.losses_of(run, run.strategy.wrapped, batch, 0, counts)
    assert {loss_sum.dtype for loss_sum, _ in losses.values()} == {F32} and loss.dtype == F32


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_recurrent_network_under_autocast_is_near_float32(kind):
    torch.manual_seed(0)
    network, inputs = kind(8, 16, batch_first=True), torch.randn(3, 5, 8)
    start: Any = torch.randn(1, 3, 16)
    start = (start, torch.randn(1, 3, 16)) if kind is nn.LSTM else start
    exact, _ = recur(network, inputs, start)
    rounded = tuple(s.bfloat16() for s in start) if kind is nn.LSTM else start.bfloat16()
    with torch.autocast("cpu", dtype=BF16):
        found, _ = recur(network, inputs.bfloat16(), rounded)  # as the layers before it give them
    assert torch.allclose(found.float(), exact, atol=2e-2)
    found.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == F32 and p.grad.abs().max() > 0 for p in network.parameters())


def spoil_scores(run: Run) -> None:
    """Scores that are infinite: the loss is not finite although the model's part in it is."""
    load = run.stream.load_step

    def load_spoilt(samples_seen: int) -> Any:
        batches = load(samples_seen)
        batches[-1].score_B[:] = torch.inf
        return batches

    run.stream.load_step = load_spoilt  # type: ignore[method-assign]


def nan_backwards(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """The output as it is, with gradients that are NaN: the square root has none at 0."""
    return output + (output - output).sqrt()


@pytest.mark.parametrize("what", ["loss score", "a gradient"])
def test_what_is_not_finite_stops_before_the_update_and_names_its_stories(tiny_index, tmp_path, what):
    run = build_run(small_config(tiny_index, tmp_path, train={"micro_batch": 1}), tiny_index, "test")
    if what == "loss score":
        spoil_scores(run)
    else:
        run.model.character_out.register_forward_hook(nan_backwards)
    before = {name: p.clone() for name, p in run.model.named_parameters()}
    with pytest.raises(
        NotFiniteError, match=f"not finite at step 1, which was left out: {what} of rank 0, stories "
    ) as e:
        train(run)
    assert all(torch.equal(p, before[name]) for name, p in run.model.named_parameters())
    assert list_steps(tmp_path) == []
    assert [c.micro_batch for c in e.value.culprits] == ([3] if what == "loss score" else [0, 1, 2, 3])
    with closing(run.stream.steps(0)) as stream:
        micro_batches = next(stream)
    assert all(c.ids == micro_batches[c.micro_batch].ids for c in e.value.culprits)


def test_telling_makes_gradients_of_a_loss_that_is_not_finite_nan():
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    for offset in (torch.inf, torch.nan):  # the gradient alone would be finite
        (gradient,) = torch.autograd.grad(micro_batch.telling(weight.sum() + offset), weight)
        assert gradient.isnan().all()
    (gradient,) = torch.autograd.grad(micro_batch.telling(weight.sum()), weight)
    assert gradient.tolist() == [1.0, 1.0]


@pytest.fixture
def scaling(monkeypatch):
    """Runs whose gradients go through an fp16 loss scaler that begins too high; all else is float32, on the CPU."""
    build = trainer._build_accelerator

    def build_scaling(config: Any) -> Any:
        accelerator = build(config)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)
        return accelerator

    monkeypatch.setattr(trainer, "_build_accelerator", build_scaling)

    def run(index: Any, folder: Path, **sections: Any) -> Run:
        AcceleratorState._reset_state(reset_partial_state=True)
        heavy = {"next_text": 50.0}  # so that several updates in a row overflow
        run = build_run(small_config(index, folder, losses=heavy, **sections), index, "test")
        # After the model was prepared, so that only what unscales gradients takes it for fp16.
        run.accelerator.native_amp, run.accelerator.state._mixed_precision = True, "fp16"
        return run

    return run


def test_updates_that_loss_scaling_leaves_out_are_counted_apart(tiny_index, tmp_path, scaling):
    run = scaling(tiny_index, tmp_path, optim={"ema_decay": 0.9}, train={"steps": 12})
    assert train(run) == 0
    lines = metrics(tmp_path)
    skipped = [line["skipped_steps"] for line in lines]
    made = [line["step"] for line in lines if "gradient_norm" in line]
    assert 4 <= skipped[-1] <= 11 and skipped == sorted(skipped)
    assert len(made) == 12 - skipped[-1] and run.state.skipped_in_a_row == 12 - made[-1]
    full = run.strategy.full_state()
    assert full.ema is not None and int(full.ema.n_averaged) == len(made)
    assert {int(state["step"]) for state in full.optimizer.state.values()} == {len(made)}
    assert f"{skipped[-1]} updates left out" in (tmp_path / "train.log").read_text()


def test_too_many_left_out_in_a_row_stop_the_run(tiny_index, tmp_path, scaling, monkeypatch):
    monkeypatch.setattr(micro_batch, "MOST_SKIPPED", 3)
    with pytest.raises(NotFiniteError, match=r"3 updates in a row were left out up to step 3.*train\.precision=bf16"):
        train(scaling(tiny_index, tmp_path, train={"save_every": 2}))
    again = scaling(tiny_index, tmp_path)
    restore_newest(again, print)
    assert (again.state.skipped_in_a_row, again.state.skipped_steps) == (2, 2)  # a resumed run counts on
    assert again.accelerator.scaler.get_scale() == 2.0**125


def test_a_loss_that_is_not_finite_is_no_matter_of_loss_scaling(tiny_index, tmp_path, scaling):
    run = scaling(tiny_index, tmp_path)
    spoil_scores(run)
    with pytest.raises(NotFiniteError, match="loss score of rank 0"):
        train(run)
    assert run.state.skipped_steps == 0


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_gpu_keeps_in_float32_what_has_to_be(tiny_index, tmp_path, precision):
    run = build_run(small_config(tiny_index, tmp_path, train={"precision": precision}), tiny_index, "test")
    with Recorder() as seen:
        first_step(run)
    for name in ("_softmax", "_log_softmax", "native_group_norm", "native_layer_norm"):
        assert seen.inputs[name] == {F32}, name
    assert {p.dtype for p in run.model.parameters()} == {F32}
