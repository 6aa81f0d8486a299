"""Stories in tables with StoryReasoning's columns: parquet and Arrow files, save_to_disk folders, Hub data sets.

Columns: story_id, images (list of {bytes, path} or of bytes), story; chain_of_thought if there is one. A table is
opened without reading it; texts are read without touching image bytes (where images are structs; a bare list of bytes
is read to be counted); images are read a few rows at a time. Rows may be asked for in any order, but rising order reads
every byte once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from shards.media import natural_key
from shards.splits import SPLITS, split_name

TEXT_COLUMNS = ("story", "chain_of_thought")
REQUIRED = ("story_id", "images", "story")
ROWS_AT_ONCE = 8  # of images; bounds a process's memory at some MB whatever the row groups' size
_IS_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class TextRow(NamedTuple):
    """A row without its images."""

    num_images: int
    story: str
    chain_of_thought: str


class Table(Protocol):
    """One split's rows, or a part of them. Picklable; opens its files again where it arrives."""

    name: str
    split: str
    num_rows: int
    files: tuple[Path, ...]

    def ids(self) -> list[str | None]: ...

    def text(self, row: int) -> TextRow: ...

    def images(self, row: int) -> list[bytes | None]:
        """Encoded images as they are stored; None where a row only has a path."""
        ...


class ParquetTable:
    """A parquet file."""

    def __init__(self, path: Path, split: str) -> None:
        self.name, self.split, self.path = str(path), split, path
        self.files: tuple[Path, ...] = (path,)
        with _reading(self.name), pq.ParquetFile(path) as file:
            check_columns(self.name, file.schema_arrow)
            metadata = file.metadata
            self.num_rows = metadata.num_rows
            self.group_rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            leaves = [file.schema.column(place).path for place in range(len(file.schema))]
            self.texts = [name for name in TEXT_COLUMNS if name in file.schema_arrow.names]
        # A leaf beside the bytes has the same list lengths, so images are counted without reading them.
        beside = [leaf for leaf in leaves if leaf.startswith("images.") and not leaf.endswith(".bytes")]
        self.counted = next((leaf for leaf in beside if leaf.endswith(".path")), "images")
        self._forget()

    def _forget(self) -> None:
        self._file: pq.ParquetFile | None = None
        self._text_group: tuple[int, pa.Table] | None = None
        self._batches: tuple[int, int, pa.RecordBatch, Iterator[pa.RecordBatch]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_text_group": None, "_batches": None}

    def ids(self) -> list[str | None]:
        with _reading(self.name):
            return _strings(self._open().read(columns=["story_id"])["story_id"])

    def text(self, row: int) -> TextRow:
        group, place = self._locate(row)
        if self._text_group is None or self._text_group[0] != group:
            with _reading(self.name):
                self._text_group = group, self._open().read_row_group(group, columns=[*self.texts, self.counted])
        return _text_row(self._text_group[1], place)

    def images(self, row: int) -> list[bytes | None]:
        group, place = self._locate(row)
        with _reading(self.name):
            held = self._batches
            if held is None or held[0] != group or place < held[1]:
                batches = self._open().iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=["images"])
                held = group, 0, next(batches), batches
            _, first, batch, batches = held
            while place >= first + batch.num_rows:
                first, batch = first + batch.num_rows, next(batches)
        self._batches = group, first, batch, batches
        return _images(batch.column(0)[place - first].as_py())

    def _open(self) -> pq.ParquetFile:
        if self._file is None:
            # Mapped and not pre-buffered: a column chunk may be larger than what a process should hold.
            self._file = pq.ParquetFile(self.path, memory_map=True, pre_buffer=False)
        return self._file

    def _locate(self, row: int) -> tuple[int, int]:
        for group, rows in enumerate(self.group_rows):
            if row < rows:
                return group, row
            row -= rows
        raise IndexError(f"{self.name} has {self.num_rows} rows")


class ArrowTable:
    """An Arrow IPC file, stream or random-access format, memory-mapped."""

    def __init__(self, path: Path, split: str) -> None:
        self.name, self.split, self.path = str(path), split, path
        self.files: tuple[Path, ...] = (path,)
        self._table: pa.Table | None = None
        check_columns(self.name, self._open().schema)
        self.num_rows = self._open().num_rows

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}

    def ids(self) -> list[str | None]:
        return _strings(self._open()["story_id"])

    def text(self, row: int) -> TextRow:
        return _text_row(self._open(), row)

    def images(self, row: int) -> list[bytes | None]:
        return _images(self._open()["images"][row].as_py())

    def _open(self) -> pa.Table:
        if self._table is None:
            with _reading(self.name):
                mapped = pa.memory_map(self.name)
                random_access = mapped.read_at(6, 0) == b"ARROW1"
                open_file = pa.ipc.open_file if random_access else pa.ipc.open_stream
                self._table = open_file(mapped).read_all()
        return self._table


class DatasetTable:
    """A `datasets.Dataset`: memory-mapped, so a row's columns are read only when they are asked for."""

    def __init__(self, name: str, split: str, dataset: Any) -> None:
        self.name, self.split, self.num_rows = name, split, len(dataset)
        self.files = tuple(Path(file["filename"]) for file in dataset.cache_files)
        check_columns(name, dataset.features.arrow_schema)
        self.rows = dataset.with_format("arrow")  # Arrow format gives images as they are stored, undecoded

    def ids(self) -> list[str | None]:
        return _strings(self.rows.select_columns(["story_id"])[:]["story_id"])

    def text(self, row: int) -> TextRow:
        return _text_row(self.rows[row : row + 1], 0)

    def images(self, row: int) -> list[bytes | None]:
        return _images(self.rows[row : row + 1]["images"][0].as_py())


def open_tables(specs: Sequence[str]) -> list[Table]:
    """Tables of files, folders, patterns with `*` or Hub names: by split (train, val, test), then in natural order.

    Raises FileNotFoundError for what is not there and ValueError for what is no such table.
    """
    tables = [table for spec in specs for table in _open_one(spec)]
    return sorted(tables, key=lambda table: SPLITS.index(table.split))


def _open_one(spec: str) -> list[Table]:
    path = Path(spec)
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        return [_open_file(path, path.parent)]
    if "*" in spec:
        base = Path(*path.parts[: next(place for place, part in enumerate(path.parts) if "*" in part)])
        found = sorted(base.glob(str(path.relative_to(base))), key=lambda found: natural_key(str(found)))
        if not found:
            raise FileNotFoundError(f"{spec}: no file matches; check the pattern")
        return [_open_file(file, base) for file in found]
    if _HUB_NAME.fullmatch(spec) and not path.parent.is_dir():
        return _open_hub(spec)
    raise FileNotFoundError(f"{spec}: there is no such file or folder, and it is no Hub name (owner/name)")


def _open_folder(folder: Path) -> list[Table]:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        import datasets  # costs a second and is not needed for files

        return _dataset_tables(str(folder), datasets.load_from_disk(str(folder)))
    for suffix in (".parquet", ".arrow"):
        files = [path for path in folder.rglob(f"*{suffix}") if path.is_file() and not path.name.startswith(".")]
        if files:
            ordered = sorted(files, key=lambda path: natural_key(str(path.relative_to(folder))))
            return [_open_file(path, folder) for path in ordered]
    raise ValueError(
        f"{folder}: holds no parquet or Arrow file and is no save_to_disk folder; give a folder of tables, "
        "or metadata with frames_dir, frame_paths or video_path"
    )


def _open_file(path: Path, base: Path) -> Table:
    split = _split_of(path.relative_to(base))
    if path.suffix == ".parquet":
        return ParquetTable(path, split)
    if path.suffix == ".arrow":
        return ArrowTable(path, split)
    raise ValueError(f"{path}: is neither .parquet nor .arrow; give tables with columns {', '.join(REQUIRED)}")


def _open_hub(name: str) -> list[Table]:
    import datasets

    try:
        return _dataset_tables(name, datasets.load_dataset(name))
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"{name}: there is no such folder, and it cannot be loaded from the Hub ({_first_line(error)}); "
            "check the name and the network, or give a local copy"
        ) from None


def _dataset_tables(name: str, loaded: Any) -> list[Table]:
    if not hasattr(loaded, "items"):
        return [DatasetTable(name, split_name(str(loaded.split or "train")) or "train", loaded)]
    return [DatasetTable(f"{name} [{split}]", split_name(split) or "train", rows) for split, rows in loaded.items()]


def _split_of(path: Path) -> str:
    """Split named in a file's name, else in the nearest folder's name, else train."""
    for part in (path.name, *reversed(path.parent.parts)):
        names = filter(None, (split_name(word) for word in re.split(r"[^a-zA-Z]+", part)))
        if name := next(names, None):
            return name
    return "train"


def check_columns(name: str, schema: pa.Schema) -> None:
    """Raises ValueError naming the columns that are missing or of the wrong type."""
    missing = [column for column in REQUIRED if column not in schema.names]
    if missing:
        raise ValueError(
            f"{name}: column {', '.join(missing)} is missing; the table has {', '.join(schema.names)}. "
            f"Needed are {', '.join(REQUIRED)}"
        )
    for column in (name for name in ("story_id", *TEXT_COLUMNS) if name in schema.names):
        kind = schema.field(column).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not any(is_kind(kind) for is_kind in (*_IS_TEXT, *([pa.types.is_integer] if column == "story_id" else []))):
            raise ValueError(f"{name}: column {column} is {kind}; needed is text")
    images = schema.field("images").type
    listed = pa.types.is_list(images) or pa.types.is_large_list(images)
    item = images.value_type if listed else images
    if pa.types.is_struct(item) and item.get_field_index("bytes") >= 0:
        item = item.field("bytes").type
    if not listed or not (pa.types.is_binary(item) or pa.types.is_large_binary(item)):
        raise ValueError(f"{name}: column images is {images}; needed is a list of images ({{bytes, path}} or bytes)")


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turns Arrow's errors, which name no file, into a ValueError that does."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{name}: is damaged, or no such table ({_first_line(error)})") from None


def _strings(column: pa.ChunkedArray) -> list[str | None]:
    return [None if value is None or str(value) == "" else str(value) for value in column.to_pylist()]


def _text_row(table: pa.Table, place: int) -> TextRow:
    texts = [table[name][place].as_py() if name in table.column_names else "" for name in TEXT_COLUMNS]
    images = table["images"][place]
    return TextRow(len(images) if images.is_valid else 0, texts[0] or "", texts[1] or "")


def _images(items: list[Any] | None) -> list[bytes | None]:
    return [item["bytes"] if isinstance(item, dict) else item for item in items or ()]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
