"""A resumed run agrees with its checkpoint in everything that shapes its weights."""

from pathlib import Path
from typing import Any

import pytest

from storydist.config import all_keys
from storydist.training.checkpoint import Identity
from storydist.training.identity import FREE_KEYS, flatten, require_same
from tests.small_runs import small_config

HERE = Path("step")


def identity(config: dict[str, Any], fingerprint: str = "f" * 64) -> Identity:
    return Identity(config=config, fingerprint=fingerprint, code="test")


def with_value(config: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    section, _, rest = key.partition(".")
    return config | {section: with_value(config[section], rest, value) if rest else value}


def test_other_settings_or_shards_are_refused_by_name():
    old = identity({"train": {"steps": 5, "log_every": 1}})
    new = identity({"train": {"steps": 9, "log_every": 7}}, "e" * 64)
    with pytest.raises(
        ValueError, match=r"train\.steps was 5, is 9; fingerprint of the shards was ffffffffffff, is eeeeeeeeeeee"
    ):
        require_same(old, new, (), HERE)
    with pytest.raises(ValueError, match=r"settings: fingerprint of the shards"):
        require_same(old, new, ("train.steps",), HERE)
    assert require_same(old, new, ("train.steps", "fingerprint"), HERE)[0] == "train.steps was 5, is 9"


def test_every_setting_is_compared_or_known_to_be_free(tiny_index, tmp_path):
    """A new setting is compared unless it is named among the free ones."""
    config = small_config(tiny_index, tmp_path).model_dump(mode="json")
    keys = flatten(config).keys()
    assert FREE_KEYS <= keys == {key for key in all_keys() if key in flatten(config)}
    refused = set()
    for key in keys:
        try:
            require_same(identity(config), identity(with_value(config, key, "another")), (), HERE)
        except ValueError as error:
            assert f"settings: {key} was" in str(error)
            refused.add(key)
    assert keys - refused == FREE_KEYS | {"run.dir", "data.cache.dir", "data.cache.max_gb"}


def test_a_setting_that_only_one_version_has_is_told():
    with pytest.raises(ValueError, match=r"model\.depth was not there, is None; model\.size was 3, is not there"):
        require_same(identity({"model": {"size": 3}}), identity({"model": {"depth": None}}), (), HERE)


def test_a_mistyped_permission_is_refused():
    same = identity({"train": {"steps": 5}})
    with pytest.raises(ValueError, match=r"--allow-change train\.stepz: no such setting; did you mean train\.steps\?"):
        require_same(same, same, ("train.stepz",), HERE)
