"""The whole pipeline, unchanged, on data that this project did not make; skipped where that data is not at hand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = ROOT.parent / "shared" / "data" / "outside"
SMALL = [
    "model.width=16",
    "model.frame_channels=[4,8]",
    "model.latent_width=16",
    "model.text_hidden=16",
    "model.text_embedding=16",
]

pytestmark = pytest.mark.skipif(not OUTSIDE.is_dir(), reason="the outside data is not here")


def command(*words: object) -> str:
    """stdout of a command of this repository; fails the test with its stderr when it fails."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("source", "metadata", "split"),
    [
        (["--source", OUTSIDE / "parquet"], "metadata.csv", "test"),
        ([], "frames.csv", "test"),
        ([], "video.csv", "train"),  # two stories: all are train
    ],
    ids=["parquet", "frames_dir", "video_path"],
)
def test_outside_data_goes_all_the_way(source, metadata, split, tmp_path):
    shards, run = tmp_path / "shards", tmp_path / "run"
    command(
        "shards/build.py",
        *source,
        "--metadata",
        OUTSIDE / metadata,
        "--out",
        shards,
        "--size",
        "60x125",
        "--workers",
        "1",
    )
    assert "sound" in command("shards/verify.py", shards)
    command(
        "launch/train.py",
        "--config",
        "configs/demo.yaml",
        f"data.shards={shards}",
        f"run.dir={run}",
        "train.steps=2",
        "train.global_batch=2",
        "train.evaluate_every=0",
        *SMALL,
    )
    assert "image L1" in command("launch/evaluate.py", run, "--split", split, "--generate-windows", "2")
    command("launch/predict.py", run, "--split", split, "--num", "2")
    command("launch/report.py", run, "--split", split)
    page = (run / "report.html").read_text()
    assert "image L1" in page
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|url\(\s*["']?https?:|@import|<script""", page), (
        "opens offline"
    )
