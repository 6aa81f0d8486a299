"""From a ledger to a plan: what is measured and what assumed is said; the command refuses what cannot work."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from storydist.cluster.calibration import calibrate
from storydist.cluster.costs import Priced, costs_of
from storydist.cluster.goodput import read_lives
from storydist.cluster.plan import as_json, make_plan, tables, told
from storydist.cluster.planner import Work
from storydist.training.ledger import LEDGER
from tests.ledger_lines import begin, line, write_ledger, written
from tests.small_runs import SMALL
from tests.story_tables import ROOT, run_file

FACTS = {"world_size": 2}


def ledger(run: Path, *, steps: tuple[float, ...] = (2, 1, 1.2, 0.8, 1, 1.1, 0.9)) -> Path:
    """A run of two lives, judged twice; `steps`: seconds of the first life's."""
    lines, training, saving = [begin(106, started=100) | FACTS], 0.0, 0.0
    for step, took_s in enumerate(steps, start=1):
        training += took_s
        lines.append(line("steps", 110, step, training))
    last = len(steps)
    lines += [
        line("saved", 120, last, training, owes=True, saving=saving + 0.5),
        written(last, 3.0, 0.5),
        line("saved", 130, last, training, saving=0.5, evaluation=17),
        line("end", 140, last, training, saving=4.0, evaluation=17),
        begin(168, started=160, step=last) | FACTS,
        line("steps", 170, last + 1, 1.5),
        line("steps", 171, last + 2, 2.5),
        line("saved", 172, last + 2, 2.5, owes=True, saving=1),
        written(last + 2, 5.0, 1.7, 1.0),
        line("saved", 182, last + 2, 2.5, saving=1, evaluation=10),
        line("end", 183, last + 2, 2.5, saving=1, evaluation=10),
    ]
    write_ledger(run, *lines)
    return run


def priced(run: Path, exit_s: float | None = None) -> Priced:
    return costs_of(read_lives(ledger(run)), exit_s)


def test_costs_are_what_the_ledger_says(tmp_path):
    found = priced(tmp_path)
    costs = found.costs
    assert costs.step_s == pytest.approx(7 / 7)  # each life's first one left out
    assert costs.warm_up_s == pytest.approx((1 + 0.5) / 2)
    assert (costs.start_s, costs.restart_s) == (6, 8)
    assert costs.stall_s == pytest.approx((0.5 + 0.7) / 2) and costs.write_s == 4
    assert (costs.evaluation_s, costs.floors_s, costs.exit_s) == (10, 7, 0)
    assert found.sources["step_s"] == "measured, 7" and found.sources["exit_s"] == "assumed: none"
    assert found.world_size == 2 and priced(tmp_path, exit_s=2.0).costs.exit_s == 2


def test_the_interval_grows_with_the_spread(tmp_path):
    calm = costs_of(read_lives(ledger(tmp_path, steps=(2, 1, 1.01, 1, 0.99, 1, 1)))).costs.spread
    wild = costs_of(read_lives(ledger(tmp_path, steps=(2, 1, 3, 0.5, 2, 1, 0.4)))).costs.spread
    assert 1 < calm < 1.05 < 2 < wild


def test_a_ledger_that_tells_too_little_is_refused(tmp_path):
    with pytest.raises(ValueError, match="2 stretches of steps"):
        costs_of(read_lives(ledger(tmp_path, steps=(2, 1))))
    lives = read_lives(ledger(tmp_path))
    (tmp_path / LEDGER).write_text(
        "".join(json.dumps(one) + "\n" for life in lives for one in (life.begin, *life.lines))
    )
    with pytest.raises(ValueError, match="no checkpoint"):
        costs_of(read_lives(tmp_path))


def test_more_ranks_share_the_work_and_this_is_said_to_be_assumed(tmp_path):
    found = priced(tmp_path).on(8)
    assert found.costs.step_s == pytest.approx(0.25) and found.costs.evaluation_s == 2.5
    assert (found.costs.stall_s, found.costs.start_s) == (priced(tmp_path).costs.stall_s, 6)
    assert found.sources["step_s"] == "assumed: 2 rank(s) measured, 8 share the work without loss"


def test_a_plan_of_some_partitions(tmp_path):
    limits = {"short": 200.0, "tiny": 60.0, "any": None}
    plan = make_plan(priced(tmp_path), Work(300, 100, 100), limits, nodes=1, gpus_per_node=2, wait_s=30.0)
    found = as_json(plan)
    short, tiny, endless = found["partitions"]
    assert len(short["jobs"]) > 1 and short["waits_s"] == pytest.approx(30 * short["requeues"])
    assert short["gpu_hours"] == pytest.approx((short["wall_s"] - short["waits_s"]) * 2 / 3600)
    assert short["wall_s_low"] < short["wall_s"] < short["wall_s_high"]
    assert "of a time limit of 60 s" in tiny["refused"]
    assert endless["limit_s"] is None and len(endless["jobs"]) == 1
    assert [one.partition(" (")[0] for one in found["assumed"]] == ["a failure in 154 node-days"]
    json.dumps(found, allow_nan=False)


def test_a_run_that_made_no_evaluation_cannot_tell_what_one_costs(tmp_path):
    costs = priced(tmp_path)
    without = Priced(replace(costs.costs, evaluation_s=0.0, floors_s=0.0), costs.sources, costs.world_size)
    assumed = make_plan(without, Work(300, 100, 100), {}, nodes=1, gpus_per_node=2, mtbf_s=1e6, wait_s=0.0).assumed
    assert assumed == (
        "that evaluations cost nothing: the measured run made none",
        "no time limit (--partition NAME=LIMIT)",
    )


def test_no_more_steps_from_save_to_save_than_there_are(tmp_path):
    assert make_plan(priced(tmp_path), Work(20, 10, 0), {}, nodes=1, gpus_per_node=2).save_every == 20


def test_the_table_says_what_was_assumed_and_what_is_refused(tmp_path):
    console = Console(width=170, record=True, file=(tmp_path / "out").open("w"))
    console.print(tables(make_plan(priced(tmp_path), Work(300, 100, 100), {"tiny": 60.0}, nodes=2, gpus_per_node=4)))
    text = console.export_text()
    for words in ("2 rank(s) measured, 8 share", "tiny: refused, the signal would come", "assumed: 2 minutes",
                  "train.save_every=", "it is 100 now", "--signal="):  # fmt: skip
        assert words in text, text


def test_durations_are_told_for_people():
    assert [told(s) for s in (0.0123, 59.4, 750, 11_100, 190_000)] == [
        "0.0123 s", "59.4 s", "12 min 30 s", "3 h 05 min", "2 d 04 h",
    ]  # fmt: skip


def plan(run: Path, config: Path, *words: object):
    return run_file("launch/plan.py", "--config", config, "--measured", run, "data.shards=none", *words)


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("train: {steps: 300, save_every: 100, evaluate_every: 100}\n")
    return path


def test_the_command_plans_from_an_earlier_run(tmp_path, config):
    run = ledger(tmp_path / "run")
    done = plan(run, config, "--gpus-per-node", 2, "--partition", "gpu=0:04:00", "--mtbf-hours", 10, "--json")
    found = json.loads(done.stdout)
    assert found["work"] == {"steps": 300, "save_every": 100, "evaluate_every": 100}
    assert found["partitions"][0]["limit_s"] == 240 and found["mtbf_s"] == 36_000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--partition", "gpu=1"], "ahead of a time limit of 60 s"),
        (["--partition", "gpu=4", "--lead", "239"], "so none would get anywhere"),
        (["--partition", "gpu"], "'' is no time limit"),
        (["--mtbf-hours", "-1"], "--mtbf-hours -1 is not a time"),
    ],
)
def test_the_command_refuses(tmp_path, config, words, message):
    done = plan(ledger(tmp_path / "run"), config, "--gpus-per-node", 2, *words)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_a_calibration_measures_all_there_is(tiny_index, tmp_path):
    train = {"steps": 999, "global_batch": 4, "micro_batch": 4, "threads": 1, "evaluate_split": "test"}
    evaluate = {"generate_windows": 2, "resamples": 10, "num_examples": 1}
    data = {"shards": str(tiny_index.root), "max_wordpieces": 20}
    settings = tmp_path / "small.yaml"
    settings.write_text(yaml.safe_dump({"model": SMALL, "train": train, "data": data, "evaluate": evaluate}))

    program = [sys.executable, str(ROOT / "launch/train.py"), "--config", str(settings)]
    found = calibrate(program, tmp_path / "run", 12, evaluates=True, processes=1, environment=os.environ)
    costs = found.costs
    assert all(source.startswith("measured") for source in found.sources.values()), found.sources
    assert min(costs.step_s, costs.start_s, costs.restart_s, costs.stall_s, costs.write_s, costs.evaluation_s) > 0
    assert costs.exit_s > 0 and costs.spread > 1
    assert [life.ended for life in read_lives(tmp_path / "run")] == ["stopped", "finished"]
