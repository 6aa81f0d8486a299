"""What the index will say of one finished shard, kept beside the build until the index is written."""

import io
import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from storydist.data.files import sha256_file, write_atomic
from storydist.data.index import BUILD_FOLDER, MEMBER_DTYPE, STORY_DTYPE
from storydist.data.sample import to_json


@dataclass(frozen=True)
class SkippedStory:
    """A story that was left out: which, what was wrong (short, for counting), the whole sentence."""

    story_id: str
    field: str
    reason: str
    message: str


@dataclass(frozen=True, eq=False)
class ShardRows:
    """A shard's rows of the index's tables; member numbers and suffixes count from the shard's own first.

    `frequency` int32 [vocabulary]: in how many of the shard's descriptions each wordpiece occurs; `num_descriptions`:
    how many there are. A shard all of whose stories were skipped has no rows, size 0 and no file.
    """

    name: str
    split: str
    size_bytes: int
    sha256: str
    stories: np.ndarray
    members: np.ndarray
    suffixes: list[str]
    story_ids: list[str]
    frequency: np.ndarray
    num_descriptions: int
    skipped: list[SkippedStory]

    @property
    def num_frames(self) -> int:
        return int(self.stories["num_frames"].sum(dtype=np.int64))

    def save(self, root: Path) -> None:
        """Writes the rows beside the build, atomically."""
        words = {name: getattr(self, name) for name in _WORDS} | {"skipped": [vars(story) for story in self.skipped]}
        buffer = io.BytesIO()
        text = np.frombuffer(to_json(words), np.uint8)
        np.savez(buffer, words=text, stories=self.stories, members=self.members, frequency=self.frequency)
        write_atomic(rows_path(root, self.name), buffer.getbuffer())

    @classmethod
    def load(cls, root: Path, name: str) -> "ShardRows":
        """The rows that `save` wrote. Raises OSError, ValueError or KeyError when they are absent or damaged."""
        try:
            with np.load(rows_path(root, name), allow_pickle=False) as file:
                words = json.loads(file["words"].tobytes())
                arrays = {key: file[key] for key in ("stories", "members", "frequency")}
        except zipfile.BadZipFile as error:
            raise ValueError(f"{rows_path(root, name)} is damaged: {error}") from None
        skipped = [SkippedStory(**story) for story in words.pop("skipped")]
        rows = cls(**words, **arrays, skipped=skipped)
        if rows.stories.dtype != STORY_DTYPE or rows.members.dtype != MEMBER_DTYPE:
            raise ValueError(f"{rows_path(root, name)} was written by another version")
        return rows


class GrowingRows:
    """A shard's rows while its stories are added one by one."""

    def __init__(self, vocabulary_size: int) -> None:
        self._stories: list[tuple] = []
        self._members: list[tuple] = []
        self._suffixes: dict[str, int] = {}
        self._story_ids: list[str] = []
        self._frequency = np.zeros(vocabulary_size, np.int32)
        self._num_descriptions = 0
        self.skipped: list[SkippedStory] = []

    def __len__(self) -> int:
        return len(self._stories)

    def add(
        self, story_id: str, num_frames: int, score: float | None, members: Iterable[tuple[str, int, int, int]]
    ) -> None:
        """Adds a story and its members, in tar order: (suffix, offset of the payload, size, CRC-32)."""
        first = len(self._members)
        for suffix, *place in members:
            self._members.append((*place, self._suffixes.setdefault(suffix, len(self._suffixes))))
        known_score = np.nan if score is None else score
        self._stories.append((0, first, len(self._members) - first, num_frames, known_score))
        self._story_ids.append(story_id)

    def add_descriptions(self, wordpieces: np.ndarray, lengths: np.ndarray) -> None:
        """Counts the wordpieces of a story's descriptions, which lie end to end (int32 [T]; lengths int32 [S])."""
        for description in np.split(wordpieces, np.cumsum(lengths)[:-1]):
            self._frequency[np.unique(description)] += 1
        self._num_descriptions += len(lengths)

    @property
    def num_suffixes(self) -> int:
        return len(self._suffixes)

    def finished(self, name: str, split: str, size_bytes: int, sha256: str) -> ShardRows:
        """The rows of the whole shard, whose file is `name`."""
        return ShardRows(
            name, split, size_bytes, sha256,
            np.array(self._stories, STORY_DTYPE), np.array(self._members, MEMBER_DTYPE),
            list(self._suffixes), self._story_ids, self._frequency, self._num_descriptions, self.skipped,
        )  # fmt: skip


_WORDS = ("name", "split", "size_bytes", "sha256", "suffixes", "story_ids", "num_descriptions")


def rows_path(root: Path, name: str) -> Path:
    """Where a shard's rows lie until the index is written."""
    return root / BUILD_FOLDER / f"{name}.npz"


def finished_rows(root: Path, name: str) -> ShardRows | None:
    """The rows of a shard that an earlier run finished, its file re-read and found whole; None: it must be built."""
    try:
        rows = ShardRows.load(root, name)
        if rows.size_bytes == 0:
            return rows
        path = root / name
        whole = path.stat().st_size == rows.size_bytes and sha256_file(path) == rows.sha256
    except (OSError, ValueError, KeyError):
        return None
    return rows if whole else None


def is_finished(root: Path, name: str) -> bool:
    """Whether a shard's rows are there and its file has their size; the file is not read."""
    try:
        rows = ShardRows.load(root, name)
        return rows.size_bytes == 0 or (root / name).stat().st_size == rows.size_bytes
    except (OSError, ValueError, KeyError):
        return False
