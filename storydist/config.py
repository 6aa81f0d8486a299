"""A run's settings: each component's own, composed; defaults, then a YAML file, then `key=value`."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from storydist.data.settings import DataConfig
from storydist.losses import LossConfig
from storydist.model import ModelConfig
from storydist.settings import Settings
from storydist.training.keep import CheckpointConfig
from storydist.training.optim import OptimConfig
from storydist.training.settings import TrainConfig
from storydist.verdict.assemble import choice_merit
from storydist.verdict.settings import EvaluationConfig

Kind = TypeVar("Kind", bound=BaseModel)
REQUIRED = ("run.dir", "data.shards")  # all other settings have a default


class RunConfig(Settings):
    """Where a run is kept."""

    dir: str = Field(description="folder of the run: checkpoints, metrics, report")


class Config(Settings):
    """All settings of a run."""

    run: RunConfig
    data: DataConfig
    model: ModelConfig = ModelConfig()
    losses: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluate: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _fit_together(self) -> "Config":
        if self.data.unit == "window" and self.losses.score > 0:
            raise ValueError(
                "a story is scored as a whole: use data.unit=story, or losses.score=0 with data.unit=window"
            )
        choice_merit({}, self.checkpoint.best_metric)  # names a metric by which checkpoints can be ranked
        if self.model.attention_heads and self.model.width % self.model.attention_heads:
            raise ValueError(
                f"model.width {self.model.width} is not a multiple of "
                f"model.attention_heads {self.model.attention_heads}"
            )
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The settings of a YAML file with `key=value` overrides, for example `train.steps=200`.

    Raises FileNotFoundError, or one ValueError that lists every mistake with the key's full path and the nearest valid
    name.
    """
    source = f"{path} and the command line" if overrides else str(path)
    return parse_config(_with_overrides(read_yaml(Path(path)), overrides), source)


def parse_config(values: dict[str, Any], source: str) -> Config:
    """Config from nested values; errors as `load_config`."""
    return parse_settings(Config, values, source)


def parse_settings(kind: type[Kind], values: dict[str, Any], source: str) -> Kind:
    """Settings of any `kind` from nested values; errors as `load_config`."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [_explain(detail, kind) for detail in error.errors()]
        raise ValueError(
            f"{source}: {lines[0]}" if len(lines) == 1 else "\n  ".join([f"{source}: {len(lines)} mistakes", *lines])
        ) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The sections of a YAML file. Raises FileNotFoundError, or ValueError when it holds something else."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such configuration file; those shipped are in configs/")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if values is not None and not isinstance(values, dict):
        raise ValueError(f"{path}: has to hold sections such as `train:`, found {type(values).__name__}")
    return values or {}


def _with_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ValueError(f"{override!r} is not of the form key=value, for example train.steps=200")
        *sections, name = key.split(".")
        place = values
        for section in sections:
            inner = place.setdefault(section, {})
            if inner is None:
                inner = place[section] = {}
            if not isinstance(inner, dict):
                raise ValueError(f"{key}: {section} is a value, not a section")
            place = inner
        try:
            place[name] = yaml.safe_load(text)
        except yaml.YAMLError:
            place[name] = text
    return values


def _explain(detail: Any, kind: type[BaseModel]) -> str:
    """One line for one of pydantic's errors."""
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, list(all_keys(kind)), n=1, cutoff=0.5)
        return f"{key}: no such key" + (f"; did you mean {near[0]}?" if near else "")
    if detail["type"] == "missing":
        needed = [k for k in all_keys(kind) if k.startswith(f"{key}.") and k in REQUIRED] or [key]
        return f"{' and '.join(needed)} has to be given, for example {needed[0]}=..."
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: {message[0].lower()}{message[1:]}, found {detail['input']!r}"


def all_keys(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Every key there is, sections included, dotted."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from all_keys(field.annotation, f"{prefix}{name}.")
