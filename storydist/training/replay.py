"""Makes a step again that came to nothing finite, on one CPU process, and says what began it."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from storydist.data.batch import Batch
from storydist.data.index import ShardIndex
from storydist.losses import all_losses
from storydist.model import StoryModel, data_facts
from storydist.training.failure import RankPart
from storydist.training.strategy import build_accelerator

if TYPE_CHECKING:
    from storydist.config import Config


class Fault(NamedTuple):
    """The first thing that is not finite on the way of one head: its loss, or a parameter's gradient."""

    head: str
    reason: str


class Replay:
    """The model as it stood before the step `parts` are of. Its dropout is the run's own where that ran on CPUs.

    fp16 is replayed in fp32: its loss scale has no CPU counterpart. Raises ValueError when the shards are others than
    the run's, or the weights do not fit.
    """

    def __init__(self, config: "Config", index: ShardIndex, weights: Path, parts: Sequence[RankPart]):
        found = parts[0].facts["fingerprint"]
        if found != index.info.fingerprint:
            raise ValueError(
                f"the step was made of other shards than {index.root}: fingerprint {found[:12]}, "
                f"found {index.info.fingerprint[:12]}"
            )
        self.config, self.parts = config, parts
        self.precision = "bf16" if config.train.precision == "bf16" else "fp32"
        alone = {"precision": self.precision, "device": "cpu", "strategy": "ddp"}
        accelerator = build_accelerator(config.train.model_copy(update=alone))
        self.model = StoryModel(config.model, config.losses.heads(), data_facts(index, config.data))
        try:
            self.model.load_state_dict(safetensors.torch.load_file(weights))
        except RuntimeError as error:
            raise ValueError(f"{weights} does not fit the model: {' '.join(str(error).split())[:300]}") from None
        self.wrapped: nn.Module = accelerator.prepare(self.model).train()

    def run(self) -> Iterator[tuple[bool, str]]:
        """A line about each part of the step, and whether it tells of something that is not finite."""
        broken = [name for name, tensor in self.model.state_dict().items() if not _finite(tensor)]
        if broken:
            yield True, f"the weights before the step: {', '.join(broken[:5])} not finite: an earlier step made them so"
            return
        largest = {name: float(p.detach().abs().max()) for name, p in self.model.named_parameters()}
        name = max(largest, key=largest.__getitem__)
        yield False, f"the weights before the step: finite, the largest {largest[name]:.3g} in {name}"
        for part in self.parts:
            for number, (batch, seed) in enumerate(zip(part.micro_batches, part.seeds, strict=True)):
                faults = self.faults(batch, seed, part.global_counts)
                name = f"rank {part.rank}, micro-batch {number} ({len(batch.ids)} stories)"
                yield bool(faults), f"{name}: {_told(faults) or 'all finite'}"
                if faults:
                    yield True, self._guilty(part, number)

    def _guilty(self, part: RankPart, number: int) -> str:
        """Which stories of a micro-batch do it alone."""
        batch, told = part.micro_batches[number], []
        for row in torch.nonzero(batch.valid_B)[:, 0].tolist():
            story = batch.story(row)
            faults = self.faults(story, part.seeds[number], part.global_counts)
            if faults:
                start, stop = part.facts["frames"][number][row]
                inputs = [name for name, value in vars(story).items() if not _finite(value)]
                reason = f"; not finite in the data: {', '.join(inputs)}" if inputs else ""
                told.append(f"  guilty: story {story.ids[0]!r}, frames {start} to {stop - 1}: {_told(faults)}{reason}")
        return "\n".join(told) or "  none of its stories does it alone"

    def faults(self, batch: Batch, seed: int, global_counts: dict[str, float]) -> list[Fault]:
        """What is not finite of each head, in the order of heads. The weights are not changed."""
        torch.manual_seed(seed)
        with _first_broken(self.model) as modules:
            losses = all_losses(self.config.losses, self.wrapped(batch), batch, self.model.facts.score_std)
        names, parameters = zip(*((n, p) for n, p in self.model.named_parameters() if p.requires_grad), strict=True)
        faults = []
        for head, (loss_sum, _) in losses.items():
            loss = getattr(self.config.losses, head) * loss_sum / max(1.0, global_counts[head])
            value = float(loss.detach())
            if not math.isfinite(value):
                began = f", first in the output of {modules[0]}" if modules else ""
                faults.append(Fault(head, f"is {value}{began}"))
                continue
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            bad = [name for name, gradient in zip(names, gradients, strict=True) if not _finite(gradient)]
            if bad:
                faults.append(Fault(head, f"is finite, but the gradient of {bad[0]} is not"))
        return faults


def _told(faults: Sequence[Fault]) -> str:
    """Heads that fail alike are told together."""
    heads: dict[str, list[str]] = {}
    for fault in faults:
        heads.setdefault(fault.reason, []).append(fault.head)
    return "; ".join(f"loss {', '.join(names)} {reason}" for reason, names in heads.items())


@contextmanager
def _first_broken(model: nn.Module) -> Iterator[list[str]]:
    """Names, in the order in which they run, of modules whose output is not finite though their inputs are."""
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if _finite(inputs) and not _finite(output):
                found.append(name)

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _finite(value: Any) -> bool:
    """No tensor in it, however nested, has anything that is not finite."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, list | tuple):
        return all(_finite(item) for item in value)
    return True
