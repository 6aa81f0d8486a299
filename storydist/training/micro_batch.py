"""One micro-batch through the model: what it loses; and, when a loss or gradient is not finite, whose it was."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from accelerate.utils import gather_object
from torch import Tensor

from storydist.data.batch import Batch
from storydist.data.order import mix64
from storydist.losses import SumCount, all_losses, total
from storydist.model import Prediction
from storydist.training.strategy import gradient_scale

if TYPE_CHECKING:
    from storydist.training.trainer import Run

MOST_SKIPPED = 50  # updates in a row that fp16 may leave out; its loss scale has been halved as often by then


@dataclass(frozen=True)
class Culprit:
    """A micro-batch that gave something not finite."""

    rank: int
    micro_batch: int  # of the rank's step
    what: str  # "loss next_text", or "a gradient"
    ids: list[str]  # of its stories


class NotFiniteError(FloatingPointError):
    """A loss or gradient of `step` is not finite; nothing was updated. The same on every rank."""

    def __init__(self, message: str, step: int, culprits: list[Culprit]):
        super().__init__(message)
        self.step, self.culprits = step, culprits


def dropout_seed(run: "Run", number: int) -> int:
    """Seeds this rank's micro-batch `number` of the coming step: by where the run stands, not by a generator's past, so
    that a resumed run draws the same.
    """
    return int(mix64(run.config.train.seed, run.state.step, run.accelerator.process_index, items=number) >> 1)


def losses_of(
    run: "Run", model: Callable[[Batch], Prediction], batch: Batch, number: int, global_counts: Tensor
) -> tuple[dict[str, SumCount], Tensor]:
    """(sum, count) of each loss of the step's micro-batch `number`, and what to call backward on."""
    config, accelerator = run.config, run.accelerator
    torch.manual_seed(dropout_seed(run, number))
    moved = batch.to(accelerator.device)
    try:
        losses = all_losses(config.losses, model(moved), moved, run.model.facts.score_std)
    except Exception as error:
        where = f"rank {accelerator.process_index}, step {run.state.step + 1}, micro-batch {number}"
        error.add_note(f"{where}: stories {', '.join(_ids([batch]))}")
        raise
    return losses, total(config.losses, losses, global_counts, gradient_scale(accelerator.num_processes))


def telling(loss: Tensor) -> Tensor:
    """The loss; where it is not finite, all its gradients will be NaN. Reducing the gradients takes that to every rank,
    so all of them leave the update out without asking each other.
    """
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)


def left_out(run: "Run", micro_batches: list[Batch], global_counts: Tensor) -> None:
    """Called by every rank when the step's update was left out, its gradients not being finite.

    An fp16 update whose losses are finite is only counted: its loss scale was too large, and has been lowered.
    Otherwise raises NotFiniteError, which names who saw it. Collective.
    """
    state, scaler = run.state, run.accelerator.scaler
    step = state.step + 1
    culprits = gather_object(_culprits(run, micro_batches, global_counts, gradients=scaler is None))
    if culprits:
        told = "; ".join(f"{c.what} of rank {c.rank}, stories {', '.join(c.ids)}" for c in culprits)
        raise NotFiniteError(f"not finite at step {step}, which was left out: {told}", step, culprits)
    if scaler is None:
        ids = gather_object(_ids(micro_batches))
        raise NotFiniteError(
            f"the gradients of step {step} were not finite, which was left out, but no micro-batch alone gives that "
            f"again: their sum overflows, or the hardware errs; stories {', '.join(ids)}",
            step,
            [],
        )
    state.skipped_steps += 1
    state.skipped_in_a_row += 1
    if state.skipped_in_a_row >= MOST_SKIPPED:
        raise NotFiniteError(
            f"{state.skipped_in_a_row} updates in a row were left out up to step {step}: their gradients overflow in "
            f"fp16 even at a loss scale of {scaler.get_scale():g}; use train.precision=bf16",
            step,
            [],
        )


def _culprits(run: "Run", micro_batches: list[Batch], global_counts: Tensor, gradients: bool) -> list[Culprit]:
    """This rank's, found by taking each micro-batch through the model once more: the weights are still the same."""
    precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(run.config.train.precision)
    device = run.accelerator.device
    # Not the wrapped model, and `grad` instead of `backward`: nothing is reduced, so each rank sees its own.
    model = run.strategy.full_state(moments=False).model.to(device).train()
    parameters, culprits = list(model.parameters()), []

    def predict(batch: Batch) -> Prediction:
        with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
            return model(batch)

    for number, batch in enumerate(micro_batches):
        with torch.set_grad_enabled(gradients):
            losses, loss = losses_of(run, predict, batch, number, global_counts)
        what = [f"loss {head}" for head, (loss_sum, _) in losses.items() if not loss_sum.isfinite()]
        if not what and gradients:
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            what = ["a gradient"] if any(g is not None and not g.isfinite().all() for g in found) else []
        if what:
            rank = run.accelerator.process_index
            culprits.append(Culprit(rank, number, " and ".join(what), _ids([batch])))
    return culprits


def _ids(batches: list[Batch]) -> list[str]:
    return [story for batch in batches for story in batch.ids if story]
