"""What loader.py measured, and what follows from it: rates, ratios taken inside each round, what was delivered."""

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.loader_runs import PEERS, Run, headline_runs, jpeg_runs, raw_runs, scaling_runs

MIB = 1 << 20


class Results:
    """Measurements of all rounds by run, and why others are missing: {run or contestant-frames: reason}."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content
        self._failures: dict[str, str] = content["failures"]
        self._rounds: dict[str, dict[int, dict[str, Any]]] = {}
        for measured in content["measurements"]:
            self._rounds.setdefault(measured["run"], {})[measured["round"]] = measured

    def of(self, run: Run) -> list[dict[str, Any]]:
        return list(self._rounds.get(run.name, {}).values())

    def why_not(self, run: Run) -> str | None:
        """Why a run failed; None: it did not, or was not asked for."""
        return self._failures.get(run.name) or self._failures.get(f"{run.contestant}-{run.frames}")

    def rates(self, run: Run, per: str, what: str = "frames") -> list[float]:
        """`what` per second of `per` (cpu_s or wall_s), a round each."""
        return [measured[what] / measured[per] for measured in self.of(run)]

    def rate(self, run: Run, per: str, what: str = "frames") -> float:
        """Their median."""
        return statistics.median(self.rates(run, per, what))

    def spread(self, run: Run, per: str, what: str = "frames") -> float:
        """Their median absolute deviation over their median."""
        rates = self.rates(run, per, what)
        middle = statistics.median(rates)
        return statistics.median(abs(rate - middle) for rate in rates) / middle

    def ratios(self, run: Run, base: Run, per: str) -> list[float]:
        """Frames per second of `per` against the base's in the same round."""
        own, others = self._rounds.get(run.name, {}), self._rounds.get(base.name, {})
        return [own[r]["frames"] / own[r][per] / (others[r]["frames"] / others[r][per]) for r in own if r in others]

    def median_of(self, run: Run, what: str) -> float:
        return statistics.median(measured[what] for measured in self.of(run))

    def checked(self, run: Run) -> dict[str, Any] | None:
        """The measurement that also says what was delivered, and how much memory that took."""
        return next((measured for measured in self.of(run) if "epoch" in measured), None)

    def best_peer(self, runs: Sequence[Run]) -> Run | None:
        """Of the loaders as their users would write them, the one with most frames per CPU-second."""
        peers = [run for run in runs if run.contestant in PEERS and run.layout == "windows" and self.of(run)]
        return max(peers, key=lambda run: self.rate(run, "cpu_s"), default=None)

    def delivered(self, run: Run) -> str:
        """Whether each round brought every frame and window, with the content that most peers have."""
        data = self.content["data"]
        wanted = {"frames": data["frames"] * run.epochs, "windows": data["windows"] * run.epochs}
        if run.unit == "window":
            wanted["frames"] = 5 * wanted["windows"]
        for measured in self.of(run):
            for what, number in wanted.items():
                if measured[what] != number:
                    return f"{measured[what]} of {number} {what}"
        checked = self.checked(run)
        if checked is None or run.contestant == "memory_map":  # it has no texts
            return "all"
        pixels, texts = checked["epoch"]["digests"]
        most_pixels, most_texts = self._usual_digests(run.decoder)
        return "all" + ", own pixels" * (pixels != most_pixels) + ", other texts" * (texts != most_texts)

    def _usual_digests(self, decoder: str) -> list[int]:
        checked = [m for m in self.content["measurements"] if "epoch" in m and f"-{decoder}-" in m["run"]]
        peers = [m for m in checked if m["run"].startswith(PEERS)] or checked
        return [statistics.mode(digests) for digests in zip(*(m["epoch"]["digests"] for m in peers), strict=True)]

    def memory_mib(self, run: Run) -> tuple[float, float, float] | None:
        """All that a rank holds, its largest worker (0: none), and the batches that are read ahead or in use."""
        checked = self.checked(run)
        if checked is None:
            return None
        ahead = checked["in_flight"] * checked["batch_bytes"]
        return checked["memory_bytes"] / MIB, checked["worker_bytes"] / MIB, ahead / MIB


def aims(results: Results) -> list[tuple[str, str, str]]:
    """[(what is aimed at, at least or most, found)] for storydist; only what was measured."""
    ours, best = Run("ours", "fast", 2), results.best_peer(jpeg_runs(2))
    whole, window = (
        next(r for r in raw_runs(results.content["data"]["frames"]) if r.unit == u) for u in ("story", "window")
    )
    one, _, ranks = scaling_runs()
    found = []

    def add(text: str, needed: str, runs: Sequence[Run | None], figure: Any) -> None:
        if all(run is not None and results.of(run) for run in runs):
            found.append((text, needed, figure()))

    def ratio(run: Run, base: Run, per: str) -> str:
        ratios = results.ratios(run, base, per)
        return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"

    add("JPEG, frames per CPU-second, 2 threads", "1,700", [ours], lambda: f"{results.rate(ours, 'cpu_s'):,.0f}")
    if best is not None:
        add("JPEG, CPU, to the best peer with the same decoder", "1.3", [ours], lambda: ratio(ours, best, "cpu_s"))
    webdataset = headline_runs()[1]
    add("JPEG, wall, to idiomatic webdataset", "4", [ours, webdataset], lambda: ratio(ours, webdataset, "wall_s"))
    add("raw, whole stories, frames per CPU-second", "80,000", [whole], lambda: f"{results.rate(whole, 'cpu_s'):,.0f}")
    add(
        "raw, shuffled windows, window-frames per CPU-second", "60,000", [window],
        lambda: f"{5 * results.rate(window, 'cpu_s', 'windows'):,.0f}",
    )  # fmt: skip
    add("2 threads to 1, wall", "1.8", [ours, one], lambda: ratio(ours, one, "wall_s"))
    add("2 ranks to 1, wall", "1.8", [ranks, one], lambda: ratio(ranks, one, "wall_s"))
    add("first batch, seconds", "at most 0.5", [ours], lambda: f"{results.median_of(ours, 'first_batch_s'):.2f}")
    memory = results.memory_mib(ours)
    if memory is not None:
        found.append(("memory beyond batches in flight, MiB", "at most 76", f"{memory[0] - memory[2]:.0f}"))
    return found
