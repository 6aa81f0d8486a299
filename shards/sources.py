"""Sources of stories: tables in StoryReasoning's schema, or a metadata CSV that points at frames or videos.

A source gives its stories in its own order: `describe` without their images, which is cheap, and `load` with them.
What is wrong with a source as a whole is a ValueError when it is opened; what is wrong with one story is a BadStory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shards.bad_story import BadStory
from shards.media import MediaFrames, as_jpeg_or_png
from shards.metadata import Metadata, MetadataRow, read_metadata
from shards.splits import SPLIT_MODES, SplitShares, assign_splits
from shards.tables import Table, open_tables
from storydist.data.chain_of_thought import parse_chain_of_thought
from storydist.data.frame_tags import frame_tags
from storydist.data.markup import characters_mentioned, parse_story
from storydist.data.sample import Story, Tag

__all__ = ["BadStory", "Source", "SourceOptions", "open_source"]

OnBadRow = Callable[[BadStory], None]


@dataclass(frozen=True)
class SourceOptions:
    """How stories are split (`shards.splits`) and videos cut. Raises ValueError for values out of range.

    `val_fraction` is a share of the train stories in mode "source", otherwise of all stories; `test_fraction` of all.
    """

    splits: str = "source"
    val_fraction: float = 0.2
    test_fraction: float = 0.1
    seed: int = 0
    frames_per_video: int = 8

    def __post_init__(self) -> None:
        if self.splits not in SPLIT_MODES:
            raise ValueError(f"splits is {self.splits!r}; choose one of {', '.join(SPLIT_MODES)}")
        fractions = (self.val_fraction, self.test_fraction)
        if not all(0 <= fraction < 1 for fraction in fractions) or sum(fractions) >= 1:
            raise ValueError(f"val and test fractions are {fractions}; each must be in [0, 1) and their sum below 1")
        if self.frames_per_video < 1:
            raise ValueError(f"frames_per_video is {self.frames_per_video}; at least 1 is needed")


@dataclass(frozen=True)
class _Place:
    """Where a story lies: in a table's row, or (table None) where its metadata row points."""

    story_id: str
    table: int | None
    table_row: int
    metadata: MetadataRow | None


class Source:
    """Stories by number, in the source's own order. Picklable: worker processes open the files again.

    `story_ids`, `splits` (train, val, test), `movies` (None: unknown): one entry a story. `notes`: sentences for the
    user.
    """

    def __init__(
        self, places: Sequence[_Place], tables: Sequence[Table], metadata: Metadata | None, options: SourceOptions
    ) -> None:
        self._places, self._tables, self._metadata = tuple(places), tuple(tables), metadata
        self._media = MediaFrames(metadata, options.frames_per_video) if metadata and metadata.media_column else None
        self.story_ids = tuple(place.story_id for place in places)
        self.movies = tuple(place.metadata.movie if place.metadata else None for place in places)
        self.splits, notes = assign_splits(
            options.splits,
            self.story_ids,
            [tables[place.table].split if place.table is not None else "train" for place in places],
            self.movies,
            [place.metadata.split if place.metadata else None for place in places],
            SplitShares(options.val_fraction, options.test_fraction, options.seed),
        )
        self.notes = notes + self._join_notes()

    @property
    def num_stories(self) -> int:
        return len(self._places)

    @property
    def has_text(self) -> bool:
        """False for frames and videos: all texts are "" then."""
        return self._media is None

    def _join_notes(self) -> tuple[str, ...]:
        alone = sum(place.metadata is None for place in self._places)
        if self._metadata is None or not alone:
            return ()
        return (f"{alone} of {self.num_stories} stories have no row in {self._metadata.path}: no score, no tags",)

    def files(self) -> Iterator[Path]:
        """The files that stories and images are read from; those of stories that lack one are left out."""
        for table in self._tables:
            yield from table.files
        for place in self._places if self._media is not None else ():
            assert self._media is not None and place.metadata is not None, "stories outside of tables have their media"
            try:
                yield from self._media.files(place.metadata)
            except BadStory:
                continue

    def describe(self, number: int) -> Story:
        """The story without its images (`images == ()`), none of which is read. Raises BadStory if it is unusable."""
        place = self._places[number]
        if place.table is None:
            assert self._media is not None and place.metadata is not None, "stories outside of tables have their media"
            num_images, times_s = self._media.count(place.metadata)
            return self._story(number, num_images, times_s, "", "")
        row = self._tables[place.table].text(place.table_row)
        return self._story(number, row.num_images, None, row.story, row.chain_of_thought)

    def load(self, number: int) -> Story:
        """The story with its S images: JPEG and PNG as found and undecoded, other formats as PNG. Raises BadStory if
        it cannot be used."""
        story, place = self.describe(number), self._places[number]
        if place.table is None:
            assert self._media is not None and place.metadata is not None, "stories outside of tables have their media"
            images = self._media.load(place.metadata)
        else:
            stored = self._tables[place.table].images(place.table_row)
            images = [self._image(place, frame, image) for frame, image in enumerate(stored[: len(story.texts)], 1)]
        return replace(story, images=tuple(images))

    def _image(self, place: _Place, frame: int, image: bytes | None) -> bytes:
        if not image:
            message = f"{self._where(place)}: image {frame} has no bytes (a path at most); store images inside"
            raise BadStory(place.story_id, "images", "missing image", message)
        try:
            return as_jpeg_or_png(image)
        except ValueError as error:
            message = f"{self._where(place)}: image {frame} cannot be read ({error}); repair or remove the story"
            raise BadStory(place.story_id, "images", "corrupt image", message) from None

    def _where(self, place: _Place) -> str:
        if place.table is None:
            return f"story {place.story_id}"
        return f"{self._tables[place.table].name}, row {place.table_row} (story {place.story_id})"

    def _story(
        self, number: int, num_images: int, media_times_s: tuple[float, ...] | None, story: str, chain_of_thought: str
    ) -> Story:
        """Frames used: as many as there are both images and descriptions, from the first (all images without text)."""
        place, row = self._places[number], self._places[number].metadata
        markup = parse_story(story)
        segments = markup.in_image_order()
        num_frames = min(num_images, len(segments)) if self.has_text else num_images
        if num_frames == 0:
            field, lacking = ("images", "no image") if num_images == 0 else ("story", "no <gdi> description")
            reason = "no frames" if num_images == 0 else "no descriptions"
            raise BadStory(place.story_id, field, reason, f"{self._where(place)}: has {lacking}; remove the story")
        segments = segments[:num_frames]
        tables = parse_chain_of_thought(chain_of_thought)
        tags: tuple[tuple[Tag, ...], ...] | None = None
        if row and row.frame_tags:
            tags = self._per_frame(row, "frame_tags", row.frame_tags, num_images, num_frames)
        elif self.has_text:
            tags = tuple(frame_tags(segment, tables) for segment in segments)
        times_s = row.times_s if row and row.times_s else media_times_s
        if row and times_s:
            times_s = self._per_frame(row, "timestamps", times_s, num_images, num_frames)
        return Story(
            story_id=place.story_id,
            split=self.splits[number],
            movie=row.movie if row else None,
            score=row.score if row else None,
            story_tags=row.tags if row else (),
            images=(),
            times_s=tuple(time - times_s[0] for time in times_s) if times_s else None,
            texts=tuple(segment.text for segment in segments) if self.has_text else ("",) * num_frames,
            frame_tags=tags or ((),) * num_frames,
            characters=tuple(characters_mentioned(s) for s in segments) if self.has_text else ((),) * num_frames,
            story=story,
            chain_of_thought=chain_of_thought,
            markup=markup,
            tables=tables,
        )

    def _per_frame(self, row: MetadataRow, column: str, values: tuple, num_images: int, num_frames: int) -> tuple:
        """Values of the frames used; the metadata may count all images or only these."""
        if len(values) not in (num_images, num_frames):
            assert self._metadata is not None, "a metadata row comes from a metadata file"
            message = (
                f"{self._metadata.where(row, column)}: has {len(values)} entries, the story {num_images} images; "
                "write one entry a frame"
            )
            raise BadStory(row.story_id, column, f"{column} do not match the frames", message)
        return values[:num_frames]


def open_source(
    spec: str | Sequence[str] | None,
    metadata: str | None = None,
    options: SourceOptions | None = None,
    on_bad_row: OnBadRow | None = None,
) -> Source:
    """The stories of `spec` joined with `metadata`, a CSV path (`shards.metadata`).

    `spec`: parquet or Arrow files, a folder or pattern of them, a save_to_disk folder, a Hub name; or the metadata CSV,
    its folder or None when the CSV itself points at frames or videos. A wrong row is given to `on_bad_row` and left
    out, or raised as BadStory without one. Raises ValueError or FileNotFoundError for what is wrong as a whole, such
    as a metadata row whose story the source does not have.
    """
    specs = [spec] if isinstance(spec, str) else list(spec or ())
    if len(specs) == 1 and specs[0].lower().endswith(".csv"):
        metadata, specs = metadata or specs[0], []
    table = read_metadata(metadata, on_bad_row) if metadata else None
    if table is not None and table.media_column:
        _check_media_spec(specs, table)
        places = [_Place(story_id, None, 0, row) for story_id, row in table.rows.items()]
        tables: list[Table] = []
    elif specs:
        tables = open_tables(specs)
        places = list(_join(tables, table, on_bad_row or _raise))
    else:
        found = f"{metadata} does not point at frames" if metadata else "neither tables nor metadata are given"
        raise ValueError(f"no source: {found} (frames_dir, frame_paths or video_path); give tables or a Hub name")
    if not places:
        raise ValueError(f"{', '.join(specs) or metadata}: no usable story is in it")
    return Source(places, tables, table, options or SourceOptions())


def _check_media_spec(specs: Sequence[str], table: Metadata) -> None:
    folder = table.path.resolve().parent
    if specs and [Path(spec).resolve() for spec in specs] != [folder]:
        raise ValueError(
            f"{table.path} points at frames itself (column {table.media_column}), so the source can only be its "
            f"folder, not {', '.join(specs)}; leave one of them out"
        )


def _join(tables: Sequence[Table], metadata: Metadata | None, bad: OnBadRow) -> Iterator[_Place]:
    """Places of the stories of `tables` with their metadata; of stories with the same id the first."""
    seen: dict[str, str] = {}
    for number, table in enumerate(tables):
        for row, story_id in enumerate(table.ids()):
            where = f"{table.name}, row {row}"
            if story_id is None:
                bad(BadStory(where, "story_id", "no story id", f"{where}: story_id is empty; give every story an id"))
            elif story_id in seen:
                message = f"{where}: story {story_id} is already in {seen[story_id]}; keep one of them"
                bad(BadStory(story_id, "story_id", "duplicate id", message))
            else:
                seen[story_id] = where
                if metadata is None or story_id not in metadata.dropped:
                    yield _Place(story_id, number, row, metadata.rows.get(story_id) if metadata else None)
    if not seen:
        raise ValueError(f"{', '.join(table.name for table in tables)}: no usable story is in it")
    unknown = [row for row in metadata.rows.values() if row.story_id not in seen] if metadata else []
    if metadata and unknown:
        raise ValueError(
            f"{metadata.path}, row {unknown[0].number}: story {unknown[0].story_id} is not in the source "
            f"({len(unknown)} such rows); remove the rows or add the stories"
        )


def _raise(error: BadStory) -> None:
    raise error
