"""The figures of loader.py as a page in Markdown."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.loader_results import Results, aims
from benchmarks.loader_runs import Run, decoder_runs, headline_runs, jpeg_runs, raw_runs, scaling_runs
from benchmarks.peers import BY_NAME

Cells = list[str]


def render(content: dict[str, Any]) -> str:
    """The whole page."""
    results = Results(content)
    tables: dict[str, Callable[[Results], Cells]] = {
        "jpeg": lambda results: _jpeg(results, 2),
        "jpeg0": lambda results: _jpeg(results, 0),
        "headline": _headline,
        "raw": _raw,
        "scaling": _scaling,
        "decoders": _decoders,
    }
    lines = [f"# Loaders, {content['date']}", "", *_circumstances(content)]
    for name in content["settings"]["tables"]:
        lines += ["", *tables[name](results)]
    lines += ["", "## Aims", "", *_table(["aim", "at least", "found"], aims(results)), "", NOTE, ""]
    return "\n".join(lines)


NOTE = """Frames per CPU-second: each frame of a story counted once; CPU time of the process, its threads and its \
workers. Imports do not count, opening the data and starting workers do. In brackets the spread over rounds: median \
absolute deviation of a rate, smallest and largest of a ratio; ratios are taken inside each round. Memory: written \
pages (page cache apart) of the process and its workers, less what it had once everything was imported. All deliver \
uint8 frames and wordpieces; storydist also tags, characters, times and scores, and checks every member's CRC-32; it \
sends each frame once with windows as rows, the others windows of frames unless it says "each frame sent once"."""


def _circumstances(content: dict[str, Any]) -> Cells:
    data, machine, settings = content["data"], content["machine"], content["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    others = [measured["other_cores"] for measured in content["measurements"]] or [0.0]
    return [
        f"{settings['rounds']} rounds in turn, each measurement in a process of its own, warm page cache, one thread "
        f"per library. {data['stories']} stories, {data['frames']} frames (JPEG 575x240 of "
        f"{data['jpeg_bytes'] / 1000:.1f} KB on average, raw 60x125), {data['windows']} windows of 5 frames, "
        f"{data['wordpieces']:.0f} wordpieces a frame.",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']:.0f} GiB; Python {machine['python']}, "
        f"Linux {machine['kernel']}. Cores that other programs used meanwhile: median {statistics.median(others):.2f}, "
        f"at most {max(others):.2f}.",
        "",
        f"Versions: {versions}.",
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Cells:
    return ["| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows)]


def _rows(
    results: Results, runs: Sequence[Run], width: int, lead: Callable[[Run], Cells], figures: Callable[[Run], Cells]
) -> Iterator[Cells]:
    """A row of `width` cells a run; one that failed shows the reason, one not asked for is left out."""
    for run in runs:
        first, why_not = lead(run), results.why_not(run)
        if results.of(run):
            yield first + figures(run)
        elif why_not is not None:
            yield first + [f"not measured: {why_not}"] + ["-"] * (width - len(first) - 1)


def _label(run: Run) -> str:
    return BY_NAME[run.contestant].label + ", each frame sent once" * (run.layout == "once")


def _rate(results: Results, run: Run, per: str) -> str:
    return f"{results.rate(run, per):,.0f} ({100 * results.spread(run, per):.1f} %)"


def _ratio(results: Results, run: Run, base: Run | None, per: str) -> str:
    if run == base:
        return "1"
    ratios = results.ratios(run, base, per) if base is not None else []
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})" if ratios else "-"


def _memory(results: Results, run: Run) -> str:
    memory = results.memory_mib(run)
    if memory is None:
        return "-"
    rank, worker, ahead = memory
    return f"{rank:.0f}" + f", a worker {worker:.0f}" * (worker > 0) + f", batches {ahead:.0f}"


def _jpeg(results: Results, workers: int) -> Cells:
    runs, base = jpeg_runs(workers), Run("webdataset", "fast", workers)
    best = results.best_peer(runs)

    def figures(run: Run) -> Cells:
        return [
            *(_rate(results, run, "cpu_s"), _ratio(results, run, base, "cpu_s"), _ratio(results, run, best, "cpu_s")),
            *(_rate(results, run, "wall_s"), _ratio(results, run, base, "wall_s")),
            f"{results.median_of(run, 'first_batch_s'):.2f}",
            *(_memory(results, run), results.delivered(run)),
        ]

    header = [
        *("loader", "frames per CPU-s", "to webdataset", f"to the best peer ({_label(best) if best else '-'})"),
        *("wall frames/s", "to webdataset", "first batch, s", "memory, MiB", "delivered"),
    ]
    how = f"{workers} workers (storydist: {workers} threads)" if workers else "no workers (storydist: 1 thread)"
    rows = list(_rows(results, runs, len(header), lambda run: [_label(run)], figures))
    return [f"## JPEG, the same fast decoder, {how}", "", *_table(header, rows)]


def _headline(results: Results) -> Cells:
    decoders = {"pil": "full, Pillow", "fast": "scaled"}
    base = Run("webdataset", "pil", 2)

    def figures(run: Run) -> Cells:
        both = [(_rate(results, run, per), _ratio(results, run, base, per)) for per in ("wall_s", "cpu_s")]
        return [*both[0], *both[1], results.delivered(run)]

    header = ["loader", "decode", "wall frames/s", "to webdataset", "frames per CPU-s", "to webdataset", "delivered"]
    rows = _rows(results, headline_runs(), len(header), lambda run: [_label(run), decoders[run.decoder]], figures)
    return ["## As each is used: Pillow, 2 workers (storydist: 2 threads)", "", *_table(header, list(rows))]


def _raw(results: Results) -> Cells:
    runs = raw_runs(results.content["data"]["frames"])
    base = next(run for run in runs if run.contestant == "webdataset" and run.workers == 0)
    units = {"story": "whole stories", "window": "shuffled windows of 5"}

    def lead(run: Run) -> Cells:
        noun = {"ours": "threads", "memory_map": "-"}.get(run.contestant, "workers")
        return [_label(run), units[run.unit], f"{run.workers} {noun}" if noun != "-" else "-"]

    def figures(run: Run) -> Cells:
        whole = [_rate(results, run, "cpu_s"), _ratio(results, run, base, "cpu_s"), _rate(results, run, "wall_s")]
        return [
            *(whole if run.unit == "story" else ["-"] * 3),
            f"{5 * results.rate(run, 'cpu_s', 'windows'):,.0f}",
            f"{results.median_of(run, 'first_batch_s'):.2f}",
            results.delivered(run),
        ]

    header = [
        *("loader", "sample", "reads with", "frames per CPU-s", "to webdataset", "wall frames/s"),
        *("window-frames per CPU-s (5 a window)", "first batch, s", "delivered"),
    ]
    return [
        "## Raw frames: nothing to decode",
        "",
        *_table(header, list(_rows(results, runs, len(header), lead, figures))),
    ]


def _scaling(results: Results) -> Cells:
    runs = scaling_runs()
    texts = dict(zip(runs, ("1 thread", "2 threads", "2 ranks of 1 thread"), strict=True))

    def figures(run: Run) -> Cells:
        wall, cpu = _rate(results, run, "wall_s"), _rate(results, run, "cpu_s")
        others, load = results.median_of(run, "other_cores"), results.median_of(run, "load_average")
        return [wall, _ratio(results, run, runs[0], "wall_s"), cpu, f"{others:.2f}", f"{load:.2f}"]

    header = [
        "storydist, JPEG",
        "wall frames/s",
        "to 1 thread",
        "frames per CPU-s",
        "cores used by others",
        "load average",
    ]
    rows = list(_rows(results, runs, len(header), lambda run: [texts[run]], figures))
    return ["## Scaling (tells something only where others left two cores free)", "", *_table(header, rows)]


def _decoders(results: Results) -> Cells:
    texts = {
        "pil": "Pillow: full decode, bilinear",
        "fast": "simplejpeg: scaled decode, OpenCV area",
        "scaled": "storydist: data.decode=scaled",
    }
    runs = decoder_runs()

    def figures(run: Run) -> Cells:
        return [_rate(results, run, "cpu_s"), _ratio(results, run, runs[0], "cpu_s")]

    header = ["decode and resize, one core", "frames per CPU-s", "to Pillow"]
    rows = list(_rows(results, runs, len(header), lambda run: [texts[run.decoder]], figures))
    return ["## Decoding alone", "", *_table(header, rows)]
