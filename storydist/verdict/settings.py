"""How a split is judged, and how a command line changes that."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError

from storydist.settings import Settings


class EvaluationConfig(Settings):
    """How a split is judged."""

    batch_stories: int = Field(8, ge=1, description="stories per rank and step")
    generate_windows: int = Field(
        200, ge=0, description="windows that get a generated description, drawn by the seed; 0: none"
    )
    temperature: float = Field(1.0, gt=0, description="of nucleus sampling")
    top_p: float = Field(0.9, gt=0, le=1, description="of nucleus sampling")
    resamples: int = Field(
        1000, ge=0, description="bootstrap resamples of stories behind the score's intervals; 0: no intervals"
    )
    num_examples: int = Field(6, ge=0, description="windows shown at random, and as many best and worst")
    seed: int = Field(0, ge=0, description="of samples, shuffles, floors and bootstrap")


def with_overrides(config: EvaluationConfig, asked: Mapping[str, Any]) -> EvaluationConfig:
    """The settings with those in `asked` that are not None. Raises ValueError naming one that is out of bounds."""
    given = {name: value for name, value in asked.items() if value is not None}
    try:
        return EvaluationConfig.model_validate(config.model_dump() | given)
    except ValidationError as error:
        told = [f"--{str(e['loc'][0]).replace('_', '-')}: {e['msg']}, found {e['input']!r}" for e in error.errors()]
        raise ValueError("; ".join(told)) from None
