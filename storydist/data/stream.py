"""Reads samples in order and hands them over as batches.

A stream keeps no state: the batches of a step are a function of the number of samples seen before it. Steps are read
ahead by threads, so what a trainer has consumed is for the trainer to count, and reading ahead never moves a position.
"""

from collections.abc import Generator, Iterator
from typing import NoReturn

from torch import Tensor

from storydist.data.ahead import ahead
from storydist.data.batch import Batch, FrameRun, SpecialPieces, collate, padding_run
from storydist.data.frame_runs import SampleReader, Span
from storydist.data.index import ShardIndex
from storydist.data.order import WELL_MIXED, evaluation_slices, mixing
from storydist.data.places import Places
from storydist.data.reader import ShardReader
from storydist.data.settings import DataConfig
from storydist.data.text import Wordpieces


class Stream:
    """The training samples of one rank, a list of micro-batches per step.

    `accumulation_steps` micro-batches together with those of all other ranks make the global batch. `pin`: batches lie
    in page-locked memory. Raises ValueError when a split is empty, no story is long enough, or the global batch cannot
    be cut evenly.
    """

    def __init__(
        self,
        index: ShardIndex,
        config: DataConfig,
        *,
        split: str = "train",
        seed: int,
        global_batch: int,
        accumulation_steps: int = 1,
        rank: int = 0,
        world_size: int = 1,
        pin: bool = False,
    ):
        self.index, self.config, self.global_batch, self.pin = index, config, global_batch, pin
        self.special = special_pieces(index)
        self.places = Places(
            index,
            config,
            split=split,
            seed=seed,
            global_batch=global_batch,
            accumulation_steps=accumulation_steps,
            rank=rank,
            world_size=world_size,
        )
        self.reader = SampleReader(index, config)

    @property
    def num_samples(self) -> int:
        """Samples in an epoch, over all ranks."""
        return self.places.order.num_samples

    def mixing_told(self) -> str:
        """A sentence on how well an epoch is mixed, and what to do if it is not."""
        share, size = mixing(self.places.order), self.config.block_shards
        told = f"of 12 neighbours {share:.2f} of the pairs come from the same tenth of the data (0.10: a full shuffle)"
        if self.config.shuffle and share > WELL_MIXED and self.places.order.epoch(0).num_blocks > 1:
            told += f"; a larger data.block_shards than {size} mixes better"
        return told

    def load_step(self, samples_seen: int) -> list[Batch]:
        """The micro-batches of the step that follows `samples_seen`, read and decoded."""
        return [self._load(spans) for spans in self.places.of_step(samples_seen)]

    def _load(self, spans: list[Span]) -> Batch:
        batch = read_batch(self.reader, spans, self.special, pin=self.pin)
        return batch.pin_memory() if self.pin else batch

    def steps(self, samples_seen: int = 0, stop: int | None = None) -> Generator[list[Batch], None, None]:
        """Micro-batches of every step from `samples_seen` on, without end, or while fewer than `stop` samples were seen
        before it. Steps are read ahead; closing the iterator stops that.
        """
        return ahead(self.load_step, samples_seen, self.global_batch, self.config, stop)

    def __len__(self) -> NoReturn:
        raise TypeError(
            "a Stream has no length and is no data set: it splits itself over ranks and goes on without end. Iterate "
            "stream.steps(samples_seen), and give neither it nor a DataLoader over it to accelerator.prepare()"
        )

    def __getitem__(self, number: int) -> NoReturn:
        self.__len__()


class MemberStream:
    """The samples of any WebDataset tars that shards/index.py has indexed: a step is a list of {suffix: payload}.

    Same order, slices and resume as `Stream`; `{"__key__": story id}` is added to each. Nothing is decoded.
    """

    def __init__(
        self,
        index: ShardIndex,
        config: DataConfig,
        *,
        split: str = "train",
        seed: int,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.index, self.config, self.global_batch = index, config, global_batch
        if config.unit != "story":
            raise ValueError(
                "data.unit=window cuts stories, and these samples are read as they are; use data.unit=story"
            )
        self.places = Places(
            index, config, split=split, seed=seed, global_batch=global_batch, rank=rank, world_size=world_size
        )
        self.reader = ShardReader(index, verify=config.verify, max_open=4 * config.block_shards)

    def load_step(self, samples_seen: int) -> list[dict[str, memoryview | str]]:
        """This rank's samples of the step that follows `samples_seen`."""
        (spans,) = self.places.of_step(samples_seen)
        return [{"__key__": self.index.story_id(story), **self.reader.read(story)} for story, _, _ in spans]

    def steps(self, samples_seen: int = 0) -> Generator[list[dict[str, memoryview | str]], None, None]:
        """The samples of every step from `samples_seen` on, without end; see `Stream.steps`."""
        return ahead(self.load_step, samples_seen, self.global_batch, self.config)


def read_batch(reader: SampleReader, spans: list[Span], special: SpecialPieces, *, pin: bool = False) -> Batch:
    """One batch of these spans, cut as the settings say; what cannot be used is left out and listed in `bad`.

    Where nothing is left, a row that no sum counts stands in, so that every rank has a batch. Raises BadSample as
    `SampleReader.read_all`.
    """
    runs, frames_NHWC, bad = reader.read_all(spans, pin=pin)
    batch = collate_runs(runs or [padding_run(reader.size)], reader.config, special, frames_NHWC if runs else None)
    batch.bad = bad
    return batch


def collate_runs(
    runs: list[FrameRun], config: DataConfig, special: SpecialPieces, frames_NHWC: Tensor | None = None
) -> Batch:
    """One batch, cut as the settings say."""
    return collate(
        runs,
        context=config.context,
        special=special,
        max_wordpieces=config.max_wordpieces,
        max_tags=config.max_tags,
        frames_NHWC=frames_NHWC,
    )


def special_pieces(index: ShardIndex) -> SpecialPieces:
    """The special wordpieces of the shards' tokenizer. Raises ValueError for tars that hold no stories."""
    if index.info.kind != "stories":
        raise ValueError(
            f"{index} holds samples of other kinds than stories, which cannot be trained on; make shards "
            "with shards/build.py, or read them as they are with MemberStream (docs/stream.md)"
        )
    tokenizer = Wordpieces.load(index.root / "tokenizer")
    return SpecialPieces(cls=tokenizer.cls_id, sep=tokenizer.sep_id)


def evaluation_batches(
    index: ShardIndex, split: str, config: DataConfig, *, batch_stories: int = 8, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """Every story of a split once, whole, in stored order; `batch_stories` per rank and step.

    All ranks get the same number of batches; a row that stands in where a rank has no story left has valid 0.
    """
    stories, reader, special = index.split(split), SampleReader(index, config), special_pieces(index)
    for start, stop in evaluation_slices(len(stories), batch_stories, rank, world_size):
        yield read_batch(reader, [reader.whole(stories[i]) for i in range(start, stop)], special)
