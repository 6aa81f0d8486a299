"""Measures the demo on the device there is: tests marked gpu, training, memory, waiting, verdict. See gpu.sh."""

import argparse
import json
import platform
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
STEPS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="scratch folder, made if needed")
    parser.add_argument("--train", type=int, default=300, help="stories to synthesise")
    parser.add_argument("--test", type=int, default=60)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    data, shards = arguments.work / "data", arguments.work / "shards"
    report: dict[str, Any] = {
        "date": str(date.today()),
        "device": device(),
        "versions": versions(),
        "gpu_tests": gpu_tests(),
    }
    size = ["--train", str(arguments.train), "--test", str(arguments.test), "--seed", "7"]
    report["synthesize_s"] = run("shards/synthesize.py", "--out", data, *size, "--workers", "2")
    report["build_s"] = run(
        "shards/build.py",
        "--source",
        data,
        "--metadata",
        data / "metadata.csv",
        "--out",
        shards,
        "--frames",
        "raw",
        "--size",
        "60x125",
        "--workers",
        "2",
    )
    report["runs"] = [
        measure(config, precision, shards, arguments) for config in ("demo", "base") for precision in ("bf16", "fp32")
    ]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def measure(config: str, precision: str, shards: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains and judges one configuration; figures from its own log."""
    folder = arguments.work / f"{config}-{precision}"
    settings = [
        f"data.shards={shards}",
        f"run.dir={folder}",
        f"train.steps={arguments.steps}",
        f"train.precision={precision}",
        "train.evaluate_every=0",
    ]
    seconds = run("launch/train.py", "--config", f"configs/{config}.yaml", *settings)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    # The first quarter warms up: kernels are chosen, memory is reserved, the page cache fills.
    steady = sorted(line["samples_per_s"] for line in lines[len(lines) // 4 :])
    waits = [line["data_wait_share"] for line in lines[len(lines) // 4 :]]
    found: dict[str, Any] = {
        "config": config,
        "precision": precision,
        "steps": arguments.steps,
        "whole_command_s": seconds,
        "samples_per_s_median": steady[len(steady) // 2],
        "data_wait_share_mean": sum(waits) / len(waits),
        "final_loss": lines[-1]["loss"],
        "peak_memory_bytes": lines[-1].get("peak_memory_bytes"),
    }
    if config == "demo":
        run("launch/evaluate.py", folder, "--split", "test")
        evaluation = json.loads((folder / "evaluation.json").read_text())
        found["metrics"] = {
            name: {"value": m["value"], "floors": m["floors"]} for name, m in evaluation["metrics"].items()
        }
    return found


def run(*command: object) -> float:
    """Seconds that a command of this repository took; its output goes on to ours. Raises CalledProcessError."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *map(str, command)], check=True, cwd=ROOT)
    return time.perf_counter() - start


def gpu_tests() -> str:
    """The closing line of the tests marked gpu."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    return (done.stdout.strip() or done.stderr.strip()).splitlines()[-1]


def device() -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {"kind": "cpu", "name": platform.processor() or platform.machine()}
    properties = torch.cuda.get_device_properties(0)
    return {
        "kind": "cuda",
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "accelerate", "transformers", "numpy")},
    }


if __name__ == "__main__":
    main()
