"""How a run is trained."""

from typing import Literal

from pydantic import Field, model_validator

from storydist.settings import Settings


class TrainConfig(Settings):
    """How long, how much at once, and what is told on the way."""

    steps: int = Field(1000, ge=1, description="updates of the weights")
    global_batch: int = Field(8, ge=1, description="samples per step, over all ranks and micro-batches")
    micro_batch: int = Field(8, ge=1, description="most samples that a rank takes through the model at once")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    strategy: Literal["ddp", "zero1", "zero2", "zero3"] = Field(
        "ddp",
        description="what the ranks share out between them: nothing, or (DeepSpeed) the moments of the optimizer, the "
        "gradients too, the weights too",
    )
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

    @model_validator(mode="after")
    def _precision_of_strategy(self) -> "TrainConfig":
        if self.strategy != "ddp" and self.precision == "fp16":
            raise ValueError(
                f"precision fp16 goes with strategy ddp only, found {self.strategy}: DeepSpeed's loss scale is in no "
                "checkpoint; use bf16"
            )
        return self

    @property
    def zero_stage(self) -> int:
        """Of DeepSpeed; 0: none, plain DDP."""
        return 0 if self.strategy == "ddp" else int(self.strategy[-1])
