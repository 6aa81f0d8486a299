"""The loop: one run from its first step, or from a checkpoint, to its last."""

import math
import os
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from storydist.data.batch import Batch
from storydist.data.index import ShardIndex
from storydist.data.order import accumulation_steps
from storydist.data.stream import Stream
from storydist.losses import counts
from storydist.model import StoryModel, data_facts
from storydist.training import checkpoint, failure, keep, quarantine
from storydist.training.checkpoint import Identity, TrainState
from storydist.training.heartbeat import last_sign
from storydist.training.identity import of_all_ranks, require_same
from storydist.training.ledger import EVALUATION, LEDGER, SAVING, Ledger
from storydist.training.log import LOG, RunLog
from storydist.training.meter import Meter
from storydist.training.micro_batch import dropout_seed, left_out, losses_of, telling
from storydist.training.optim import learning_rate_at
from storydist.training.preemption import REQUEUE, Preemption, Stopped
from storydist.training.ranks import failing_together, require_equal
from storydist.training.strategy import Ddp, FullState, build_accelerator
from storydist.training.watchdog import Watchdog
from storydist.training.writer import CheckpointWriter
from storydist.verdict.assemble import choice_merit
from storydist.verdict.evaluate import evaluate

if TYPE_CHECKING:
    from storydist.config import Config
    from storydist.training.zero import Zero


@dataclass
class Run:
    """What a training process holds."""

    config: "Config"
    index: ShardIndex
    accelerator: Accelerator
    model: StoryModel  # as this rank holds it: under ZeRO-3 in pieces
    strategy: "Ddp | Zero"
    stream: Stream
    state: TrainState
    identity: Identity
    preemption: Preemption
    watchdog: Watchdog  # not entered: whoever starts the processes knows when they begin and end
    ledger: Ledger

    @property
    def path(self) -> Path:
        return Path(self.config.run.dir)

    @property
    def num_weights(self) -> int:
        """Of the whole model. (`ds_numel`: where DeepSpeed has it in pieces.)"""
        return sum(getattr(p, "ds_numel", p.numel()) for p in self.model.parameters())


def build_run(config: "Config", index: ShardIndex, code: str) -> Run:
    """Model, optimizer and stream of this rank, at step 0. Raises ValueError when settings, shards and world size do
    not fit, or are not those of the other ranks. Collective.
    """
    train = config.train
    _require_fit(config, index)
    accelerator = _build_accelerator(config)
    identity = Identity(config=config.model_dump(mode="json"), fingerprint=index.info.fingerprint, code=code)
    require_equal(of_all_ranks(identity))
    rank, world_size = accelerator.process_index, accelerator.num_processes
    stream = Stream(
        index,
        config.data,
        seed=train.seed,
        global_batch=train.global_batch,
        rank=rank,
        world_size=world_size,
        pin=accelerator.device.type == "cuda",
        accumulation_steps=accumulation_steps(train.global_batch, world_size, train.micro_batch),
    )
    torch.manual_seed(train.seed)
    model = StoryModel(config.model, config.losses.heads(), data_facts(index, config.data)).to(accelerator.device)
    preemption = Preemption()
    watchdog = _watchdog(config, index, accelerator, preemption)
    ledger = _ledger(config, accelerator)
    strategy = _build_strategy(config, accelerator, model)
    return Run(
        config, index, accelerator, model, strategy, stream, TrainState(), identity, preemption, watchdog, ledger
    )


def _build_accelerator(config: "Config") -> Accelerator:
    if not config.train.zero_stage:
        return build_accelerator(config.train)
    from storydist.training.zero import accelerate_arguments  # DeepSpeed is an extra, and takes seconds to import

    return build_accelerator(config.train, accelerate_arguments(config.train, config.optim.clip_norm))


def _build_strategy(config: "Config", accelerator: Accelerator, model: StoryModel) -> "Ddp | Zero":
    if not config.train.zero_stage:
        return Ddp(accelerator, model, config.optim)
    from storydist.training.zero import Zero

    return Zero(accelerator, model, config.optim, config.train.zero_stage)


def _watchdog(config: "Config", index: ShardIndex, accelerator: Accelerator, preemption: Preemption) -> Watchdog:
    path = Path(config.run.dir)
    (life,) = broadcast_object_list([uuid4().hex])
    return Watchdog(
        path,
        index,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        hang_s=config.train.hang_s,
        life=life,
        ask=preemption.ask,
        log=path / LOG,
    )


def _ledger(config: "Config", accelerator: Accelerator) -> Ledger:
    run, train = Path(config.run.dir), config.train
    facts = {
        "steps": train.steps,
        "global_batch": train.global_batch,
        "micro_batch": train.micro_batch,
        "world_size": accelerator.num_processes,
        "device": accelerator.device.type,
    }
    path = run / LEDGER if accelerator.is_main_process else Path(os.devnull)
    return Ledger(path, former_sign=last_sign(run, rank=0), facts=facts)


def _require_fit(config: "Config", index: ShardIndex) -> None:
    """Raises ValueError for settings that the shards would only fail long after the start."""
    if config.losses.score and index.info.score is None:
        raise ValueError(f"no training story of {index} has a score, so none can be learned; use losses.score=0")
    context, splits = config.data.context, (config.train.evaluate_split, "train")
    for split in splits if config.train.evaluate_every else ():
        if index.longest_story(split) <= context:
            raise ValueError(
                f"{index} has no {split} story of more than {context} frames to evaluate on or with; "
                "choose another train.evaluate_split, or train.evaluate_every=0"
            )


def restore_newest(run: Run, say: Any, allow_change: tuple[str, ...] = ()) -> None:
    """Puts the newest whole checkpoint into `run`; says so when there is none. Damaged ones behind it are renamed.

    Collective: rank 0 chooses the checkpoint, every rank reads it.
    """
    chosen: tuple[int, str] | None = None  # step and the hash of its manifest
    with failing_together():
        if run.accelerator.is_main_process:
            step = keep.newest_valid(run.path, say)
            if step is None and keep.list_steps(run.path):
                raise ValueError(f"all checkpoints of {run.path} are damaged; move them away to start afresh")
            if step is not None:
                chosen = step, checkpoint.read_manifest(keep.checkpoint_path(run.path, step)).sha256
    (chosen,) = broadcast_object_list([chosen])
    if chosen is None:
        say(f"{run.path} holds no checkpoint to resume, so the run starts afresh")
        return
    full = run.strategy.full_state(moments=False)
    with failing_together():
        step, sha256 = chosen
        _restore(run, full, keep.checkpoint_path(run.path, step), sha256, say, allow_change)
    run.strategy.load_full_state(full)
    with failing_together():
        if run.accelerator.is_main_process:
            keep.set_aside(run.path, after=step)


def _restore(run: Run, full: FullState, folder: Path, sha256: str, say: Any, allow_change: tuple[str, ...]) -> None:
    manifest = checkpoint.read_manifest(folder)
    if manifest.sha256 != sha256:
        raise ValueError(f"{folder} is not what rank 0 reads there; run.dir has to be one folder for all ranks")
    state = manifest.state
    changes = require_same(manifest.identity, run.identity, allow_change, folder)
    for change in changes:
        say(f"allowed to change: {change}")
    checkpoint.restore(folder, manifest, full.model, full.optimizer, full.ema)
    if run.accelerator.scaler is not None and state.scaler:
        run.accelerator.scaler.load_state_dict(state.scaler)
    if any(change.startswith("checkpoint.best_metric ") for change in changes):
        state.best_value = state.best_step = None  # judged by another figure
    run.state = state


def train(run: Run) -> int:
    """Runs the loop to its end; returns 0, or REQUEUE when a signal asked to stop. Collective: every rank calls it."""
    config, state = run.config, run.state
    num_steps, meter = config.train.steps, Meter(run)
    with ExitStack() as stack:
        stack.enter_context(run.preemption)
        stack.enter_context(run.ledger.life(state))
        log = stack.enter_context(RunLog(run.path, state, num_steps)) if run.accelerator.is_main_process else None
        writer = stack.enter_context(_writer(run, log)) if log else None
        if log:
            quarantine.write(run.path, state)  # a resumed run drops what was found after its checkpoint
        steps = stack.enter_context(
            closing(run.stream.steps(state.samples_seen, num_steps * config.train.global_batch))
        )
        stop = False
        if state.owes_evaluation:  # a signal came before it
            with meter.paused(), run.ledger.spent(EVALUATION):
                stop = not _evaluate(run, meter, log, writer)
        while state.step < num_steps and not stop:
            run.watchdog.phase("data", state.step + 1)
            micro_batches = meter.waited(steps)
            run.watchdog.phase("agree", state.step + 1)
            global_counts, stop, any_bad, unsaved = _agree(run, micro_batches, writer)
            if unsaved:
                _finish_saving(run, writer)
            if any_bad:
                _quarantine(run, micro_batches, log)
            learning_rate = learning_rate_at(state.step + 1, num_steps, config.optim)
            seeds = [dropout_seed(run, number) for number in range(len(micro_batches))]
            with failure.kept(run, micro_batches, global_counts, seeds):
                norm = update(run, micro_batches, global_counts, learning_rate, meter)
            state.step += 1
            state.samples_seen += config.train.global_batch
            last = state.step == num_steps
            if last or state.step % config.train.log_every == 0:
                run.watchdog.phase("log", state.step)
                values = meter.reduced() | {"learning_rate": learning_rate}
                if math.isfinite(norm):  # not where fp16 left an update out; JSON has no infinity
                    values["gradient_norm"] = norm
                if log:
                    log.train(state.step, num_steps, values)
                run.ledger.note("steps")
            with meter.paused():
                every = config.train.evaluate_every
                state.owes_evaluation = bool(every) and (last or state.step % every == 0)
                if last or stop or state.owes_evaluation or state.step % config.train.save_every == 0:
                    _save(run, meter, writer)
                if state.owes_evaluation and not stop:
                    with run.ledger.spent(EVALUATION):
                        stop = not _evaluate(run, meter, log, writer)
            if log:
                log.advance(state.step)
        _finish_saving(run, writer)
        if state.step < num_steps or state.owes_evaluation:
            if log:
                asked = run.preemption.asked or "a signal to another rank"
                log.say(f"stopped by {asked} at step {state.step}; the same command with --resume goes on from here")
            return REQUEUE
    return 0


def update(run: Run, micro_batches: list[Batch], global_counts: Tensor, learning_rate: float, meter: "Meter") -> float:
    """One update of the weights from all micro-batches; returns the norm of the gradients before clipping.

    Raises NotFiniteError, a FloatingPointError, before the update, on every rank, when a loss or gradient of any is not
    finite.
    """
    strategy, state = run.strategy, run.state
    strategy.wrapped.train()
    for number, batch in enumerate(micro_batches):
        with strategy.micro_batch(last=number == len(micro_batches) - 1):
            run.watchdog.phase("forward", state.step + 1, batch.ids)
            losses, loss = losses_of(run, strategy.wrapped, batch, number, global_counts)
            run.watchdog.phase("backward", state.step + 1, batch.ids)
            strategy.backward(telling(loss))
        meter.add(losses)
    run.watchdog.phase("update", state.step + 1)
    norm, updated = strategy.step(learning_rate)
    if updated:
        state.skipped_in_a_row = 0
    else:
        left_out(run, micro_batches, global_counts)
    return norm


def _agree(
    run: Run, micro_batches: list[Batch], writer: CheckpointWriter | None = None
) -> tuple[Tensor, bool, bool, bool]:
    """Counts over all ranks and micro-batches, float64 [heads]; whether any rank was asked to stop; whether any met a
    sample that cannot be used; whether the checkpoint under way has failed. One collective for all.
    """
    heads, asked = run.config.losses.heads(), run.preemption.asked is not None
    local = torch.stack([counts(heads, batch) for batch in micro_batches]).sum(dim=0)
    flags = local.new_tensor([asked, quarantine.num_bad(micro_batches), writer is not None and writer.failed])
    summed = run.accelerator.reduce(torch.cat([local, flags]).to(run.accelerator.device), reduction="sum")
    any_asked, any_bad, unsaved = (summed[-3:] > 0).tolist()
    return summed[:-3], any_asked, any_bad, unsaved


def _quarantine(run: Run, micro_batches: list[Batch], log: RunLog | None) -> None:
    """Lists the step's bad samples, on every rank; raises ValueError when they are too many. Collective."""
    new = quarantine.admit(micro_batches, run.state)
    if log:
        for entry in new:
            log.say(f"step {entry['step']} skips {entry['shard']}: story {entry['story_id']!r}, {entry['reason']}")
        quarantine.write(run.path, run.state)
    quarantine.require_few(run.state, run.stream.num_samples, run.config.data.max_skipped)


def _evaluate(run: Run, meter: Meter, log: RunLog | None, writer: CheckpointWriter | None) -> bool:
    """Judges the weights as they are, tells it, and saves what became of it: the best step so far. False when a signal
    came before it was done: it stays owed then.
    """
    config, accelerator = run.config, run.accelerator
    split = config.train.evaluate_split

    def between() -> None:
        run.watchdog.phase("evaluate", run.state.step)
        asked = torch.tensor(float(run.preemption.asked is not None), device=accelerator.device)
        if accelerator.reduce(asked, reduction="sum") > 0:
            raise Stopped

    try:
        between()
        evaluation = evaluate(
            run.strategy.judged_model().eval(),
            run.index,
            split,
            data=config.data,
            config=config.evaluate,
            device=accelerator.device,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            gather=lambda value: gather_object([value]),
            between=between,
            step=run.state.step,
            floors_path=run.path / f"floors-{split}.json",
        )
    except Stopped:
        return False
    _remember_best(run, evaluation["metrics"])
    if log:
        log.evaluation(run.state.step, evaluation)
        log.examples(run.state.step, evaluation["examples"])
    run.state.owes_evaluation = False
    _save(run, meter, writer)
    return True


def _remember_best(run: Run, metrics: dict[str, Any]) -> None:
    value = choice_merit(metrics, run.config.checkpoint.best_metric)
    if value is not None and (run.state.best_value is None or value > run.state.best_value):
        run.state.best_value, run.state.best_step = value, run.state.step


def _writer(run: Run, log: RunLog) -> CheckpointWriter:
    return CheckpointWriter(run.path, run.config.checkpoint, run.state.step, log.to_disk, log.say, run.ledger.written)


def _save(run: Run, meter: Meter, writer: CheckpointWriter | None) -> None:
    """Has rank 0 write a checkpoint beside the loop. Raises OSError on every rank when the one before failed."""
    run.watchdog.phase("save", run.state.step)
    with run.ledger.spent(SAVING):
        run.state.interval = meter.total().tolist()
        if run.accelerator.scaler is not None:
            run.state.scaler = run.accelerator.scaler.state_dict()
        full = run.strategy.full_state()
        with failing_together():
            if writer:
                writer.save(run.state, run.identity, full.model, full.optimizer, full.ema)
    run.ledger.note("saved")


def _finish_saving(run: Run, writer: CheckpointWriter | None) -> None:
    """Waits until the last checkpoint exists. Raises OSError on every rank when it could not be written."""
    run.watchdog.phase("barrier", run.state.step)
    with run.ledger.spent(SAVING), failing_together():
        if writer:
            writer.finish()
