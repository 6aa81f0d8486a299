from pathlib import Path

import pytest
import yaml

from storydist.config import load_config

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def load(tmp_path: Path, *overrides: str, text: str = ""):
    return load_config(write(tmp_path, text), ["data.shards=S", "run.dir=R", *overrides])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configs_load_and_say_what_they_are_for(path):
    load_config(path, ["data.shards=S", "run.dir=R"])
    head = path.read_text().split("\n\n")[0]
    assert all(f"# {word}:" in head for word in ("Purpose", "Command", "Hardware", "Expected")), path.name


def test_defaults_then_file_then_command_line(tmp_path):
    config = load(tmp_path, "train.steps=7", text="train: {steps: 5, global_batch: 3}")
    assert (config.train.steps, config.train.global_batch, config.train.seed) == (7, 3, 0)


def test_numbers_may_be_written_as_people_write_them(tmp_path):
    assert load(tmp_path, "optim.learning_rate=1e-4").optim.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=3", r"train\.stepz: no such key; did you mean train\.steps\?"),
        ("tran.steps=3", r"tran: no such key; did you mean train\?"),
        ("train.steps=many", r"train\.steps: input should be a valid integer.*found 'many'"),
        ("train.steps=0", r"train\.steps: input should be greater than or equal to 1, found 0"),
        ("optim.learning_rate=nan", r"optim\.learning_rate"),
        ("train.precision=fp8", r"train\.precision: input should be 'fp32', 'bf16' or 'fp16', found 'fp8'"),
        ("train=5", r"train: "),
        ("steps", r"'steps' is not of the form key=value"),
        ("data.unit=window", r"data\.unit=story, or losses\.score=0"),
        ("model.attention_heads=3", r"model\.width 256 is not a multiple of model\.attention_heads 3"),
        ("checkpoint.best_metric=spread", r"'spread' cannot choose the best checkpoint"),
        ("checkpoint.best_metric=imageL1", r"'imageL1' cannot choose the best checkpoint"),
        ("optim.beta1=0.999", r"beta1 0\.999 is above beta2 0\.99"),
    ],
)
def test_a_mistake_is_named_with_its_key(tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, override)


def test_all_mistakes_are_told_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"(?s)3 mistakes.*model\.width.*train\.steps.*nonsense"):
        load(tmp_path, "train.steps=-1", "model.width=wide", "nonsense=1")


def test_a_missing_section_says_what_to_give(tmp_path):
    with pytest.raises(ValueError, match=r"run\.dir has to be given, for example run\.dir=\.\.\."):
        load_config(write(tmp_path, "data: {shards: S}"))


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.yaml: no such configuration file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match=r"run\.yaml is not YAML"):
        load_config(write(tmp_path, "train: [1, 2"))
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"run\.yaml is not YAML"):
        load_config(tmp_path / "run.yaml")
    with pytest.raises(ValueError, match="has to hold sections"):
        load_config(write(tmp_path, "- 1"))


def test_nothing_in_a_file_is_executed(tmp_path):
    with pytest.raises(ValueError, match="is not YAML"):
        load_config(write(tmp_path, "train: !!python/object/apply:os.system ['true']"))


def test_a_resolved_config_loads_to_itself(tmp_path):
    config = load(tmp_path, "model.frame_channels=[4, 8]")
    text = yaml.safe_dump(config.model_dump(mode="json"))
    assert load_config(write(tmp_path, text)) == config
