"""Tar members -> samples by WebDataset's rule: neighbours whose names agree up to the first dot of their last part.

That first half is a sample's key, the rest, in lower case, a member's suffix. What breaks the rule is an error here,
where WebDataset drops members without a dot and makes two samples of one whose members lie apart.
Source: webdataset/tariterators.py (base_plus_ext, group_by_keys, tar_file_iterator).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from storydist.data.tar import TarMember

MAX_MEMBERS = 65_535  # of a sample: the index counts them in 16 bits
MAX_SUFFIXES = 65_535  # different ones of a set: the index numbers them in 16 bits
_META = re.compile(r"__[^/]*__(/|$)")  # WebDataset's own place for what belongs to no sample


@dataclass
class FoundSample:
    """`members`: (offset of the payload, size, CRC-32) by suffix, in tar order."""

    key: str
    members: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    @property
    def offset(self) -> int:
        """Of the first payload in the tar."""
        return next(iter(self.members.values()))[0]


def passed_over(name: str) -> bool:
    """Whether a member belongs to no sample: hidden files and __MACOSX, which archivers add by themselves (.DS_Store,
    ._000.jpg), and WebDataset's __NAME__ entries."""
    *folders, base = name.split("/")
    return base.startswith(".") or "__MACOSX" in folders or _META.match(name) is not None


def split_name(name: str) -> tuple[str, str]:
    """(key, suffix) of a member. Raises ValueError when its name has no suffix."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    if not suffix:
        raise ValueError(
            f"member {name!r} has no suffix, so it cannot be told to which sample it belongs; name it KEY.SUFFIX "
            "(a file for all samples: __NAME__), or leave it out"
        )
    return folder + slash + stem, suffix.lower()


def samples(members: Iterable[tuple[TarMember, int]], tar: str, litter: list[str]) -> Iterator[FoundSample]:
    """The samples of a tar, from its members and their CRC-32s in tar order; names passed over go to `litter`.

    Raises ValueError naming `tar`, members and offsets when a member has no suffix, a sample has one twice or more than
    MAX_MEMBERS, or its members are no neighbours.
    """
    offsets: dict[str, int] = {}
    sample: FoundSample | None = None
    for member, crc32 in members:
        if passed_over(member.name):
            litter.append(member.name)
            continue
        try:
            key, suffix = split_name(member.name)
        except ValueError as error:
            raise ValueError(f"{tar}: at offset {member.offset}: {error}") from None
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
            if key in offsets:
                raise ValueError(
                    f"{tar}: members of sample {key!r} lie at offset {offsets[key]} and, after another sample, at "
                    f"{member.offset}; they must be neighbours: pack the tar anew, sorted by name (tar --sort=name)"
                )
            offsets[key] = member.offset
            sample = FoundSample(key)
        _add(sample, suffix, (member.offset, member.size, crc32), tar)
    if sample is not None:
        yield sample


def _add(sample: FoundSample, suffix: str, place: tuple[int, int, int], tar: str) -> None:
    if suffix in sample.members:
        first = sample.members[suffix][0]
        raise ValueError(f"{tar}: sample {sample.key!r} has two members {suffix!r}, at offsets {first} and {place[0]}")
    if len(sample.members) == MAX_MEMBERS:
        raise ValueError(
            f"{tar}: sample {sample.key!r} has more than {MAX_MEMBERS} members, the next is at offset {place[0]}; a "
            "key ends at the first dot of a name, so img.000001.jpg and all its like are of one sample"
        )
    sample.members[suffix] = place
