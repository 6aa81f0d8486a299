"""storydist's own stream. It delivers more than the others: tags, characters, times, scores, checked against CRC-32."""

from collections.abc import Iterator

import torch

from benchmarks.peers.batch import STORIES_PER_BATCH, WINDOW, Batch, Reading
from storydist.data.batch import Batch as StoryBatch
from storydist.data.index import ShardIndex
from storydist.data.settings import DataConfig
from storydist.data.stream import Stream

WINDOWS_PER_BATCH = 32
IN_FLIGHT = DataConfig.model_fields["prefetch"].default + 2  # read ahead, being read, in use
DECODE = {"pil": "exact", "fast": "scaled", "raw": "exact"}  # raw frames are not decoded


def batches(reading: Reading) -> Iterator[Batch]:
    """Frames once, windows as rows: `layout` is not asked."""
    config = DataConfig(
        shards=str(reading.folder),
        unit=reading.unit,
        context=WINDOW - 1,
        max_wordpieces=512,  # none is cut
        threads=max(1, reading.workers),
        decode=DECODE[reading.decoder],
    )
    global_batch = (STORIES_PER_BATCH if reading.unit == "story" else WINDOWS_PER_BATCH) * reading.world_size
    stream = Stream(
        ShardIndex.open(reading.folder),
        config,
        seed=reading.seed,
        global_batch=global_batch,
        rank=reading.rank,
        world_size=reading.world_size,
    )
    total = reading.epochs * stream.num_samples
    steps = stream.steps(stop=total)
    try:
        for seen in range(0, total, global_batch):
            # Epochs follow each other without a seam: what the last batch holds of the next one is not counted.
            last = total - seen - reading.rank * global_batch // reading.world_size
            for batch in next(steps):
                yield _given(batch, last)
    finally:
        steps.close()


def _given(batch: StoryBatch, num_samples: int) -> Batch:
    """`batch` as the others have it; only its first `num_samples` samples count."""
    num_frames, num_windows = len(batch.frames_NHWC), len(batch.target_M)
    if num_samples < len(batch.ids):
        num_frames = int((batch.frame_story_N < num_samples).sum())
        num_windows = int((batch.window_story_M < num_samples).sum())
    return {
        "frames": batch.frames_NHWC,
        "wordpieces": batch.wordpieces_NL[:, 1:],  # without [CLS]
        "lengths": batch.lengths_N - 2,  # and [SEP]
        "windows": torch.cat([batch.windows_MK, batch.target_M[:, None]], 1),
        "num_frames": num_frames,
        "num_windows": num_windows,
    }
