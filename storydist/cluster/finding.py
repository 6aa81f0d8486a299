"""What checks found, who is to blame, and how it is told."""

import textwrap
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

FINE, SETTINGS, NODES = (
    0,
    2,
    3,
)  # exit codes: nothing fails; something fails wherever the job runs; particular nodes fail
WIDTH = 160  # of a line of the table


@dataclass(frozen=True)
class Finding:
    """`what` was found; `remedy`: what to do. `of_node`: a machine is at fault even if no other one does better."""

    check: str
    level: Literal["ok", "warn", "FAIL"]
    what: str
    remedy: str = ""
    of_node: bool = False
    node: str = ""


def ok(check: str, what: str) -> Finding:
    return Finding(check, "ok", what)


def warn(check: str, what: str, remedy: str) -> Finding:
    return Finding(check, "warn", what, remedy)


def fail(check: str, what: str, remedy: str, of_node: bool = False, node: str = "") -> Finding:
    return Finding(check, "FAIL", what, remedy, of_node, node)


@dataclass(frozen=True)
class Verdict:
    """`code`: the exit code. `bad_nodes`: those to leave out, in the order they were given; only with NODES."""

    code: int
    bad_nodes: tuple[str, ...] = ()


def judge(findings: Iterable[Finding], nodes: Sequence[str]) -> Verdict:
    """A failed check is a node's fault where another node passes it, or where it is of the machine itself; what fails
    on all nodes is wrong with the settings, and then there is no use in other nodes.
    """
    failed = defaultdict(list)
    for finding in findings:
        if finding.level == "FAIL":
            failed[finding.check].append(finding)
    blamed: set[str] = set()
    for found in failed.values():
        names = {finding.node for finding in found}
        if all(finding.of_node for finding in found) or not names.issuperset(nodes):
            blamed |= names
        else:
            return Verdict(SETTINGS)
    bad = tuple(dict.fromkeys(node for node in [*nodes, *sorted(blamed)] if node in blamed and node))
    if bad:
        return Verdict(NODES, bad)
    return Verdict(SETTINGS if failed else FINE)


def table(findings: Sequence[Finding], nodes: Sequence[str]) -> str:
    """A line for each check and each thing that is not in order, those of several nodes together: what fails last, so
    that it stands at the end of a log.
    """
    grouped: dict[tuple[str, str, str, str], list[str]] = {}
    passed: set[str] = set()
    troubled = {finding.check for finding in findings if finding.level != "ok"}
    for finding in findings:
        if finding.level == "ok":
            if finding.check in passed | troubled:
                continue  # one line says that all is well; figures are those of the first node
            passed.add(finding.check)
        key = (finding.level, finding.check, finding.what, finding.remedy)
        where = grouped.setdefault(key, [])
        if finding.node not in where:
            where.append(finding.node)
    order = ("ok", "warn", "FAIL")
    lines: list[str] = []
    for (level, check, what, remedy), where in sorted(grouped.items(), key=lambda item: order.index(item[0][0])):
        told = "all" if level == "ok" or set(where) >= set(nodes) else ",".join(where)
        head = f"{level:<5}{check:<15}{told:<{_width(nodes)}}"
        indent = " " * len(f"{'':<20}{'':<{_width(nodes)}}")
        lines += textwrap.wrap(head + what, WIDTH, subsequent_indent=indent, break_long_words=False)
        lines += textwrap.wrap(f"-> {remedy}", WIDTH, initial_indent=indent, subsequent_indent=f"{indent}   ") * bool(
            remedy
        )
    return "\n".join(lines)


def _width(nodes: Sequence[str]) -> int:
    return min(24, max([4, *map(len, nodes)])) + 2
