"""Says before a run is submitted how long it takes, in how many jobs, and how often it should save.

    python launch/plan.py --config configs/base.yaml data.shards=SHARDS --gpus-per-node 4 --partition gpu=12:00:00
    python launch/plan.py --config configs/base.yaml data.shards=SHARDS --measured RUN

What things cost is measured: by a short run of this configuration here, or in the ledger of an earlier run. Partitions
that are not given are asked of Slurm, where it is. Equations and assumptions: docs/plan.md.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from storydist.command import ArgumentParser, positive_int, run_command

if TYPE_CHECKING:
    from storydist.cluster.costs import Priced
    from storydist.config import Config


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file; see configs/")
    parser.add_argument("--nodes", type=positive_int, default=1, help="of a job (default: %(default)s)")
    parser.add_argument("--gpus-per-node", type=positive_int, default=1, help="ranks a node (default: %(default)s)")
    parser.add_argument("--partition", action="append", default=[], metavar="NAME=LIMIT", help="as in --time of sbatch")
    parser.add_argument("--mtbf-hours", type=float, metavar="H", help="mean time between failures of the whole job")
    parser.add_argument("--wait-minutes", type=float, metavar="M", help="from a job's end to the next one's start")
    parser.add_argument("--lead", type=float, metavar="SECONDS", help="how long ahead of the limit the signal comes")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--measured", type=Path, metavar="RUN", help="an earlier run whose ledger tells the costs")
    source.add_argument("--calibrate", type=positive_int, default=30, metavar="STEPS", help="default: %(default)s")
    parser.add_argument("--processes", type=positive_int, default=1, help="of the calibration (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="the same figures as JSON, seconds")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings")
    arguments = parser.parse_intermixed_args()
    for name in ("mtbf_hours", "wait_minutes", "lead"):
        value = getattr(arguments, name)
        if value is not None and not (0 < value < float("inf") or (name == "wait_minutes" and value == 0)):
            parser.error(f"--{name.replace('_', '-')} {value:g} is not a time")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    # Imported here, so that --help and a mistyped option do not wait for torch.
    from storydist.cluster.plan import as_json, make_plan, tables
    from storydist.cluster.planner import Work
    from storydist.cluster.slurm import duration_s, partition_limits
    from storydist.config import load_config
    from storydist.verdict.report import console_of_stdout

    given = [text.partition("=") for text in arguments.partition]
    limits = {name: duration_s(limit) for name, _, limit in given} or partition_limits()
    config = load_config(arguments.config, ["run.dir=unused", *arguments.overrides])
    train = config.train
    plan = make_plan(
        measured(arguments, config),
        Work(train.steps, train.save_every, train.evaluate_every),
        limits,
        nodes=arguments.nodes,
        gpus_per_node=arguments.gpus_per_node,
        mtbf_s=arguments.mtbf_hours and 3600 * arguments.mtbf_hours,
        wait_s=None if arguments.wait_minutes is None else 60 * arguments.wait_minutes,
        lead=arguments.lead,
    )
    if given and all(row.refused for row in plan.rows):
        raise ValueError("; ".join(f"{row.partition}: {row.refused}" for row in plan.rows))
    print(json.dumps(as_json(plan), indent=1)) if arguments.json else console_of_stdout().print(tables(plan))


def measured(arguments: argparse.Namespace, config: "Config") -> "Priced":
    import torch

    from storydist.cluster.calibration import calibrate
    from storydist.cluster.costs import costs_of
    from storydist.cluster.goodput import read_lives

    if arguments.measured:
        return costs_of(read_lives(arguments.measured))
    words = [sys.executable, str(Path(__file__).with_name("train.py")), "--config", arguments.config]
    facts = {"evaluates": bool(config.train.evaluate_every), "processes": arguments.processes}
    on_cpu = {"ACCELERATE_USE_CPU": "true"} if torch.cuda.device_count() < arguments.processes else {}
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        run, environment = Path(folder) / "run", os.environ | on_cpu
        return calibrate([*words, *arguments.overrides], run, arguments.calibrate, environment=environment, **facts)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
