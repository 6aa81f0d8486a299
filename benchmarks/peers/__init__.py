"""Loaders on the same stories. One module a loader, each with

    prepare(samples, folder)      write the stories in the loader's own format
    batches(reading)              read them as that loader's documentation has it; a dict a batch, see batch.py

Modules import their loader at the top, so one that is not installed fails when it is imported and can be reported.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Contestant:
    """A loader. `stored`: name of its format, of which several may read one; `distribution`: on PyPI."""

    name: str
    module: str
    stored: str
    distribution: str
    label: str


OUR_TARS = "shards"  # made by shards/build.py
CONTESTANTS = (
    Contestant("ours", "ours", OUR_TARS, "storydist", "storydist"),
    Contestant("webdataset", "webdataset", "tars", "webdataset", "webdataset"),
    Contestant("webdataset_same", "webdataset", OUR_TARS, "webdataset", "webdataset on storydist's tars"),
    Contestant("mosaicml", "mosaicml", "mds", "mosaicml-streaming", "MosaicML streaming"),
    Contestant("litdata", "litdata", "litdata", "litdata", "LitData"),
    Contestant("energon", "energon", "energon", "megatron-energon", "Megatron Energon"),
    Contestant("hf_streaming", "hf_streaming", "parquet", "datasets", "HF datasets, streaming"),
    Contestant("hf_map", "hf_map", "arrow", "datasets", "HF datasets, map-style"),
    Contestant("memory_map", "memory_map", OUR_TARS, "numpy", "memory map, frames only (limit)"),
)
BY_NAME = {contestant.name: contestant for contestant in CONTESTANTS}
