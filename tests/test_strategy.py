"""How a step is made is chosen by one setting; what cannot work is refused before anything is built."""

import sys

import pytest
import torch
from accelerate.state import AcceleratorState

from storydist.training.strategy import build_accelerator
from storydist.training.trainer import build_run
from tests.small_runs import small_config


@pytest.fixture(autouse=True)
def fresh_accelerate(monkeypatch):
    """Each test sets up its own; what Accelerate and DeepSpeed read from the environment is put back."""
    AcceleratorState._reset_state(reset_partial_state=True)
    for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_TORCH_DEVICE", "DS_ACCELERATOR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_zero_without_deepspeed_names_the_extra(tiny_index, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(ValueError, match=r"zero2 needs DeepSpeed: pip install 'storydist\[deepspeed\]'"):
        build_run(small_config(tiny_index, tmp_path, train={"strategy": "zero2"}), tiny_index, "test")


def test_zero_needs_a_launcher(tiny_index, tmp_path):
    pytest.importorskip("deepspeed")
    with pytest.raises(ValueError, match="no launcher started any: use accelerate launch, torchrun or srun"):
        build_run(small_config(tiny_index, tmp_path, train={"strategy": "zero1"}), tiny_index, "test")


def test_fp16_goes_with_ddp_only(tiny_index, tmp_path):
    with pytest.raises(ValueError, match="fp16 goes with strategy ddp only, found zero3"):
        small_config(tiny_index, tmp_path, train={"strategy": "zero3", "precision": "fp16"})


def test_fp16_needs_a_gpu(tiny_index, tmp_path):
    config = small_config(tiny_index, tmp_path, train={"precision": "fp16", "device": "cpu"})
    with pytest.raises(ValueError, match="fp16 needs a CUDA device"):
        build_accelerator(config.train)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a launcher that wants DeepSpeed on a GPU has to start ranks")
def test_a_launcher_that_sets_up_deepspeed_by_itself_is_refused(tiny_index, tmp_path, monkeypatch):
    pytest.importorskip("deepspeed")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match=r"ddp but the launcher set up DEEPSPEED; .* without --use_deepspeed"):
        build_accelerator(small_config(tiny_index, tmp_path).train)


def test_a_step_that_is_not_finite_is_left_out_and_the_next_made(tiny_index, tmp_path):
    run = build_run(small_config(tiny_index, tmp_path, optim={"ema_decay": 0.5}), tiny_index, "test")
    parameters = list(run.model.parameters())
    before = [p.clone() for p in parameters]
    for value, updated in ((torch.inf, False), (torch.nan, False), (1.0, True)):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 1.0)
        assert parameters[0].grad is not None
        parameters[0].grad.view(-1)[0] = value
        assert run.strategy.step(1e-3)[1] == updated
        assert any(not torch.equal(p, b) for p, b in zip(parameters, before, strict=True)) == updated
        assert all(p.grad is None or not p.grad.any() for p in parameters)
    ema = run.strategy.full_state().ema
    assert ema is not None and int(ema.n_averaged) == 1
