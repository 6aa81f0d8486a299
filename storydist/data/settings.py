"""What is streamed, and how."""

from typing import Literal

from pydantic import Field

from storydist.data.storage import CacheConfig
from storydist.settings import Settings


class DataConfig(Settings):
    """Where the shards are, what a sample is, in which order samples come, and how they are read."""

    shards: str = Field(description="folder that shards/build.py wrote, or its address: https://, s3://, gs://, hf://")
    unit: Literal["story", "window"] = Field(
        "story", description="a sample is a whole story, or a window of context + 1 frames"
    )
    context: int = Field(4, ge=1, description="frames seen before the one to predict")
    shuffle: bool = True
    block_shards: int = Field(
        64, ge=1, description="shards shuffled together at least; with fewer, neighbours come from fewer places"
    )
    size: tuple[int, int] = Field(
        (60, 125), description="H, W for shards that keep frames as found; others keep the size they were built at"
    )
    max_wordpieces: int = Field(
        120, ge=3, description="of one description, [CLS] and [SEP] included; longer ones are cut"
    )
    max_tags: int = Field(24, ge=1, description="of one frame, and of the story itself; further ones are left out")
    threads: int = Field(1, ge=1, description="that read ahead, per rank")
    prefetch: int = Field(2, ge=1, description="steps read ahead, per rank")
    decode: Literal["exact", "scaled"] = Field(
        "exact", description="of encoded frames: Pillow's pixels, or libjpeg's scaling, in a quarter of the time"
    )
    on_bad_sample: Literal["stop", "skip"] = Field(
        "stop",
        description="skip: a damaged sample counts nothing, is listed in RUN/quarantine.jsonl, and the run goes on",
    )
    max_skipped: float = Field(
        0.01,
        ge=0,
        le=1,
        description="share of the samples seen, or of an epoch, that may be skipped before a run stops",
    )
    verify: bool = Field(True, description="check every member's crc32 as it is read")
    cache: CacheConfig = Field(CacheConfig(), description="this node's copies of shards that lie elsewhere")
