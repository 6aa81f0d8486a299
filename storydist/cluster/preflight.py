"""All checks in their order: each rank looks for itself, then they try things together, then rank 0 judges.

A check is a function that returns findings. What it raises is a finding too: no check takes the others with it.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace

import torch

from storydist.cluster import alike, gpu
from storydist.cluster.finding import NODES, SETTINGS, Finding, Verdict, fail, judge, ok, table
from storydist.cluster.meeting import ANSWER_S, Meeting, MissingError, meet
from storydist.cluster.place import Place
from storydist.cluster.rank import Check, Rank, SkippedError
from storydist.command import message_of
from storydist.config import Config

BAD_NODES = "bad nodes: "  # begins the line that slurm/life.sh reads
BYE_S = 5.0  # rank 0 keeps the store until all have read the verdict


def preflight(place: Place, load: Callable[[], Config], lead_s: int | None, wait_s: float) -> int:
    """The exit code: FINE, SETTINGS or NODES, the same on every rank that can be reached. Rank 0 prints the table.

    `load`: reads the settings; `wait_s`: how long ranks are waited for. Collective: every rank calls it.
    """
    start = time.monotonic()
    _leave_after(wait_s + 3 * ANSWER_S)
    try:
        meeting = meet(place, wait_s)
    except (MissingError, OSError) as error:
        return _not_met(place, error)
    met_s = time.monotonic() - start
    try:
        rank = Rank(place, load, lead_s)
        found = _run(rank.alone(), meeting)
        complete = rank.index is not None
        uuid = gpu.uuid_of(rank.device) if complete else None
        meeting.tell("alone", {"findings": found, "facts": rank.facts, "gpu": uuid, "complete": complete})
        findings = _heard(meeting, "alone") if place.rank == 0 else []
        if meeting.hear("go", 0, 2 * ANSWER_S):
            meeting.tell("together", {"findings": _run(rank.together(meeting), meeting)})
            if place.rank == 0:
                findings += _heard(meeting, "together")
        if place.rank == 0:
            first = ok("ranks", f"{place.world_size} on {len(meeting.speakers)} node(s), met within {met_s:.1f} s")
            code = _conclude([replace(first, node=place.node), *findings], tuple(meeting.speakers), start)
            meeting.tell("verdict", code)
        code = meeting.hear("verdict", 0)
        _part(meeting)
        return code
    except (MissingError, torch.distributed.DistError) as error:
        return _not_met(place, error)


def _run(checks: dict[str, Check], meeting: Meeting) -> list[dict[str, object]]:
    """The findings of all checks, with this node's name."""
    findings: list[Finding] = []
    for name, check in checks.items():
        meeting.at(name)
        try:
            findings += check()
        except SkippedError:
            continue
        except (ValueError, OSError) as error:
            findings.append(fail(name, message_of(error), "see the message; it holds for the training too"))
        except Exception as error:  # whatever it is, the other checks and ranks have to be heard as well
            findings.append(fail(name, f"{type(error).__name__}: {error}", "see the message"))
    return [asdict(replace(finding, node=finding.node or meeting.place.node)) for finding in findings]


def _heard(meeting: Meeting, subject: str) -> list[Finding]:
    """Rank 0: what all ranks found; after "alone" also what they have unlike, and whether it can go on."""
    heard, missing = meeting.hear_all(subject)
    findings = [Finding(**found) for rank in heard for found in heard[rank]["findings"]]
    findings += [
        fail("ranks", str(error), "look at that node: its log, dmesg, mounts", of_node=True, node=error.nodes[0])
        for error in missing
    ]
    if subject == "alone":
        facts = {meeting.nodes[rank]: told["facts"] for rank, told in reversed(heard.items()) if told["facts"]}
        findings += alike.compare(dict(reversed(facts.items())), tuple(alike.REMEDIES))
        findings += gpu.shared({rank: told["gpu"] for rank, told in heard.items()}, meeting.nodes)
        broken = {finding.check for finding in findings if finding.level == "FAIL"} & {"GPU", "device"}
        complete = all(told["complete"] for told in heard.values())
        meeting.tell("go", bool(complete and not missing and not broken))
    return findings


def _conclude(findings: list[Finding], nodes: tuple[str, ...], start: float) -> int:
    verdict = judge(findings, nodes)
    print(table(findings, nodes))
    words = {NODES: f"{len(verdict.bad_nodes)} node(s) to leave out", SETTINGS: "wrong wherever the job runs"}
    print(f"preflight: {words.get(verdict.code, 'ready')}, {time.monotonic() - start:.1f} s", flush=True)
    _name(verdict)
    return verdict.code


def _name(verdict: Verdict) -> None:
    if verdict.bad_nodes:
        print(f"{BAD_NODES}{','.join(verdict.bad_nodes)}", flush=True)


def _not_met(place: Place, error: Exception) -> int:
    """Some ranks are not there, or rank 0 cannot be reached any more: the exit code. Told by rank 0, or without it by
    the first rank of each node.
    """
    if isinstance(error, MissingError):
        nodes, what = error.nodes, str(error)
        remedy = "look at those nodes: did Python start there, and can it reach MASTER_ADDR?"
    elif isinstance(error, OSError):
        nodes, what = (place.node,), str(error)
        remedy = "another MASTER_PORT (from the job's number), or end what listens there"
    else:
        nodes, what = (place.master_node,), f"rank 0 was lost: {str(error).partition('. ')[0]}"
        remedy = "see its output"
    known = [node for node in nodes if node in place.expected or node == place.node]
    if place.rank == 0 or place.first_of_node:
        print(table([fail("ranks", what, remedy, node=node) for node in known or ("",)], ()), flush=True)
        _name(Verdict(NODES, tuple(known)))
    return NODES if known else SETTINGS


def _part(meeting: Meeting) -> None:
    """Rank 0, which has the store, leaves last."""
    meeting.tell("bye", None)
    if meeting.place.rank == 0:
        meeting.hear_all("bye", BYE_S)


def _leave_after(seconds: float) -> None:
    """A call into the network or a dead mount may never return; the job must not wait for it."""

    def leave() -> None:
        print(f"preflight: no end within {seconds:g} s", file=sys.stderr, flush=True)
        os._exit(NODES)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()
