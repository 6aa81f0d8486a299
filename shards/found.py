"""The tars in a folder that somebody else filled: which there are, and which split each belongs to."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from shards.plan import SPLIT_NAME, TRAIN
from shards.splits import split_name
from storydist.data.location import is_plain

PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")
_ADVICE = "say which tars are of which split, such as --split train='a*.tar' --split val='b*.tar'"


def find_tars(root: Path) -> list[str]:
    """Names of the tars in a folder and its subfolders, relative to it, sorted; hidden ones are passed over.

    Raises ValueError when there is none, or one is compressed, no plain file, or has a name that no shard may have;
    OSError when a folder cannot be read.
    """
    names = tar_names(root)
    for name in _visible_files(root):
        if name.endswith(PACKED) and name[: name.rindex(".t")] + ".tar" not in names:
            raise ValueError(f"{root / name} is compressed, so nothing can be read by offset; unpack it first")
    for name in names:
        if not name.isprintable():
            raise ValueError(f"{root}: the file name {name!r} has characters that cannot be printed; rename it")
        if not is_plain(name):
            raise ValueError(f"{root}: the file name {name!r} has a colon or backslash, which no shard may; rename it")
        if not (root / name).is_file():
            raise ValueError(f"{root / name} is neither a plain file nor a link to one")
    if not names:
        raise ValueError(f"{root} holds no .tar file; name the folder in which the tars are")
    return names


def tar_names(root: Path) -> list[str]:
    """Names of all that is called .tar in a folder and its subfolders, relative to it, sorted, hidden ones left out."""
    return sorted(name for name in _visible_files(root) if name.endswith(".tar"))


def _visible_files(root: Path) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise error

    for folder, subfolders, files in os.walk(root, onerror=fail):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        inside = Path(folder).relative_to(root)
        yield from (str(inside / name) for name in files if not name.startswith("."))


def splits_by_rules(names: Sequence[str], rules: Mapping[str, str]) -> dict[str, str]:
    """The split of each tar from {pattern of shell wildcards: split}; a "*" also matches slashes.

    Raises ValueError when a tar matches none or two splits, or a pattern no tar.
    """
    splits: dict[str, str] = {}
    for pattern, split in rules.items():
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            raise ValueError(f"--split {split}={pattern} matches no tar; there are {_listed(names)}")
        for name in matching:
            if splits.setdefault(name, split) != split:
                raise ValueError(f"{name} matches the patterns of two splits, {splits[name]} and {split}")
    left = [name for name in names if name not in splits]
    if left:
        raise ValueError(f"{_listed(left)} match no --split; name their split as well, or move them elsewhere")
    return splits


def splits_by_name(names: Sequence[str]) -> dict[str, str]:
    """The split of each tar from the words of its name: train, val, test or another usual word for one.

    Where no name has such a word, all are train. Raises ValueError when some have one and others not, or one has two.
    """
    splits: dict[str, str] = {}
    for name in names:
        found = {split for word in re.findall(r"[a-z]+", name.lower()) if (split := split_name(word)) is not None}
        if len(found) > 1:
            raise ValueError(f"{name} names several splits, {' and '.join(sorted(found))}; {_ADVICE}")
        for split in found:
            splits[name] = split
    if not splits:
        return dict.fromkeys(names, TRAIN)
    left = [name for name in names if name not in splits]
    if left:
        raise ValueError(f"{_listed(left)}: no split in the name, though other tars have one; {_ADVICE}")
    return splits


def parse_rule(text: str) -> tuple[str, str]:
    """(pattern, split) of NAME=PATTERN. Raises ValueError for anything else."""
    split, equals, pattern = text.partition("=")
    if not equals or not pattern or not SPLIT_NAME.fullmatch(split):
        raise ValueError(
            f"needed NAME=PATTERN, such as train='shard-0*.tar', NAME of a-z, 0-9, - and _; found {text!r}"
        )
    return pattern, split


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
