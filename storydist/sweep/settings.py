"""What a sweep searches: a YAML file, checked at once against the settings that there are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from storydist.config import Config, load_config, parse_settings, read_yaml
from storydist.settings import Settings
from storydist.training.identity import FREE_KEYS, FREE_SECTIONS, flatten
from storydist.verdict.assemble import MEANINGS, choice_merit

OWN_KEYS = ("run.dir", "train.seed")  # given by the sweep itself
Value = bool | int | float | str | None


class Axis(Settings):
    """Where one setting is looked for: in [low, high], whole numbers where both (and step) are, or among choices."""

    low: int | float | None = None
    high: int | float | None = None
    log: bool = Field(False, description="even in the logarithm; low above 0, no step")
    step: int | float | None = Field(None, gt=0, description="from low; a whole number's is 1")
    choices: tuple[Any, ...] | None = Field(None, min_length=1, description="numbers, words or lists")

    @model_validator(mode="after")
    def _is_one_of_both(self) -> "Axis":
        if self.choices is not None:
            if self.model_fields_set != {"choices"}:
                raise ValueError("choices go with no low, high, log or step")
        elif self.low is None or self.high is None:
            raise ValueError("needs low and high, or choices")
        elif self.low >= self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        elif self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs low above 0 and takes no step")
        return self

    @property
    def is_whole(self) -> bool:
        return all(isinstance(value, int) for value in (self.low, self.high, 1 if self.step is None else self.step))

    def words(self) -> list[Value]:
        """The choices as a study keeps them: lists become their text."""
        return [c if isinstance(c, Value) else _text(c) for c in self.choices or ()]

    def samples(self) -> list[Any]:
        """Values by which it is checked: all choices, or both ends and, of a range of real numbers, one between."""
        if self.choices is not None:
            return self.words()
        assert self.low is not None and self.high is not None
        between = [] if self.is_whole or self.step else [self.low + 0.381966 * (self.high - self.low)]
        return [self.low, self.high, *between]


class SweepConfig(Settings):
    """A sweep as its file says."""

    config: str = Field(description="YAML file of a run's settings, from the folder of the sweep's own")
    overrides: tuple[str, ...] = Field((), description="key=value, for all trials")
    space: dict[str, Axis] = Field(min_length=1, description="settings that are searched")
    metric: str = Field(description="of the evaluations; which way is better follows from it")
    trials: int = Field(ge=1, description="how many, those that are pruned or fail included")
    seeds: int = Field(
        1, ge=1, description="runs of each trial, train.seed counting up; the trial's value is their mean"
    )
    sampler: Literal["tpe", "random"] = "tpe"
    seed: int = Field(0, ge=0, description="of the sampler")
    pruner: Literal["median", "hyperband", "none"] = "median"
    startup_trials: int = Field(4, ge=0, description="that end before the median prunes")
    warmup_steps: int = Field(0, ge=0, description="in which the median prunes nothing")

    @field_validator("metric")
    @classmethod
    def _is_a_metric(cls, name: str) -> str:
        choice_merit({}, name)
        return name

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        return "maximize" if MEANINGS[self.metric].better == "higher" else "minimize"


@dataclass(frozen=True)
class Sweep:
    """A checked sweep. `config`: the runs' file; `overrides`: for all of them; `base`: what both make."""

    settings: SweepConfig
    config: Path
    overrides: tuple[str, ...]
    base: Config

    def identity(self) -> dict[str, Any]:
        """What may not change while a sweep is under way; {dotted key: value}."""
        own = self.settings.model_dump(mode="json", exclude={"trials", "config", "overrides"}, exclude_defaults=True)
        base = {
            key: value
            for key, value in flatten(self.base.model_dump(mode="json")).items()
            if key not in (*FREE_KEYS, *self.settings.space) and not key.startswith(FREE_SECTIONS)
        }
        return {"sweep": own, "base": base}


def load_sweep(path: Path, overrides: Sequence[str] = (), trials: int | None = None) -> Sweep:
    """The sweep of a YAML file; `overrides` come after its own, `trials` takes the place of its own.

    Raises FileNotFoundError, or one ValueError that lists every mistake: in the file's form or, where that is right,
    what a trial would only meet after hours.
    """
    settings = parse_settings(SweepConfig, read_yaml(path), str(path))
    settings = settings.model_copy(update={"trials": trials or settings.trials})
    config = path.parent / settings.config
    words = (*settings.overrides, *overrides)
    base = load_config(config, [*words, "run.dir=trial"])
    sweep = Sweep(settings, config, words, base)
    mistakes = list(dict.fromkeys(_mistakes(sweep)))
    if mistakes:
        raise ValueError("\n  ".join([f"{path}: {len(mistakes)} mistake(s)", *mistakes]))
    return sweep


def _mistakes(sweep: Sweep) -> Iterator[str]:
    if not sweep.base.train.evaluate_every:
        yield "train.evaluate_every is 0, so no trial would have a metric"
    for key, axis in sweep.settings.space.items():
        if key in OWN_KEYS:
            yield f"space.{key}: is given by the sweep itself"
            continue
        for value in axis.samples():
            try:
                load_config(sweep.config, [*sweep.overrides, "run.dir=trial", setting(key, value)])
            except ValueError as error:
                yield f"space.{key}: " + " ".join(str(error).split(": ", 1)[-1].split())


def setting(key: str, value: Any) -> str:
    """`key=value` as a command takes it."""
    return f"{key}={value if isinstance(value, str) else _text(value)}"


def _text(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=float("inf")).split("\n")[0]
