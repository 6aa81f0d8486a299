"""Stories whose frames the metadata CSV points at: a folder of images, a list of images, or a video.

There is no text. Paths are relative to the CSV's folder; the user's own absolute paths are taken as they are.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from shards.bad_story import BadStory
from shards.metadata import Metadata, MetadataRow
from shards.video import UnusableVideo, evenly_spaced_times, frames_at
from storydist.data.frames import check_size

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True)
class MediaFrames:
    """Frames of the stories of `metadata`, by row."""

    metadata: Metadata
    frames_per_video: int

    def count(self, row: MetadataRow) -> tuple[int, tuple[float, ...] | None]:
        """(number of frames, their seconds as far as the media tell them); decodes no image. Raises BadStory."""
        if self.metadata.media_column != "video_path":
            return len(self._image_paths(row)), None
        path = self._existing(row, row.media)
        try:
            times_s = row.times_s or evenly_spaced_times(path, self.frames_per_video)
        except UnusableVideo as error:
            raise self._bad(row, error.reason, f"{path}: {error}") from None
        return len(times_s), times_s

    def load(self, row: MetadataRow) -> list[bytes]:
        """Encoded frames, JPEG or PNG; other formats become PNG. Raises BadStory."""
        if self.metadata.media_column == "video_path":
            _, times_s = self.count(row)
            path = self._existing(row, row.media)
            try:
                return frames_at(path, times_s or (), spaced=row.times_s is None)
            except UnusableVideo as error:
                raise self._bad(row, error.reason, f"{path}: {error}") from None
        images = []
        for path in self._image_paths(row):
            try:
                images.append(as_jpeg_or_png(path.read_bytes()))
            except (OSError, ValueError) as error:
                raise self._bad(row, "corrupt image", f"{path}: cannot be read as an image ({error})") from None
        return images

    def files(self, row: MetadataRow) -> list[Path]:
        """The images, or the video, of a row. Raises BadStory."""
        if self.metadata.media_column == "video_path":
            return [self._existing(row, row.media)]
        return self._image_paths(row)

    def _image_paths(self, row: MetadataRow) -> list[Path]:
        if self.metadata.media_column == "frame_paths":
            return [self._existing(row, text) for text in self._listed(row)]
        folder = self.metadata.path.parent / row.media
        if not folder.is_dir():
            raise self._bad(row, "missing file", f"there is no folder {folder}")
        paths = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
        if not paths:
            raise self._bad(row, "no frames", f"folder {folder} holds no image ({', '.join(IMAGE_SUFFIXES)})")
        return sorted(paths, key=lambda path: natural_key(path.name))

    def _listed(self, row: MetadataRow) -> list[str]:
        texts: list[str] | None = None
        if row.media.startswith("["):
            try:
                texts = json.loads(row.media)
            except ValueError:
                texts = None
            if texts is None or not all(isinstance(text, str) for text in texts):
                raise self._bad(row, "malformed frame list", f"{row.media[:60]!r} is not a JSON list of paths")
        else:
            texts = [part.strip() for part in re.split("[;|]", row.media)]
        texts = [text for text in texts if text]
        if not texts:
            raise self._bad(row, "no frames", "the list names no image")
        return texts

    def _existing(self, row: MetadataRow, text: str) -> Path:
        path = self.metadata.path.parent / text
        if not path.is_file():
            raise self._bad(row, "missing file", f"there is no file {path}")
        return path

    def _bad(self, row: MetadataRow, reason: str, found: str) -> BadStory:
        column = self.metadata.media_column or ""
        where = self.metadata.where(row, column)
        return BadStory(row.story_id, column, reason, f"{where}: {found}; correct the row or the file")


def as_jpeg_or_png(image: bytes) -> bytes:
    """`image` itself if it is JPEG or PNG, any other format as PNG without loss. Raises ValueError for no image."""
    if image.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
        return image
    out = io.BytesIO()
    try:
        with Image.open(io.BytesIO(image)) as picture:
            check_size(picture)
            picture.convert("RGB").save(out, "PNG")
    except UnidentifiedImageError:
        raise ValueError(f"no image format begins with {image[:8]!r}") from None
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from None
    return out.getvalue()


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key by which frame9 comes before frame10."""
    parts = (part for part in _DIGITS.split(name.lower()) if part)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts], name
