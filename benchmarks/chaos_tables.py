"""What chaos.py did, as tables: how often what was killed where, and what became of it."""

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.chaos_life import DEEDS, PHASES

Entries = Sequence[dict[str, Any]]


def tables(journals: Mapping[str, Entries]) -> tuple[str, bool]:
    """Markdown of all cases; and whether nothing was lost, wrong or left behind."""
    parts = [_cases(journals)]
    parts.append(_kills("killed", "deed", journals, DEEDS, lambda life: life["plan"]["deed"]))
    parts.append(_kills("by launcher", "launcher", journals, (), lambda life: life["plan"]["launcher"]))
    parts.append(_kills("in phase", "phase", journals, PHASES, lambda life: life["phase"]))
    problems = [
        f"- {case} {entry['run']} life {entry['number']}: {problem}"
        for case, entries in journals.items()
        for entry in entries
        if entry["kind"] == "life"
        for problem in entry["problems"]
    ]
    problems += [
        f"- {case} {entry['run']}: {entry['difference']}"
        for case, entries in journals.items()
        for entry in entries
        if entry["kind"] == "end" and entry["difference"] is not None
    ]
    return "\n\n".join(parts + (["\n".join(problems)] if problems else [])), not problems


def _cases(journals: Mapping[str, Entries]) -> str:
    ends_well, gone_s = "runs to their end, the same bit for bit", "seconds until gone, median (most)"
    rows = [f"| case | kills | resumed | lost | wrong | orphans | {ends_well} | {gone_s} |"]
    rows.append("|---|---|---|---|---|---|---|---|")
    for case, entries in journals.items():
        lives, ends = ([e for e in entries if e["kind"] == kind] for kind in ("life", "end"))
        killed = [life for life in lives if life["killed"]]
        gone = [life["gone_s"] for life in killed if not life["never_met"] and not _at_once(life)] or [0.0]
        lost, wrong, orphans = (_problems(lives, kind) for kind in ("lost", "wrong", "left"))
        same = f"{sum(end['difference'] is None for end in ends)} of {len(ends)}"
        if apart := [end["losses"] for end in ends if "losses" in end]:
            same += f", losses within {max(apart):.0e}"
        rows.append(
            f"| {case} | {len(killed)} | {_resumed(entries)} | {lost} | {wrong} | {orphans} | {same} "
            f"| {statistics.median(gone):.1f} ({max(gone):.1f}) |"
        )
    return "\n".join(rows)


def _kills(
    title: str, kind: str, journals: Mapping[str, Entries], order: Sequence[str], of: Callable[[dict[str, Any]], str]
) -> str:
    """Kills of each case by `of`; the last column says how many of them were followed by a resume."""
    cases = list(journals)
    killed = {case: [e for e in entries if e["kind"] == "life" and e["killed"]] for case, entries in journals.items()}
    found = {of(life) for lives in killed.values() for life in lives}
    keys = [key for key in order if key in found] + sorted(found - set(order))
    rows = [f"| {kind} | " + " | ".join(cases) + " |", "|---" * (len(cases) + 1) + "|"]
    for key in keys:
        counts = [str(sum(of(life) == key for life in killed[case])) for case in cases]
        rows.append(f"| {key} | " + " | ".join(counts) + " |")
    return f"Kills {title}:\n\n" + "\n".join(rows)


def _at_once(life: dict[str, Any]) -> bool:
    return life["plan"].get("at_once", False)


def _resumed(entries: Entries) -> int:
    """Kills after which the next life of the run was in order."""
    lives = [entry for entry in entries if entry["kind"] == "life"]
    return sum(
        life["killed"] and life["run"] == later["run"] and not later["problems"]
        for life, later in itertools.pairwise(lives)
    )


def _problems(lives: Entries, kind: str) -> int:
    return sum(any(problem.startswith(kind) for problem in life["problems"]) for life in lives)
