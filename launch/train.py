"""Trains a model on shards.

    accelerate launch launch/train.py --config configs/base.yaml data.shards=SHARDS run.dir=RUN train.steps=200
    python launch/train.py --config configs/base.yaml data.shards=SHARDS run.dir=RUN --resume

Exit codes: 0 finished; 2 a mistake in settings or data; 75 stopped by a signal after saving, run again with --resume.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from storydist.command import ArgumentParser, run_command


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(
        prog="launch/train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="YAML file; see configs/")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest whole checkpoint of run.dir; start afresh if there is none",
    )
    parser.add_argument(
        "--allow-change",
        action="append",
        default=[],
        metavar="KEY",
        help="resume although this setting differs; may be repeated",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, for example train.steps=200")
    return parser.parse_intermixed_args()  # settings may stand before and after options


def main() -> int:
    arguments = parse_arguments()
    # Imported here, so that --help and a mistyped option do not wait for torch.
    from storydist.config import load_config
    from storydist.data.files import check_writable
    from storydist.data.index import ShardIndex
    from storydist.run_folder import code_version, write_facts
    from storydist.training import checkpoint
    from storydist.training.trainer import build_run, restore_newest, train

    config = load_config(arguments.config, arguments.overrides)
    run_dir, shards = Path(config.run.dir), Path(config.data.shards).resolve()
    config = config.model_copy(update={"data": config.data.model_copy(update={"shards": str(shards)})})
    check_writable(run_dir)
    index = ShardIndex.open(shards)
    steps = checkpoint.list_steps(run_dir)
    if steps and not arguments.resume:
        raise ValueError(
            f"{run_dir} already holds a run at step {steps[-1]}; add --resume to go on, or choose another run.dir"
        )
    is_main = os.environ.get("RANK", "0") == "0"
    say = print if is_main else (lambda text: None)
    if arguments.resume and not steps:
        say(f"{run_dir} holds no checkpoint to resume, so the run starts afresh")
    run = build_run(config, index, code_version())
    restore_newest(run, say, tuple(arguments.allow_change))
    if is_main:
        write_facts(run_dir, config)
    if run.state.step >= config.train.steps and not run.state.owes_evaluation:
        say(f"{run_dir} is finished: step {run.state.step} of {config.train.steps}")
        return 0
    say(
        f"{run_dir}: step {run.state.step} of {config.train.steps}, {run.stream.num_samples} samples an epoch, "
        f"{run.num_weights / 1e6:.2f} M parameters, {run.accelerator.num_processes} rank(s) on {run.accelerator.device}"
    )
    say(run.stream.mixing_told())
    try:
        return train(run)
    except FloatingPointError as error:
        raise ValueError(str(error)) from error
    finally:
        run.accelerator.end_training()


if __name__ == "__main__":
    raise SystemExit(run_command(main))
