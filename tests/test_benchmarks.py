"""The loader benchmark: it runs, counts what was delivered, and says what is missing. No figure is asserted."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.loader_results import Results
from benchmarks.loader_runs import TABLES, Run, jpeg_runs, runs_of
from benchmarks.loader_tables import render
from benchmarks.peers.batch import Story, collate_once, collate_windows, pixels, resized

ROOT = Path(__file__).resolve().parents[1]
DATA = {"stories": 2, "frames": 12, "windows": 4, "jpeg_bytes": 23000.0, "wordpieces": 100.0}
OURS, WEBDATASET, LITDATA = Run("ours", "fast", 2), Run("webdataset", "fast", 2), Run("litdata", "fast", 2)


def benchmark(*options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "benchmarks/loader.py", *map(str, options)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )


def measured(run: Run, number: int, cpu_s: float, **more: object) -> dict:
    times = {"cpu_s": cpu_s, "wall_s": 1.0, "first_batch_s": 0.1, "other_cores": 0.0, "load_average": 1.0}
    return {"run": run.name, "round": number, **times, "frames": 12, "windows": 4, **more}


def content(*measurements: dict, failures: dict | None = None) -> dict:
    return {
        "date": "today",
        "settings": {"rounds": 2, "tables": list(TABLES), "only": []},
        "machine": {"cpu": "a processor", "cores": 2, "memory_gib": 24.0, "python": "3.11", "kernel": "6"},
        "versions": {},
        "data": DATA,
        "failures": failures or {},
        "measurements": list(measurements),
    }


def test_it_runs_from_nothing_to_the_table(tmp_path):
    out = tmp_path / "loader"
    options = ("--stories", 8, "--rounds", 1, "--only", "ours,webdataset", "--tables", "jpeg")
    done = benchmark(*options, "--data", tmp_path / "data", "--out", out)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.with_suffix(".json").read_text())
    assert found["failures"] == {}
    facts = found["data"]
    assert facts["stories"] == 8 and 20_000 < facts["jpeg_bytes"] < 27_000 and 80 < facts["wordpieces"] < 130
    runs = {m["run"]: m for m in found["measurements"]}
    assert set(runs) == {"ours-fast-w2", "webdataset-fast-w2"}
    for each in runs.values():
        assert (each["frames"], each["windows"]) == (facts["frames"], facts["windows"])
        assert (each["epoch"]["frames"], each["epoch"]["windows"]) == (facts["frames"], facts["windows"])
        assert min(each["cpu_s"], each["wall_s"], each["first_batch_s"], each["batch_bytes"]) > 0
    assert len({each["epoch"]["digests"][1] for each in runs.values()}) == 1, "the same texts from all"
    page = out.with_suffix(".md").read_text()
    assert done.stdout.strip() == page.strip()
    rows = [line for line in page.splitlines() if line.startswith(("| storydist |", "| webdataset |"))]
    assert len(rows) == 2 and all("| all" in row for row in rows), page


def test_what_failed_is_in_the_table_with_its_reason():
    page = render(content(measured(OURS, 0, 1.0), failures={"litdata-original": "No module named 'litdata'"}))
    assert "| LitData | not measured: No module named 'litdata' |" in page


def test_a_loader_that_loses_windows_is_found_out():
    lost = measured(WEBDATASET, 1, 1.0, windows=3)
    results = Results(content(measured(WEBDATASET, 0, 1.0), lost, measured(OURS, 0, 1.0)))
    assert results.delivered(WEBDATASET) == "3 of 4 windows"
    assert results.delivered(OURS) == "all"


def test_other_texts_are_found_out():
    runs = ((WEBDATASET, 8), (LITDATA, 8), (OURS, 9))
    same = [measured(run, 0, 1.0, epoch={"digests": [run.workers, text]}) for run, text in runs]
    results = Results(content(*same))
    assert results.delivered(WEBDATASET) == "all" and results.delivered(OURS) == "all, other texts"


def test_ratios_are_taken_inside_rounds():
    # The second round met a slow machine: 3 times and 2 times as fast, not 12 / 2 over 4 / 1.
    slow = [measured(OURS, 1, 12.0), measured(WEBDATASET, 1, 24.0)]
    results = Results(content(measured(OURS, 0, 1.0), measured(WEBDATASET, 0, 3.0), *slow))
    assert results.ratios(OURS, WEBDATASET, "cpu_s") == [3.0, 2.0]
    assert results.best_peer(jpeg_runs(2)) == WEBDATASET


def test_every_table_can_be_cut_down_to_some_loaders():
    runs = runs_of(TABLES, ["ours", "webdataset"], 7000)
    assert {run.contestant for run in runs} == {"ours", "webdataset", "webdataset_same", "memory_map", "decoder"}
    assert len(runs) == len({run.name for run in runs})


def test_a_wrong_name_is_a_message():
    done = benchmark("--only", "ours,webdatset")
    assert done.returncode == 2 and "there is no 'webdatset'" in done.stderr and "Traceback" not in done.stderr


def test_both_layouts_hold_the_same_windows():
    generator = np.random.default_rng(0)
    stories = [
        Story(
            frames=generator.integers(0, 256, (count, 60, 125, 3), dtype=np.uint8),
            wordpieces=np.arange(1, 3 * count + 1, dtype=np.int32),
            lengths=np.full(count, 3, np.int32),
        )
        for count in (5, 8)
    ]
    windows, once = collate_windows(stories), collate_once(stories)
    assert windows["num_windows"] == once["num_windows"] == 1 + 4
    assert windows["num_frames"] == once["num_frames"] == 13
    for name in ("frames", "wordpieces", "lengths"):
        assert (windows[name] == once[name][once["windows"]]).all()
    assert once["windows"][:, 0].tolist() == [0, 5, 6, 7, 8]


@pytest.mark.parametrize("decoder", ["pil", "fast"])
def test_decoders_agree_on_the_picture(decoder):
    ramp = np.linspace(0, 255, 575, dtype=np.uint8)
    image = Image.fromarray(np.broadcast_to(ramp[None, :, None], (240, 575, 3)).copy())
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    [found] = pixels([buffer.getvalue()], decoder)
    assert found.shape == (60, 125, 3)
    assert np.abs(found.astype(int) - resized(image)).max() <= 4
