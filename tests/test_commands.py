"""What a user's mistakes look like on the command line: one message that names what and where, never a traceback.

Most commands run in this process, by the `main` that their file calls: `run_command` lets a defect through, so a test
fails on it.
"""

import contextlib
import csv
import importlib
import io
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from storydist.command import run_command
from storydist.data.index import read_info
from storydist.training.lock import locked
from tests.story_tables import (
    ROOT,
    build_arguments,
    environment,
    image,
    row,
    run_file,
    write_metadata,
    write_source,
    write_table,
)

SHARDING = ("shards/synthesize.py", "shards/build.py", "shards/verify.py")
OF_A_RUN = ("launch/evaluate.py", "launch/predict.py", "launch/report.py", "launch/compare.py", "launch/goodput.py")
COMMANDS = (*SHARDING, "launch/train.py", "launch/plan.py", *OF_A_RUN)
TRAIN = "train-00000-of-00001.parquet"
SMALL = """
model: {width: 16, frame_channels: [4, 8], latent_width: 16, text_embedding: 8, text_hidden: 8, text_target_width: 12,
        tag_width: 4, attention_heads: 2}
train: {steps: 1, global_batch: 4, micro_batch: 4, evaluate_every: 0, save_every: 1, threads: 1}
evaluate: {generate_windows: 2, resamples: 10, num_examples: 1}
"""


def call(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command in this process, its arguments where it looks for them."""
    main = importlib.import_module(script.removesuffix(".py").replace("/", ".")).main
    out, err = io.StringIO(), io.StringIO()
    command = [script, *map(str, arguments)]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", command)
        code = run_command(main)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def refused(script: str, *arguments: object) -> str:
    """The message of a command that must fail; notes that stand before it are left out."""
    return message_of(call(script, *arguments))


def message_of(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stdout + done.stderr
    notes, error, message = done.stderr.partition("error: ")
    assert error and all(line.startswith(("note: ", "continuing")) for line in notes.splitlines()), done.stderr
    assert "error: " not in message and "Traceback" not in done.stderr
    assert "Errno" not in message and "codec can't" not in message, "a message for programmers"
    return message


def build(source: Path, out: Path, *more: object) -> str:
    return refused("shards/build.py", *build_arguments(source, out, *more))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Six stories to train on, two to test; each of 2 to 4 frames."""
    return write_source(tmp_path / "source", 6, 2)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_of_six_frames(tmp_path_factory.mktemp("six"), 8, 3, lambda number: str(number / 4))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="module")
def trained(shards: Path, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    done = call("launch/train.py", "--config", config, f"data.shards={shards}", f"run.dir={run}")
    assert done.returncode == 0, done.stderr
    return run


def build_of_six_frames(folder: Path, num_train: int, num_test: int, score: Callable[[int], str]) -> Path:
    """A shard set of stories that are long enough for windows."""
    rows = [row(number, 6) for number in range(num_train + num_test)]
    write_table(folder / TRAIN, rows[:num_train])
    write_table(folder / "test-00000-of-00001.parquet", rows[num_train:])
    write_metadata(folder, {f"s{number}": score(number) for number in range(num_train + num_test)})
    done = call("shards/build.py", *build_arguments(folder, folder / "shards"))
    assert done.returncode == 0, done.stderr
    return folder / "shards"


# Every command


@pytest.mark.parametrize("script", COMMANDS)
def test_unknown_option_as_a_user_types_it(script):
    done = run_file(script, "nowhere", "--colour")
    assert done.returncode == 2 and "error: " in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert "--colour" in done.stderr or "required: --" in done.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("shards/synthesize.py", ["--train", "x"], ["--train", "'x'"]),
        ("shards/synthesize.py", ["--out", "d", "--train", "0"], ["--train is 0", "1 or more"]),
        ("shards/synthesize.py", ["--out", "d", "--workers", "-2"], ["--workers is -2"]),
        ("shards/synthesize.py", [], ["--out"]),
        ("shards/build.py", ["--out", "d"], ["no source"]),
        ("shards/build.py", ["--out", "d", "--size", "60*125"], ["--size", "HEIGHTxWIDTH", "60x125", "'60*125'"]),
        ("shards/build.py", ["--out", "d", "--size=-6x5"], ["--size", "'-6x5'"]),
        ("shards/build.py", ["--out", "d", "--workers", "0"], ["--workers", "'0'"]),
        ("shards/build.py", ["--out", "d", "--limit=-1"], ["--limit", "'-1'"]),
        ("shards/build.py", ["--out", "d", "--val", "nan"], ["nan", "[0, 1)"]),
        ("shards/build.py", ["--out", "d", "--val", "0.6", "--test", "0.6"], ["0.6, 0.6", "sum below 1"]),
        ("shards/build.py", ["--out", "d", "--frames", "png"], ["--frames", "'png'", "original"]),
        ("shards/verify.py", ["d", "--workers", "none"], ["--workers", "'none'"]),
        ("shards/verify.py", [], ["shards"]),
        ("launch/train.py", [], ["--config"]),
        ("launch/predict.py", ["d", "--num", "0"], ["--num 0"]),
    ],
    ids=str,
)
def test_wrong_argument(script, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused(script, *arguments)
    assert all(word in message for word in words), message
    assert not list(tmp_path.iterdir()), "nothing was begun"


def test_share_of_the_splits_has_one_default():
    options = importlib.import_module("shards.sources").SourceOptions()
    arguments = importlib.import_module("shards.build")._parse(["--out", "d"])
    assert (arguments.val, arguments.test, arguments.seed) == (
        options.val_fraction, options.test_fraction, options.seed,
    )  # fmt: skip


# Folders and disks


@pytest.mark.parametrize("script", ["shards/synthesize.py", "shards/build.py", "launch/train.py"])
def test_folder_that_cannot_be_made(script, source, shards, config, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file" / "new", Path("/proc/new")):
        of: dict[str, list[object]] = {
            "shards/synthesize.py": ["--out", place, "--train", 1, "--test", 1],
            "shards/build.py": [*build_arguments(source, place)],
            "launch/train.py": ["--config", config, f"data.shards={shards}", f"run.dir={place}"],
        }
        assert str(place.parent) in refused(script, *of[script])
    assert (tmp_path / "file").read_text() == "in the way"


def test_folder_that_is_a_file(source, shards, config, tmp_path):
    file = tmp_path / "file"
    file.write_text("precious")
    assert f"{file} is a file" in refused("shards/synthesize.py", "--out", file)
    assert f"{file}: is a file" in build(source, file)
    assert str(file) in refused("shards/verify.py", file)
    assert f"{file}: is a file" in refused(
        "launch/train.py", "--config", config, f"data.shards={shards}", f"run.dir={file}"
    )
    for script in OF_A_RUN:
        assert str(file) in refused(script, file)
    assert file.read_text() == "precious"


@contextlib.contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """Writing beyond that fails, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("workers", [1, 2])
def test_full_disk_names_the_file_and_the_build_continues(source, tmp_path, workers):
    out = tmp_path / "out"
    with files_of_at_most(16_000):
        done = call("shards/build.py", *build_arguments(source, out, "--size", "60x125", "--workers", workers))
    assert re.fullmatch(rf"{out}/train-00000\d\.tar: File too large\n", message_of(done))
    assert not list(out.glob("*.partial")) and not list(out.glob("*.tar"))
    done = call("shards/build.py", *build_arguments(source, out, "--size", "60x125"))
    assert done.returncode == 0 and "continuing" in done.stderr


def test_full_disk_while_synthesising(tmp_path):
    with files_of_at_most(16_000):
        message = refused("shards/synthesize.py", "--out", tmp_path / "data", "--train", 1, "--test", 1, "--workers", 1)
    assert message.startswith(f"{tmp_path / 'data'}: ") and message.endswith("File too large\n")
    assert not list(tmp_path.iterdir()), "nothing half-written stays"


def test_ctrl_c_is_one_message_and_the_build_continues(source, tmp_path):
    out = tmp_path / "out"
    arguments = build_arguments(source, out, "--size", "600x1000", "--stories-per-shard", 1)
    command = [sys.executable, str(ROOT / "shards/build.py"), *arguments, "--workers", "2"]
    process = subprocess.Popen(
        command,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # As on a terminal: whoever runs these tests in the background has it ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    limit_s = time.monotonic() + 60
    while not list(out.glob("*.tar")):
        assert process.poll() is None and time.monotonic() < limit_s
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes of the command
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "interrupted\n")
    assert not (out / "index.json").exists() and "unfinished build" in refused("shards/verify.py", out)
    done = call("shards/build.py", *arguments)
    assert done.returncode == 0 and "continuing" in done.stderr


# Metadata

HEADER = "story_id,story_score,tags\n"
ALL = "".join(f"s{number},{number},a;b\n" for number in range(8))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["is empty", "story_id,story_score,tags"]),
        (HEADER.encode(), ["no row below"]),
        (b"\n \n", ["is empty"]),
        (f"{HEADER}s1,caf\xe9,a\n".encode("latin-1"), ["not UTF-8", "byte 32"]),
        (f"{HEADER}{ALL}".encode("utf-16"), ["not UTF-8"]),
        (f"{HEADER}{ALL}".replace(";", " ").replace(",", ";").encode(), ["semicolons", "commas"]),
        (f"{HEADER}{ALL}".replace(",", "\t").encode(), ["tabs", "commas"]),
        (b"story_id,tags\ns1,a\n", ["column story_score is missing", "story_id, tags"]),
        (f"{HEADER}{ALL}s99,1,a\n".encode(), ["row 10", "s99 is not in the source"]),
        (f"{HEADER}{ALL}s1,1,a\n".encode(), ["row 10", "s1 is already in row 3"]),
        (f"{HEADER}s1,NaN,a\n".encode(), ["row 2", "s1", "story_score", "'NaN' is not a finite number"]),
        (f"{HEADER}s1,good,a\n".encode(), ["row 2", "s1", "story_score", "'good'"]),
        (f'{HEADER}s1,"6,5",a\n'.encode(), ["row 2", "s1", "story_score", "'6,5'"]),
        (f"{HEADER}s0,1,a\ns1,1,a,b\n".encode(), ["row 3", "s1", "4 fields", "double quotes"]),
        (f"{HEADER}s0,1,a\ns1,1".encode(), ["row 3", "s1", "column tags", "2 fields"]),
        (f'{HEADER}s0,1,"a\ns1,1,b\n'.encode(), ["line 3", "not CSV"]),
    ],
    ids=str,
)
def test_wrong_metadata(source, tmp_path, content, words):
    (source / "metadata.csv").write_bytes(content)
    message = build(source, tmp_path / "out")
    assert all(word in message for word in [str(source / "metadata.csv"), *words]), message
    assert not (tmp_path / "out").exists()


def test_metadata_that_are_no_file(source, tmp_path):
    assert "no such metadata file" in build(source, tmp_path / "out", "--metadata", source / "none.csv")
    assert f"{source}: is a folder" in build(source, tmp_path / "out", "--metadata", source)
    message = refused("shards/build.py", "--source", source / "metadata.csv", "--out", tmp_path / "out")
    assert f"{source / 'metadata.csv'} does not point at frames" in message


@pytest.mark.parametrize(
    ("content", "note"),
    [(b"\xef\xbb\xbf" + f"{HEADER}{ALL}".encode(), ""), (f"{HEADER}s1,1,a\ns2,,\n".encode(), "6 of 8 stories")],
    ids=["byte-order mark", "part of the stories"],
)
def test_metadata_that_are_usable(source, tmp_path, content, note):
    (source / "metadata.csv").write_bytes(content)
    done = call("shards/build.py", *build_arguments(source, tmp_path / "out"))
    assert done.returncode == 0 and note in done.stderr, done.stderr
    assert call("shards/verify.py", tmp_path / "out").returncode == 0


# Tables


def write_rows(source: Path, change: Callable[[dict], object]) -> None:
    """The train table with story s1 changed."""
    rows = [row(number, 2 + number % 3) for number in range(6)]
    change(rows[1])
    write_table(source / TRAIN, rows)


def bomb(kind: str, side: int) -> bytes:
    """An image of a few hundred kB that would fill gigabytes."""
    data = io.BytesIO()
    Image.new("L", (side, side)).save(data, kind)
    return data.getvalue()


def first_image(content: bytes | None) -> Callable[[dict], object]:
    return lambda story: story["images"][0].update(bytes=content)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda story: story.update(images=[]), ["s1", "has no image"]),
        (lambda story: story.update(images=None), ["s1", "has no image"]),
        (lambda story: story.update(story=""), ["s1", "no <gdi> description"]),
        (lambda story: story.update(story=None), ["s1", "no <gdi> description"]),
        (lambda story: story.update(story_id="s0"), [TRAIN, "row 1", "s0 is already in", "row 0"]),
        (lambda story: story.update(story_id=None), [TRAIN, "row 1", "story_id is empty"]),
        (first_image(image(101)[:300]), ["s1", "image 1"]),
        (first_image(image(101, "PNG")[:300]), ["s1", "image 1"]),
        (first_image(image(101, "WEBP")[:100]), ["s1", "image 1"]),
        (first_image(b"<html>"), ["s1", "image 1", "no image format"]),
        (first_image(None), ["s1", "image 1", "no bytes"]),
        (first_image(bomb("PNG", 20_000)), ["s1", "image 1", "400000000 pixels"]),
        (first_image(bomb("WEBP", 10_000)), ["s1", "image 1", "10000x10000 pixels"]),
    ],
    ids=lambda value: value if isinstance(value, list) else "",
)
def test_wrong_story(source, tmp_path, change, words):
    write_rows(source, change)
    write_metadata(source, {"s0": "1"})
    arguments = build_arguments(source, tmp_path / "out")
    message = refused("shards/build.py", *arguments)
    assert all(word in message for word in words), message
    done = call("shards/build.py", *arguments, "--skip-bad", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert sum(read_info(tmp_path / "out").skipped.values()) == 1
    with open(tmp_path / "out" / "skipped.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 1


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_frames_of_other_formats(source, tmp_path, kind):
    write_rows(source, first_image(image(5, kind)))
    assert call("shards/build.py", *build_arguments(source, tmp_path / "out")).returncode == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"story": 7}, ["column story is int64; needed is text"]),
        ({"story": b"words"}, ["column story is binary"]),
        ({"chain_of_thought": ["a"]}, ["column chain_of_thought is list"]),
        ({"story_id": 1.5}, ["column story_id is double"]),
        ({"images": [1, 2]}, ["column images is list", "needed is a list of images"]),
        ({"story": ...}, ["column story is missing", "story_id, images"]),
    ],
    ids=str,
)
def test_wrong_column(source, tmp_path, change, words):
    rows = [{**row(number), **change} for number in range(3)]
    write_table(source / TRAIN, [{name: value for name, value in one.items() if value is not ...} for one in rows])
    message = build(source, tmp_path / "out")
    assert all(word in message for word in [TRAIN, *words]), message


@pytest.mark.parametrize("content", [b"", b"PAR1 and nothing else", None], ids=["empty", "garbage", "cut"])
def test_damaged_table(source, tmp_path, content):
    path = source / TRAIN
    path.write_bytes(path.read_bytes()[:4000] if content is None else content)
    assert f"{path}: is damaged" in build(source, tmp_path / "out")


def test_source_without_stories(source, tmp_path):
    schema = importlib.import_module("shards.synthetic.write").SCHEMA
    for path in source.glob("*.parquet"):
        importlib.import_module("pyarrow.parquet").write_table(schema.empty_table(), path)
    message = build(source, tmp_path / "out")
    assert TRAIN in message and "no usable story" in message
    assert "no such file or folder" in build(source, tmp_path / "out", "--source", tmp_path / "none")
    (tmp_path / "bare").mkdir()
    assert "holds no parquet or Arrow file" in build(source, tmp_path / "out", "--source", tmp_path / "bare")


def test_wrong_tokenizer(source, tmp_path):
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "tokenizer.json").write_text("{}")
    for name, words in {
        "train:": "train:8000",
        "train:7": "at least 100",
        f"{tmp_path}/vocab.txt": f"{tmp_path}/vocab.txt is not a tokenizer file",
        f"{tmp_path}/tokenizer.json": f"{tmp_path}/tokenizer.json is not a tokenizer file",
        str(source): f"folder {source} has neither",
    }.items():
        assert words in build(source, tmp_path / "out", "--tokenizer", name)


# Images that change under a build: planning reads none, so their files' times tell


def test_image_changed_since_the_build(tmp_path):
    source = frames_folder(tmp_path / "frames")
    out = tmp_path / "out"
    arguments = ["--metadata", source / "metadata.csv", "--out", out, "--size", "12x20", "--stories-per-shard", 1]
    (source / "b" / "2.jpg").write_bytes(b"\xff\xd8\xff")
    assert "story b" in refused("shards/build.py", *arguments)
    (source / "a" / "1.jpg").write_bytes(image(9))
    message = refused("shards/build.py", *arguments)
    assert f"{source}/a/1.jpg was changed after the unfinished build in {out} began" in message
    assert "--overwrite" in message
    (source / "b" / "2.jpg").write_bytes(image(7))
    assert call("shards/build.py", *arguments, "--overwrite").returncode == 0

    done = call("shards/build.py", *arguments)
    assert done.returncode == 0 and "same texts, scores, tags and options" in done.stdout
    assert "newer" not in done.stderr
    older = tmp_path / "older.jpg"
    older.write_bytes(image(8))
    os.utime(older, (0, 0))
    older.replace(source / "a" / "2.jpg")  # keeps its time
    done = call("shards/build.py", *arguments)
    assert done.returncode == 0 and f"note: {source}/a/2.jpg is newer than the shards" in done.stderr


def test_table_changed_since_the_build_began(source, tmp_path):
    """The texts stay, an image is replaced: a table is one file."""
    write_rows(source, first_image(image(101)[:300]))
    assert "s1" in build(source, tmp_path / "out")
    write_rows(source, lambda story: None)
    assert f"{source / TRAIN} was changed after" in build(source, tmp_path / "out")
    done = call("shards/build.py", *build_arguments(source, tmp_path / "out", "--overwrite"))
    assert done.returncode == 0, done.stderr


def frames_folder(folder: Path) -> Path:
    """Stories a, b, c of two images each and a metadata.csv that points at them."""
    for number, name in enumerate("abc"):
        (folder / name).mkdir(parents=True)
        for frame in (1, 2):
            (folder / name / f"{frame}.jpg").write_bytes(image(10 * number + frame))
    rows = "".join(f"{name},1,calm,{name}\n" for name in "abc")
    (folder / "metadata.csv").write_text(f"story_id,story_score,tags,frames_dir\n{rows}")
    return folder


# Shard sets


def test_set_of_another_schema_version(shards, config, tmp_path):
    copy = Path(shutil.copytree(shards, tmp_path / "old"))
    text = (copy / "index.json").read_text()
    (copy / "index.json").write_text(text.replace('"schema_version": 1', '"schema_version": 0'))
    words = f"{copy}/index.json has schema version 0"
    assert words in refused("launch/train.py", "--config", config, f"data.shards={copy}", f"run.dir={tmp_path / 'run'}")
    done = call("shards/verify.py", copy)
    assert done.returncode == 1 and words in done.stdout


def test_no_shards(source, config, trained, tmp_path):
    for place in (tmp_path / "none", source):
        words = f"{place} is not a shard set"
        assert words in refused("shards/verify.py", place)
        run = f"run.dir={tmp_path / 'run'}"
        assert words in refused("launch/train.py", "--config", config, f"data.shards={place}", run)
        for script in ("launch/evaluate.py", "launch/predict.py"):
            assert words in refused(script, trained, "--shards", place)
    assert not (tmp_path / "run").exists()


# Training


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.stepz=3"], ["train.stepz", "did you mean train.steps"]),
        (["train.steps=3", "modle.width=3", "train.stepz=3"], ["2 mistakes", "modle", "train.stepz"]),
        (["train.steps=many"], ["train.steps", "integer", "'many'"]),
        (["optim.learning_rate=-1"], ["optim.learning_rate", "greater than 0", "-1"]),
        (["train.steps"], ["'train.steps'", "key=value"]),
    ],
    ids=str,
)
def test_wrong_setting(shards, config, tmp_path, overrides, words):
    run = tmp_path / "run"
    message = refused("launch/train.py", "--config", config, f"data.shards={shards}", f"run.dir={run}", *overrides)
    assert all(word in message for word in words), message
    assert not run.exists()


def test_wrong_configuration_file(tmp_path):
    (tmp_path / "list.yaml").write_text("- train")
    (tmp_path / "open.yaml").write_text("train: [1")
    for name, words in {"none.yaml": "no such", "list.yaml": "sections", "open.yaml": "not YAML"}.items():
        message = refused("launch/train.py", "--config", tmp_path / name)
        assert str(tmp_path / name) in message and words in message


def test_run_that_is_there_and_run_that_is_not(shards, config, trained, tmp_path):
    arguments = ["--config", config, f"data.shards={shards}"]
    assert "add --resume" in refused("launch/train.py", *arguments, f"run.dir={trained}")
    done = call("launch/train.py", *arguments, f"run.dir={tmp_path / 'run'}", "--resume", "train.steps=1")
    assert done.returncode == 0 and "no checkpoint to resume, so the run starts afresh" in done.stdout


@pytest.mark.parametrize(
    "score", [lambda number: "5", lambda number: "" if number < 8 else "1"], ids=["equal", "missing in train"]
)
def test_scores_that_teach_nothing(config, tmp_path, score):
    """All equal, or none to train on: either it trains, or it says why not."""
    shards = build_of_six_frames(tmp_path, 8, 3, score)
    run = tmp_path / "run"
    done = call("launch/train.py", "--config", config, f"data.shards={shards}", f"run.dir={run}")
    if done.returncode:
        assert "score" in message_of(done)
        return
    done = call("launch/evaluate.py", run)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("num_train", [1, 6], ids=["no such split", "stories too short"])
def test_split_that_cannot_be_evaluated_is_told_before_training(config, tmp_path, num_train):
    source = write_source(tmp_path / "source", num_train, 2)
    assert call("shards/build.py", *build_arguments(source, tmp_path / "out")).returncode == 0
    arguments = ["--config", config, f"data.shards={tmp_path / 'out'}", f"run.dir={tmp_path / 'run'}"]
    message = refused("launch/train.py", *arguments, "train.evaluate_every=1")
    assert "no val story of more than 4 frames" in message and "train.evaluate_every=0" in message
    assert not (tmp_path / "run").exists()


# Runs


@pytest.mark.parametrize("script", OF_A_RUN)
def test_no_run(script, source, tmp_path):
    for place in (tmp_path / "none", source):
        assert place.name in refused(script, place)


@pytest.mark.parametrize("script", ["launch/evaluate.py", "launch/predict.py"])
def test_split_or_checkpoint_that_is_not_there(script, trained):
    assert "no split 'holdout'; it has train" in refused(script, trained, "--split", "holdout")
    assert "no checkpoint of step 99; it has 1" in refused(script, trained, "--checkpoint", "99")


# Checkpoints


def test_checkpoints_are_listed_verified_and_taken_out(trained, tmp_path):
    done = call("launch/checkpoint.py", "list", trained)
    assert done.returncode == 0 and re.search(r"^ +1 +0\.. MB +\d+ \w+ +whole$", done.stdout, re.MULTILINE), done.stdout
    assert "1 of 1 are whole" in call("launch/checkpoint.py", "verify", trained).stdout
    done = call("launch/checkpoint.py", "export", trained, "latest", "--out", tmp_path / "weights.safetensors")
    assert done.returncode == 0 and (tmp_path / "weights.safetensors").is_file()
    assert "two or more steps" in refused("launch/checkpoint.py", "average", trained, "1", "--out", tmp_path / "mean")
    copy = shutil.copytree(trained, tmp_path / "copy")
    (copy / "checkpoints" / "step-00000001" / "optimizer.safetensors").unlink()
    done = call("launch/checkpoint.py", "verify", copy)
    assert done.returncode == 1 and "optimizer.safetensors" in done.stdout and "0 of 1 are whole" in done.stdout
    assert call("launch/checkpoint.py", "list", copy).returncode == 0
    assert "no whole checkpoint" in refused("launch/checkpoint.py", "export", copy, "latest", "--out", tmp_path / "no")


def test_checkpoints_that_are_not_there(trained, tmp_path):
    assert "has no checkpoints" in refused("launch/checkpoint.py", "list", tmp_path)
    assert "invalid choice: 'lst'" in refused("launch/checkpoint.py", "lst", tmp_path)
    assert "--out" in refused("launch/checkpoint.py", "export", trained, "latest")
    out = tmp_path / "out"
    assert "was never judged" in refused("launch/checkpoint.py", "export", trained, "best", "--out", out)
    assert "neither latest nor best" in refused("launch/checkpoint.py", "export", trained, "lates", "--out", out)
    assert "no moving average" in refused("launch/checkpoint.py", "export", trained, "1", "--out", out, "--ema")


def test_a_run_that_is_going_on_is_left_alone(shards, config, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / ".lock").unlink()
    with locked(run, print):
        message = refused("launch/train.py", "--config", config, f"data.shards={shards}", f"run.dir={run}")
    assert f"{run} is in use by another run: process {os.getpid()} on " in message


def test_a_run_that_cannot_save_says_so(shards, config, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").touch()
    message = refused("launch/train.py", "--config", config, f"data.shards={shards}", f"run.dir={run}")
    assert message == f"{run / 'checkpoints'}: File exists\n"
