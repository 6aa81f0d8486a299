"""What a run tells: files, tables, the page, runs side by side, and the commands' messages."""

import html
import io
import json
import re
import sys

import pytest
from accelerate.state import AcceleratorState
from rich.console import Console

import launch.compare
import launch.evaluate
import launch.predict
import launch.report
from storydist.command import run_command
from storydist.run_folder import write_facts
from storydist.training.trainer import build_run, train
from storydist.verdict.assemble import MEANINGS, choice_merit, ordered_floors, verdict
from storydist.verdict.compare import column_names, compare, comparison_html, comparison_table
from storydist.verdict.curves import chart, evaluation_series, training_series
from storydist.verdict.page import page_of_run, render_page
from storydist.verdict.report import (
    evaluation_text,
    figure,
    number,
    others_text,
    read_evaluation,
    read_metrics,
    strongest_text,
    summary,
    write_evaluation,
)
from tests.small_runs import small_config

EVIL = '<script>alert("x")</script> & [bold]{{ 7 * 7 }}'


def metric(value, better="lower", floors=None, interval=None, reference=None):
    return {
        "value": value,
        "unit": "pixel range 0-1",
        "better": better,
        "floors": floors or {},
        "reference": reference,
        "subset": "all",
        "interval": interval,
        "about": "what it is",
    }


def evaluation(split="test", fingerprint="abc", l1=0.1):
    return {
        "split": split,
        "step": 20,
        "num_stories": 3,
        "num_windows": 12,
        "index_fingerprint": fingerprint,
        "seed": 0,
        "metrics": {
            "image L1": metric(l1, floors={"median image": 0.15, "copy last": 0.17, "best of 4 inputs (oracle)": 0.08}),
            "spread": metric(0.1, "closest", {"median image": 0.0}, reference=0.2),
            "score R2": metric(0.6, "higher", {"train mean": -0.01, "bag-of-tags ridge": 0.7}, interval=[0.4, 0.7]),
        },
        "examples": [
            {
                "pick": "random",
                "story_id": EVIL,
                "position": 4,
                "near_copy": False,
                "image_l1": 0.1,
                "input_frames": ["AAAA"] * 4,
                "target_frame": "AAAA",
                "predicted_frame": "AAAA",
                "input_texts": [EVIL] * 4,
                "target_text": EVIL,
                "generated_text": EVIL,
                "score_true": None,
                "score_predicted": 0.5,
            }
        ],
    }


LINES = [
    {"step": 10, "kind": "train", "loss": 2.0, "loss/next_frame": 0.3, "learning_rate": 1e-3},
    {"step": 20, "kind": "train", "loss": 1.0, "loss/next_frame": 0.2, "learning_rate": 5e-4},
    {
        "step": 20,
        "kind": "evaluation",
        "split": "val",
        "metrics": {"image L1": {"value": 0.1, "floors": {"median image": 0.15}}},
    },
]


@pytest.fixture
def run(tmp_path):
    run = tmp_path / "my-run"
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    (run / "config.yaml").write_text(f"run:\n  dir: 'x'\n# {EVIL}\n")
    (run / "environment.json").write_text(
        json.dumps({"packages": {"torch": "9.9"}, "commit": EVIL, "changed_files": []})
    )
    return run


def printed(table) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_an_evaluation_comes_back_as_written(run):
    for split, name in (("test", "evaluation.json"), ("val", "evaluation-val.json")):
        assert write_evaluation(run, evaluation(split)) == run / name
        assert read_evaluation(run, split) == evaluation(split)
        assert "examples" not in json.loads((run / name).read_text())


def test_missing_or_broken_evaluations_say_what_to_do(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no evaluation-val.json; make it with: python launch/evaluate.py"):
        read_evaluation(run, "val")
    with pytest.raises(FileNotFoundError, match="there is no such run"):
        read_evaluation(tmp_path / "nowhere")
    for content in ("{", "[]", "{}"):
        (run / "evaluation.json").write_text(content)
        with pytest.raises(ValueError, match=r"evaluation.json is not"):
            read_evaluation(run)


def test_metrics_survive_a_kill_and_a_resume(run):
    path = run / "metrics.jsonl"
    again = {**LINES[1], "loss": 0.9}
    path.write_text("".join(json.dumps(line) + "\n" for line in [*LINES, again]) + '{"step": 30, "ki')
    found = read_metrics(run)
    assert [entry["step"] for entry in found] == [10, 20, 20] and found[1]["loss"] == 0.9
    path.write_text('{"step": 30, "ki\n' + json.dumps(LINES[0]) + "\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 1"):
        read_metrics(run)


@pytest.mark.parametrize("width", [60, 80, 100, 130, 170])
def test_table_shows_every_floor_at_every_width(width):
    text = evaluation_text(evaluation(), width).plain
    flat = " ".join(text.split())
    l1 = "0.150 median image 0.170 copy last, 0.080 best of 4 inputs (oracle)"
    assert f"image L1 ↓ 0.100 beats all {l1}" in flat
    assert "spread → 0.100 beats all 0.000 median image 0.200 the targets' own" in flat
    assert ("0.600 [0.400, 0.700]" in flat) == (width >= 100) and "level 0.700 bag-of-tags ridge -0.010 train" in flat
    assert width < 80 or max(map(len, text.splitlines())) <= width
    assert "One training seed" in flat
    assert text.splitlines()[-2:] == [
        "beats every floor in 2 of 3 metrics",
        "level with the strongest floor: score R2",
    ]


def test_summary_names_what_falls_short():
    told = evaluation()
    told["metrics"] = {
        "BLEU": metric(1.0, "higher", {"copy last": 2.0}),
        "score R2": metric(0.5, "higher", {"train mean": 0.0, "bag-of-tags ridge": 0.7}, interval=[0.4, 0.6]),
        "text CE": metric(1.0),
    }
    assert summary(told) == [
        "beats every floor in 0 of 2 metrics",
        "beats the constant floors only: score R2",
        "behind a floor: BLEU",
    ]


def test_level_means_that_the_interval_holds_the_strongest_floor():
    floors = {"train mean": 0.0, "bag-of-tags ridge": 0.5}
    for value, interval, expected in (
        (0.6, [0.4, 0.7], "level"),
        (0.45, [0.4, 0.7], "level"),
        (0.6, [0.55, 0.7], "beats all floors"),
        (0.4, [0.3, 0.45], "beats constants"),
        (0.6, None, "beats all floors"),
    ):
        assert verdict(metric(value, "higher", floors, interval)) == expected


def test_strongest_floor_comes_first_whichever_way_is_better():
    floors = {"a": 0.1, "b": 0.9, "c (oracle)": 0.3, "d": None}
    assert [name for name, _ in ordered_floors(metric(0.5, "lower", floors))] == ["a", "b"]
    assert [name for name, _ in ordered_floors(metric(0.5, "higher", floors))] == ["b", "a"]
    assert [name for name, _ in ordered_floors(metric(0.5, "closest", floors, reference=1.0))] == ["b", "a"]
    assert [name for name, _ in ordered_floors(metric(0.5, "closest", floors))] == ["a", "b"]


def test_only_metrics_with_a_better_end_choose_a_checkpoint():
    told = {"image L1": metric(0.2), "text R@10": metric(0.3, "higher"), "score R2": metric(float("nan"), "higher")}
    assert choice_merit(told, "image L1") == -0.2 and choice_merit(told, "text R@10") == 0.3
    assert choice_merit(told, "score R2") is None and choice_merit(told, "score Pearson") is None
    for name in (name for name, meaning in MEANINGS.items() if meaning.better == "closest"):
        with pytest.raises(ValueError, match="close to the targets' own"):
            choice_merit(told, name)
    with pytest.raises(ValueError, match=r"'R@10' cannot choose .* is no metric; use image L1, "):
        choice_merit(told, "R@10")


def test_numbers_are_short():
    assert [number(x) for x in (None, 0.0, 0.12345, 12.345, 0.00012)] == ["–", "0.000", "0.123", "12.3", "1.2e-04"]
    assert figure(metric(1.0)) == "1.000" and strongest_text(metric(1.0)) == "" and others_text(metric(1.0)) == []


def test_charts_are_plain_svg_and_repeatable():
    (one,) = evaluation_series(LINES)
    assert one.name == "val: image L1" and one.floors == {"median image": 0.15}
    text = chart(one)
    assert text == chart(one) and text.startswith("<svg") and "median image 0.150" in text
    assert "currentColor" in text and "#010203" not in text
    assert [series.name for series in training_series(LINES)] == ["loss", "loss/next_frame", "learning_rate"]


def test_evil_names_do_not_leave_the_chart():
    line = {"step": 1, "kind": "train", EVIL: 1.0}
    assert "<script" not in chart(training_series([line])[0])


def test_page_needs_nothing_and_escapes_everything(run):
    write_evaluation(run, evaluation())
    text, evaluated = page_of_run(run, "test")
    assert evaluated and "<script" not in text and "{{ 7 * 7 }}" in text and "&lt;script&gt;" in text
    # Nothing is fetched: every address is data, an XML namespace or a place in the page itself.
    addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", text)
    assert addresses and all(address.startswith(("data:", "#")) for address in addresses)
    assert "@import" not in text and "default-src 'none'" in text
    for expected in (
        "image L1",
        "median image",
        "Beats every floor in 2 of 3 metrics",
        "Level with the strongest floor",
        "torch",
        "9.9",
        "Drawn at random",
        "val: image L1",
    ):
        assert expected in text


def test_page_before_an_evaluation_shows_the_curves(run):
    text, evaluated = page_of_run(run, "test")
    assert not evaluated and "Not evaluated yet" in text and "loss/next frame" in text
    with pytest.raises(ValueError, match="neither an evaluation nor metrics"):
        render_page("run", None, [], settings="", versions={}, data={})
    with pytest.raises(FileNotFoundError, match="no such run"):
        page_of_run(run / "nowhere", "test")


def test_compare_marks_the_best_and_warns(tmp_path):
    runs = [tmp_path / "a", tmp_path / "b[bold]"]
    rows, warnings = compare(runs, [evaluation(l1=0.2), evaluation(l1=0.1)])
    assert warnings == [] and rows[0].best == {1} and rows[0].floor == "0.150 median image"
    assert rows[2].floor == "0.700 bag-of-tags ridge" and rows[1].best == {0, 1}
    table = printed(comparison_table(runs, rows))
    assert "b[bold]" in table and "0.100*" in table and "0.200*" not in table
    text = comparison_html(runs, rows, [EVIL])
    assert "<strong>0.100</strong>" in text and "<script" not in text
    _, warnings = compare(runs, [evaluation(), evaluation(split="val", fingerprint="other")])
    assert len(warnings) == 2 and "different splits" in warnings[0] and "different shards" in warnings[1]


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    runs = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    assert column_names(runs) == [str(run) for run in runs] and column_names(runs[:1]) == ["run"]


def test_compare_shows_metrics_that_only_one_run_has(tmp_path):
    other = evaluation()
    del other["metrics"]["spread"]
    rows, _ = compare([tmp_path / "a", tmp_path / "b"], [other, evaluation()])
    assert next(row for row in rows if row.metric.startswith("spread")).values == ["", "0.100"]


def run_in_place(monkeypatch, command, *arguments) -> int:
    """Exit code of a command as a shell would see it."""
    monkeypatch.setattr(sys, "argv", [command.__file__, *arguments])
    return run_command(command.main)


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (launch.evaluate, ["nowhere"], "nowhere"),
        (launch.evaluate, ["nowhere", "--device", "toaster"], "toaster"),
        (launch.predict, ["nowhere"], "nowhere"),
        (launch.predict, ["nowhere", "--num", "0"], "--num 0"),
        (launch.report, ["nowhere"], "there is no such run"),
        (launch.compare, ["nowhere"], "there is no such run"),
    ],
)
def test_commands_explain_themselves(tmp_path, monkeypatch, capsys, command, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run_in_place(monkeypatch, command, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and len(error.strip().splitlines()) == 1


def test_report_and_compare_commands_write_their_files(run, monkeypatch, capsys):
    write_evaluation(run, evaluation())
    assert run_in_place(monkeypatch, launch.report, str(run)) == 0
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    before = sorted(run.iterdir())
    assert run_in_place(monkeypatch, launch.compare, str(run), str(run)) == 0
    assert sorted(run.iterdir()) == before and "image L1" in capsys.readouterr().out
    assert run_in_place(monkeypatch, launch.compare, str(run), "--html", str(run / "side.html")) == 0
    assert "image L1" in (run / "side.html").read_text()


def test_all_commands_work_on_a_trained_run(tiny_index, tmp_path, monkeypatch, capsys):
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path / "run"
    config = small_config(tiny_index, folder, train={"steps": 1, "device": "cpu"})
    train(build_run(config, tiny_index, "test"))
    write_facts(folder, config)
    capsys.readouterr()

    assert run_in_place(monkeypatch, launch.predict, str(folder), "--num", "3", "--device", "cpu") == 0
    predictions = folder / "predictions" / "test"
    told = [json.loads(line) for line in (predictions / "predictions.jsonl").read_text().splitlines()]
    assert [one["strip"] for one in told] == ["000.png", "001.png", "002.png"]
    assert all((predictions / one["strip"]).read_bytes().startswith(b"\x89PNG") for one in told)
    shown = capsys.readouterr().out
    assert all(one["story_id"] in shown for one in told) and "3 windows written" in shown
    # Asked again for fewer, the folder holds nothing of the first time.
    assert run_in_place(monkeypatch, launch.predict, str(folder), "--num", "1", "--device", "cpu") == 0
    assert [path.name for path in sorted(predictions.iterdir())] == ["000.png", "predictions.jsonl"]

    assert run_in_place(monkeypatch, launch.evaluate, str(folder), "--device", "cpu") == 0
    judged = json.loads((folder / "evaluation.json").read_text())
    shown = capsys.readouterr().out
    assert all(name in shown and all(floor in shown for floor in m["floors"]) for name, m in judged["metrics"].items())
    assert run_in_place(monkeypatch, launch.report, str(folder)) == 0
    page = (folder / "report.html").read_text()
    assert "Time spent training: " in page
    assert all(html.escape(name, quote=False) in page.replace("&#34;", '"') for name in judged["metrics"])
