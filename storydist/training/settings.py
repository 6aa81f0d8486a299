"""How a run is trained."""

from typing import Literal

from pydantic import Field

from storydist.settings import Settings


class TrainConfig(Settings):
    """How long, how much at once, and what is told on the way."""

    steps: int = Field(1000, ge=1, description="updates of the weights")
    global_batch: int = Field(8, ge=1, description="samples per step, over all ranks and micro-batches")
    micro_batch: int = Field(8, ge=1, description="most samples that a rank takes through the model at once")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: Literal["auto", "cpu"] = Field("auto", description="auto: the GPU where there is one")
    seed: int = Field(0, ge=0)
    threads: int = Field(0, ge=0, description="of torch, per rank; 0: the node's cores over its ranks")
    log_every: int = Field(10, ge=1, description="steps")
    evaluate_every: int = Field(500, ge=0, description="steps; 0: never while training")
    evaluate_split: str = "val"
    save_every: int = Field(500, ge=1, description="steps")
    hang_s: float = Field(
        600.0,
        ge=0,
        description="seconds without progress of any rank after which all leave, to be run again; longer than the "
        "longest write of a checkpoint or download of a shard; 0: never",
    )
