"""Files of a synthetic data set: parquet in StoryReasoning's schema, metadata.csv, score_parts.csv.

Bytes are a function of the rows and of the library versions: one writer, rows in order, every option pinned.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from shards.synthetic.draw import draw_story
from shards.synthetic.plot import SPLITS, make_story
from shards.synthetic.score import ScoreParts, score_noise, score_story
from shards.synthetic.state import Frame, StoryState
from shards.synthetic.tables import tabulate_story
from shards.synthetic.tell import tell_story

ROWS_PER_GROUP = 100
METADATA_COLUMNS = ("story_id", "story_score", "tags", "movie", "timestamps", "frame_tags")
SCORE_COLUMNS = ("story_id", "tag_part", "order_part", "pixel_part", "noise", "total")
METADATA_FILE, SCORES_FILE = "metadata.csv", "score_parts.csv"
_FEATURES = {
    "story_id": {"dtype": "string", "_type": "Value"},
    "images": {"feature": {"_type": "Image"}, "_type": "Sequence"},
    "frame_count": {"dtype": "int32", "_type": "Value"},
    "chain_of_thought": {"dtype": "string", "_type": "Value"},
    "story": {"dtype": "string", "_type": "Value"},
}
SCHEMA = pa.schema(
    [
        ("story_id", pa.string()),
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        ("frame_count", pa.int32()),
        ("chain_of_thought", pa.string()),
        ("story", pa.string()),
    ],
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)


@dataclass(frozen=True)
class Rendered:
    """One story as it goes into the files."""

    split: str
    row: dict[str, object]  # of the parquet
    metadata: tuple[str, ...]  # METADATA_COLUMNS
    scores: tuple[str, ...]  # SCORE_COLUMNS


def parquet_name(split: str) -> str:
    return f"data/{split}-00000-of-00001.parquet"


def render(seed: int, split: str, number: int, noise_only: bool) -> Rendered:
    """Everything about one story. `noise_only` changes its score and nothing else."""
    story = make_story(seed, split, number)
    images = [
        {"bytes": jpeg, "path": f"{story.story_id}_{place:02d}.jpg"}
        for place, jpeg in enumerate(draw_story(story), start=1)
    ]
    scores = score_noise(seed, split, number) if noise_only else score_story(story)
    row = {
        "story_id": story.story_id,
        "images": images,
        "frame_count": len(images),
        "chain_of_thought": tabulate_story(story),
        "story": tell_story(story),
    }
    parts = tuple(f"{part:.4f}" for part in scores[:4])
    return Rendered(split, row, metadata_row(story, scores), (story.story_id, *parts, f"{scores.total:.2f}"))


def metadata_row(story: StoryState, scores: ScoreParts) -> tuple[str, ...]:
    """The story's METADATA_COLUMNS. Its tags are those of its frames, characters left out, each once, sorted."""
    frame_tags = [tag_frame(story, frame) for frame in story.frames]
    tags = sorted({value for tags in frame_tags for kind, value in tags if kind != "character"})
    return (
        story.story_id,
        f"{scores.total:.2f}",
        ", ".join(tags),
        story.film.title,
        ",".join(f"{frame.time_s:.2f}" for frame in story.frames),
        "|".join(";".join(f"{kind}:{value}" for kind, value in tags) for tags in frame_tags),
    )


def tag_frame(story: StoryState, frame: Frame) -> list[tuple[str, str]]:
    """(kind, value) of what a frame shows: characters, objects, what is done, the location. Lower case, no repeats."""
    cast, things = story.film.cast, story.film.things
    tags = [("character", cast[figure.person].name.lower()) for figure in frame.seen_figures]
    tags += [("object", things[prop.thing].kind) for prop in frame.seen_props]
    tags += [("action", figure.action.name) for figure in frame.seen_figures]
    tags.append(("location", frame.location.name))
    return list(dict.fromkeys(tags))


class DatasetWriter:
    """Writes a data set into an existing, empty folder. A context manager: the files are whole once it is left."""

    def __init__(self, folder: Path) -> None:
        (folder / "data").mkdir()
        self._open = ExitStack()
        self._parquet = {
            split: self._open.enter_context(_open_parquet(folder / parquet_name(split))) for split in SPLITS
        }
        self._rows: dict[str, list[dict[str, object]]] = {split: [] for split in SPLITS}
        self._metadata = _write_csv(self._open, folder / METADATA_FILE, METADATA_COLUMNS)
        self._scores = _write_csv(self._open, folder / SCORES_FILE, SCORE_COLUMNS)

    def add(self, story: Rendered) -> None:
        """Stories of a split lie in the order of the calls, ROWS_PER_GROUP to a row group."""
        self._metadata(story.metadata)
        self._scores(story.scores)
        self._rows[story.split].append(story.row)
        if len(self._rows[story.split]) == ROWS_PER_GROUP:
            self._flush(story.split)

    def _flush(self, split: str) -> None:
        self._parquet[split].write_table(pa.Table.from_pylist(self._rows[split], schema=SCHEMA))
        self._rows[split].clear()

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._open:
            for split in SPLITS:
                if kind is None and self._rows[split]:
                    self._flush(split)


def _write_csv(stack: ExitStack, path: Path, columns: tuple[str, ...]) -> Callable[[tuple[str, ...]], object]:
    """A function that adds a row. The header is written."""
    file = stack.enter_context(open(path, "w", encoding="utf-8", newline=""))  # noqa: SIM115 (the stack closes it)
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    return writer.writerow


def _open_parquet(path: Path) -> pq.ParquetWriter:
    # JPEG does not compress: snappy costs nothing on it and shrinks the text by half.
    return pq.ParquetWriter(
        path,
        SCHEMA,
        version="2.6",
        compression="snappy",
        use_dictionary=False,
        write_statistics=False,
        data_page_version="1.0",
        store_schema=True,
    )
