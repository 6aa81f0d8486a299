"""Tars found -> an index beside them, so that they stream like a set that shards/build.py wrote.

    python shards/index.py FOLDER --workers 4
    python shards/index.py FOLDER --split train='shard-0[0-7]*.tar' --split val='shard-08*.tar'

Stories as shards/build.py packs them, their index lost or packed by somebody else, get the index that training needs.
Any other WebDataset tars get a plain one: a sample of theirs is {suffix: bytes}. docs/shard_format.md says what is
refused. The tars are not touched, and the index is written when all of them were read: an interrupted run leaves none.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__" and __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shards.folder import locked_tars
from shards.found import find_tars, parse_rule, splits_by_name, splits_by_rules
from shards.gather import Tokenizer, write_members, write_stories
from shards.progress import Counter
from shards.scan import ScannedTar, Scanner
from shards.workers import map_in_order
from storydist.command import ArgumentParser, positive_int, run_command
from storydist.data.files import check_writable, sha256_file
from storydist.data.index import IndexInfo, read_info
from storydist.data.text import FILE_NAME, Wordpieces, load_wordpieces


@dataclass(frozen=True)
class Summary:
    """What a run did. `litter`: the first member that was passed over, and how many there were."""

    info: IndexInfo
    written_now: bool
    litter: tuple[str, int] = ("", 0)


def index(arguments: argparse.Namespace) -> Summary:
    """Indexes the tars in `arguments.folder`, or finds that they are indexed already."""
    root, rules = Path(arguments.folder), dict(arguments.split or ())
    names = find_tars(root)
    splits = splits_by_rules(names, rules) if rules else splits_by_name(names)
    with locked_tars(root):
        if (root / "index.json").exists() and not arguments.overwrite:
            info = _read_info(root)
            changes = list(_changes(root, info, names, splits if rules else {}, arguments.members))
            if changes:
                raise ValueError(f"{root} is indexed, but {'; '.join(changes)}; if that is meant, use --overwrite")
            return Summary(info, written_now=False)
        check_writable(root)
        tokenizer = None if arguments.members else _tokenizer(root, arguments.tokenizer, arguments.overwrite)
        tars = _scan(Scanner(root, tokenizer.wordpieces if tokenizer else None, arguments.members), names, arguments)
        stories = [(tar.rows, tar.facts) for tar in tars if tar.facts is not None]
        if stories:
            assert tokenizer is not None, "stories are refused without one"
            info = write_stories(root, stories, splits, bool(rules), tokenizer)
        elif arguments.tokenizer is not None:
            raise ValueError("argument --tokenizer: the tars hold no stories that it could have been used for")
        else:
            info = write_members(root, tars, splits)
    litter = [tar.litter for tar in tars if tar.litter[1]]
    return Summary(info, True, (litter[0][0], sum(number for _, number in litter)) if litter else ("", 0))


def _read_info(root: Path) -> IndexInfo:
    try:
        return read_info(root)
    except ValueError as error:
        raise ValueError(f"{error}, or index the tars again with --overwrite") from None


def _changes(
    root: Path, info: IndexInfo, names: Sequence[str], splits: Mapping[str, str], as_members: bool
) -> Iterator[str]:
    """What is no longer as the index says. Tars are hashed only if something was done to them after it was written."""
    known = {shard.name: shard for shard in info.shards}
    yield from (f"{name} is new" for name in names if name not in known)
    yield from (f"{name} is gone" for name in known if name not in names)
    yield from (f"{name} was changed" for name, digest in info.files.items() if _hash(root / name) != digest)
    written_ns = (root / "index.json").stat().st_mtime_ns
    for name in (name for name in names if name in known):
        stat = (root / name).stat()
        touched = max(stat.st_mtime_ns, stat.st_ctime_ns) > written_ns  # a file moved here keeps its own mtime
        same = stat.st_size == known[name].size_bytes
        if not same or (touched and _hash(root / name) != known[name].sha256):
            yield f"{name} was changed"
    if any(splits[name] != split for name, split in _splits_of(info).items() if name in splits):
        yield "with other splits"
    if as_members and info.kind != "members":
        yield "as stories"


def _hash(path: Path) -> str:
    return sha256_file(path) if path.is_file() else ""


def _splits_of(info: IndexInfo) -> dict[str, str]:
    """The split of each shard."""
    story_splits = [(name, split.first + split.num_stories) for name, split in info.splits.items()]
    splits, story = {}, 0
    for shard in info.shards:
        splits[shard.name] = next(name for name, end in story_splits if story < end)
        story += shard.num_stories
    return splits


def _tokenizer(root: Path, name: str | None, overwrite: bool) -> Tokenizer | None:
    """The tokenizer that lies beside the tars, or the one that the user names."""
    folder = root / "tokenizer"
    beside = Wordpieces.load(folder) if (folder / FILE_NAME).is_file() else None
    if name is None:
        return None if beside is None else Tokenizer(beside, folder.name, save=False)
    given = load_wordpieces(name)
    if beside is not None and beside.to_bytes() != given.to_bytes() and not overwrite:
        raise ValueError(f"{folder} is another tokenizer than {name}; use --overwrite to replace it")
    return Tokenizer(given, Path(name).name if Path(name).exists() else name, save=True)


def _scan(scanner: Scanner, names: Sequence[str], arguments: argparse.Namespace) -> list[ScannedTar]:
    tars: list[ScannedTar] = []
    with Counter("index", len(names), "tars") as counter:
        for tar in map_in_order(scanner.scan, names, min(arguments.workers, len(names))):
            tars.append(tar)
            if (tar.facts is None) != (tars[0].facts is None):
                ours, other = (tar, tars[0]) if tar.facts else (tars[0], tar)
                raise ValueError(
                    f"{scanner.root}: {ours.rows.name} holds our own stories, {other.rows.name} other samples; move "
                    "them apart, or index all as plain members (--members)"
                )
            counter.advance(1)
    for tar in tars:
        if (scanner.root / tar.rows.name).stat().st_mtime_ns != tar.modified_ns:
            raise ValueError(f"{scanner.root / tar.rows.name} was written to after it was read; run again")
    return tars


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    start_s = time.monotonic()
    summary = index(arguments)
    info, (first, number) = summary.info, summary.litter
    if not summary.written_now:
        print(f"{arguments.folder} is already indexed and nothing has changed; nothing to do")
    what = "stories" if info.kind == "stories" else "samples"
    for name, split in info.splits.items():
        print(f"  {name:<6} {split.num_stories:>8} {what} {split.num_frames:>9} images")
    size_bytes = sum(shard.size_bytes for shard in info.shards)
    print(f"  {len(info.shards)} tars, {size_bytes / 1e6:.1f} MB, in {time.monotonic() - start_s:.1f} s")
    if info.kind == "members":
        ids = f"ids are made of {info.options['ids']}"
        print(f"  plain samples of {len(info.suffixes)} suffixes, {ids}, fingerprint {info.fingerprint[:12]}")
    else:
        print(f"  our own stories, frames {info.frames}, fingerprint {info.fingerprint[:12]}")
    if number:
        print(f"  passed over {number} members that belong to no sample, such as {first!r}")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="shards/index.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folder", help="folder that holds the tars, also in subfolders; the index is written into it")
    add("--split", action="append", type=_rule, metavar="NAME=PATTERN", help="tars of a split; instead of their names")
    add("--tokenizer", help="of our own stories, where there is no tokenizer/: folder, file or Hub name")
    add("--members", action="store_true", help="index as plain members, also what holds our own stories")
    add("--workers", type=positive_int, default=1, help="processes (%(default)s)")
    add("--overwrite", action="store_true", help="replace the index that is there")
    return parser.parse_args(argv)


def _rule(text: str) -> tuple[str, str]:
    try:
        return parse_rule(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    raise SystemExit(run_command(main))
