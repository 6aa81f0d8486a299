"""The base of every component's settings: immutable, typed, and closed to unknown keys."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Raises pydantic.ValidationError on an unknown key, a wrong type or a value out of bounds."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
