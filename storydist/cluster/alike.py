"""What has to be the same on all nodes: code, libraries, settings, shards, kind of device."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import storydist
from storydist.cluster.finding import Finding, fail, ok
from storydist.config import Config
from storydist.data.files import sha256_file
from storydist.run_folder import environment

TOLD = 4  # differences of one node in one check; more are only counted
REMEDIES = {
    "code": "give all nodes one checkout (a shared folder, or copy it again)",
    "libraries": "give all nodes one environment (a shared folder or a container)",
    "settings": "the YAML file differs between nodes: put it in a shared folder",
    "index": "the shards differ between nodes: copy the set again, index.json last, or use one shared folder",
    "device": "ask for nodes of one kind (--constraint, --gres=gpu:TYPE:N), or train.device=cpu",
}
Facts = dict[str, dict[str, str]]  # {check: {name: value}}


def code_and_libraries() -> Facts:
    """Of this node: commit, changed files and a digest of the program's own text; versions; kind of device."""
    found = environment()
    changed, packages = found["changed_files"], found["packages"]
    assert isinstance(changed, list) and isinstance(packages, dict)
    code = {"commit": str(found["commit"])[:12], "changed files": ", ".join(changed), "text": _digest_of_program()}
    return {
        "code": code,
        "libraries": {"python": str(found["python"]), **packages},
        "device": {"device": str(found["device"])},
    }


def settings(config: Config) -> Facts:
    """Every setting by its dotted key."""
    return {"settings": {key: str(value) for key, value in _flat(config.model_dump(mode="json"), "")}}


def compare(facts: Mapping[str, Facts], checks: Sequence[str]) -> list[Finding]:
    """`facts`: {node: its facts}, rank 0's node first. What most nodes have is taken for right, and rank 0's where
    as many have it; the other nodes are named, with what differs.
    """
    findings: list[Finding] = []
    for check in checks:
        having = {node: found[check] for node, found in facts.items() if check in found}
        if not having:
            continue
        usual = _usual(list(having.values()))
        odd = [
            fail(check, _difference(values, usual), REMEDIES[check], node=node)
            for node, values in having.items()
            if values != usual
        ]
        findings += odd or [ok(check, f"the same on {len(having)} node(s): {_summary(check, usual)}")]
    return findings


def _usual(found: Sequence[Mapping[str, str]]) -> dict[str, str]:
    usual = {}
    for name in dict.fromkeys(name for values in found for name in values):
        counted = Counter(values.get(name, "missing") for values in found)
        usual[name] = counted.most_common(1)[0][0]  # of equals the one met first
    return {name: value for name, value in usual.items() if value != "missing"}


def _difference(values: Mapping[str, str], usual: Mapping[str, str]) -> str:
    names = [name for name in {**usual, **values} if values.get(name) != usual.get(name)]
    told = [f"{name} {values.get(name, 'missing')!r}, elsewhere {usual.get(name, 'missing')!r}" for name in names]
    more = f"; and {len(told) - TOLD} more" if len(told) > TOLD else ""
    return "; ".join(told[:TOLD]) + more


def _summary(check: str, values: Mapping[str, str]) -> str:
    if check == "code":
        num_changed = len(values["changed files"].split(", ")) if values["changed files"] else 0
        return f"commit {values['commit']}" + (f" and {num_changed} changed file(s)" if num_changed else "")
    if check == "libraries":
        return ", ".join(f"{name} {values[name]}" for name in ("python", "torch", "accelerate") if name in values)
    return f"{len(values)} settings" if check == "settings" else ", ".join(values.values())


def _digest_of_program() -> str:
    """Of every Python file of the package: it tells copies apart that git cannot, or where there is no git."""
    digest = hashlib.sha256()
    root = Path(storydist.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)} {sha256_file(path)}\n".encode())
    return digest.hexdigest()[:12]


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
