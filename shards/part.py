"""A build cut into parts, each made by a task of its own: which shards are whose, and which parts are not made yet."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.plan import PlannedShard
from shards.rows import is_finished


@dataclass(frozen=True)
class Part:
    """Part `number` (from 1) of `total`: a run of neighbouring shards, none where there are fewer shards than parts.

    Parts cut a build into tasks and nothing else: the bytes are the same for any number of them.
    """

    number: int
    total: int

    def shards(self, num_shards: int) -> range:
        """Which of the planned shards."""
        return range((self.number - 1) * num_shards // self.total, self.number * num_shards // self.total)

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"


WHOLE = Part(1, 1)


def part(text: str) -> Part:
    """An argument such as 2/8; for `type=`."""
    match = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", text)
    if match is None or int(match[1]) > int(match[2]):
        raise argparse.ArgumentTypeError(
            f"needed NUMBER/TOTAL with NUMBER from 1 to TOTAL, such as 2/8; found {text!r}"
        )
    return Part(int(match[1]), int(match[2]))


def unfinished_parts(root: Path, planned: Sequence[PlannedShard], total: int) -> list[str]:
    """Of `total` parts, those with a shard that is not finished, and how many such shards, for a message."""
    found = []
    for number in range(1, total + 1):
        own = Part(number, total)
        missing = [place for place in own.shards(len(planned)) if not is_finished(root, planned[place].name)]
        if missing:
            found.append(f"{own} ({len(missing)} shard{'s' * (len(missing) > 1)} from {planned[missing[0]].name})")
    return found
