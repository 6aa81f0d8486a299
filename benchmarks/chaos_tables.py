"""What chaos.py did, as tables: how often what was killed where, and what became of it."""

import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
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


def counts(journals: Mapping[str, Entries]) -> list[dict[str, Any]]:
    """A record for each case, launcher, deed and phase that was met: kills, how many of them the run went on from, how
    many lost something or led to something wrong.
    """
    found: dict[tuple[str, str, str, str], list[int]] = {}
    for case, entries in journals.items():
        for life, resumed in _killed(entries):
            key = (case, life["plan"]["launcher"], life["plan"]["deed"], life["phase"])
            new = (1, resumed, _problems([life], "lost"), _problems([life], "wrong"))
            found[key] = [a + b for a, b in zip(found.get(key, [0] * 4), new, strict=True)]
    names = ("case", "launcher", "deed", "phase", "kills", "resumed", "lost", "wrong")
    return [dict(zip(names, (*key, *numbers), strict=True)) for key, numbers in sorted(found.items())]


def _cases(journals: Mapping[str, Entries]) -> str:
    ends_well, gone_s = (
        "runs to their end, the same bit for bit",
        "seconds until what was not killed is gone, median (most)",
    )
    rows = [f"| case | kills | resumed | lost | wrong | orphans | {ends_well} | {gone_s} |"]
    rows.append("|---|---|---|---|---|---|---|---|")
    for case, entries in journals.items():
        lives, ends = ([e for e in entries if e["kind"] == kind] for kind in ("life", "end"))
        killed = [life for life in lives if life["killed"]]
        gone = [life["gone_s"] for life in killed if _left_by_itself(life)] or [0.0]
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
    """Kills of each case by `of`."""
    cases = list(journals)
    killed = {case: [e for e in entries if e["kind"] == "life" and e["killed"]] for case, entries in journals.items()}
    found = {of(life) for lives in killed.values() for life in lives}
    keys = [key for key in order if key in found] + sorted(found - set(order))
    rows = [f"| {kind} | " + " | ".join(cases) + " |", "|---" * (len(cases) + 1) + "|"]
    for key in keys:
        counts = [str(sum(of(life) == key for life in killed[case])) for case in cases]
        rows.append(f"| {key} | " + " | ".join(counts) + " |")
    return f"Kills {title}:\n\n" + "\n".join(rows)


def _left_by_itself(life: dict[str, Any]) -> bool:
    """Something was not killed and was waited for."""
    plan = life["plan"]
    return not (plan["deed"].endswith("all") or plan.get("at_once") or life["never_met"])


def _resumed(entries: Entries) -> int:
    return sum(resumed for _, resumed in _killed(entries))


def _killed(entries: Entries) -> Iterator[tuple[dict[str, Any], bool]]:
    """Lives that were killed, and whether the next life of the run was in order."""
    lives = [entry for entry in entries if entry["kind"] == "life"]
    for life, later in itertools.zip_longest(lives, lives[1:]):
        if life["killed"]:
            yield life, bool(later) and later["run"] == life["run"] and not later["problems"]


def _problems(lives: Entries, kind: str) -> int:
    return sum(any(problem.startswith(kind) for problem in life["problems"]) for life in lives)
