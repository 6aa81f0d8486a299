"""The synthetic data set: schema, quirks, agreement of its parts, what scores are made of, same bytes, errors."""

import csv
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.linear_model import RidgeCV

from shards.synthesize import main
from shards.synthetic.draw import draw_frame, draw_story
from shards.synthetic.plot import make_story, third
from shards.synthetic.score import MEAN, score_noise, score_story
from shards.synthetic.sets import paint_set
from shards.synthetic.state import FRAME_SIZE
from shards.synthetic.tables import tabulate_story
from shards.synthetic.tell import tell_story
from shards.synthetic.write import metadata_row, tag_frame

COMMAND = Path(__file__).resolve().parents[1] / "shards" / "synthesize.py"
FILES = ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet", "metadata.csv", "score_parts.csv")


def synthesize(out: Path, *more: str) -> Path:
    main(["--out", str(out), "--train", "3", "--test", "2", "--seed", "7", "--workers", "1", *more])
    return out


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return synthesize(tmp_path_factory.mktemp("synthetic") / "data")


@pytest.fixture(scope="module")
def stories():
    return [make_story(7, "train", number) for number in range(300)]


@pytest.fixture(scope="module")
def held_out():
    return [make_story(7, "test", number) for number in range(300)]


# Files


def test_any_number_of_processes_writes_the_same_bytes(dataset, tmp_path):
    other = synthesize(tmp_path / "two", "--workers", "2")
    for name in FILES:
        assert (dataset / name).read_bytes() == (other / name).read_bytes(), name


def test_another_seed_writes_other_bytes(dataset, tmp_path):
    other = synthesize(tmp_path / "other", "--seed", "8")
    for name in FILES:
        assert (dataset / name).read_bytes() != (other / name).read_bytes(), name


def test_more_stories_begin_with_the_same_ones(dataset, tmp_path):
    larger = synthesize(tmp_path / "larger", "--train", "4")
    few, more = (pq.read_table(folder / FILES[0]).to_pylist() for folder in (dataset, larger))
    assert more[:3] == few and len(more) == 4


def test_the_schema_is_that_of_the_real_data_set(dataset):
    schema = pq.read_schema(dataset / FILES[0])
    assert schema.names == ["story_id", "images", "frame_count", "chain_of_thought", "story"]
    assert str(schema.field("images").type) == "list<element: struct<bytes: binary, path: string>>"
    assert str(schema.field("frame_count").type) == "int32"
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features["images"]["feature"] == {"_type": "Image"}


def test_datasets_reads_images(dataset, tmp_path):
    datasets = pytest.importorskip("datasets")
    files = {split: str(dataset / f"data/{split}-00000-of-00001.parquet") for split in ("train", "test")}
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path))
    assert (len(loaded["train"]), len(loaded["test"])) == (3, 2)
    row = loaded["train"][0]
    assert len(row["images"]) == row["frame_count"]
    assert all(image.size == FRAME_SIZE for image in row["images"])


def test_frames_are_jpegs_of_a_realistic_size(dataset):
    images = [image["bytes"] for row in pq.read_table(dataset / FILES[0]).to_pylist() for image in row["images"]]
    assert all(Image.open(io.BytesIO(image)).format == "JPEG" for image in images)
    assert 8_000 < np.median([len(image) for image in images]) < 25_000


def test_metadata_has_a_row_a_story_and_a_value_a_frame(dataset):
    rows = [row for name in FILES[:2] for row in pq.read_table(dataset / name).to_pylist()]
    metadata = read_csv(dataset / "metadata.csv")
    assert [row["story_id"] for row in metadata] == [row["story_id"] for row in rows]
    assert len({row["story_id"] for row in rows}) == len(rows)
    for row, meta in zip(rows, metadata, strict=True):
        times = [float(time) for time in meta["timestamps"].split(",")]
        assert len(times) == len(meta["frame_tags"].split("|")) == row["frame_count"]
        assert all(0.9 < gap < 8.1 for gap in np.diff(times))
        assert 0 <= float(meta["story_score"]) <= 10


def test_score_parts_add_up_to_the_score(dataset):
    parts = read_csv(dataset / "score_parts.csv")
    scores = {row["story_id"]: row["story_score"] for row in read_csv(dataset / "metadata.csv")}
    for row in parts:
        total = MEAN + sum(float(row[part]) for part in ("tag_part", "order_part", "pixel_part", "noise"))
        assert float(row["total"]) == pytest.approx(np.clip(total, 0, 10), abs=0.006)
        assert row["total"] == scores[row["story_id"]]


def test_noise_only_changes_scores_and_nothing_else(dataset, tmp_path):
    noise = synthesize(tmp_path / "noise", "--noise-only")
    for name in FILES[:2]:
        assert (dataset / name).read_bytes() == (noise / name).read_bytes()
    for ours, theirs in zip(read_csv(dataset / "metadata.csv"), read_csv(noise / "metadata.csv"), strict=True):
        assert ours.pop("story_score") != theirs.pop("story_score")
        assert ours == theirs


# Stories


def test_lengths_are_those_of_the_real_data_set(stories):
    lengths = [len(story.frames) for story in stories]
    assert min(lengths) >= 5 and max(lengths) <= 22
    assert 12 <= np.median(lengths) <= 14


def test_shots_alternate(stories):
    pairs = [
        (before.setup, now.setup)
        for story in stories
        for before, middle, now in zip(story.frames, story.frames[1:], story.frames[2:], strict=False)
        if before.scene == now.scene and not (middle.held or now.held)
    ]
    assert np.mean([before == now for before, now in pairs]) > 0.6


def near_copy(frames: list[np.ndarray], target: int) -> bool:
    return min(np.abs(frames[target] - frame).mean() for frame in frames[target - 4 : target]) < 0.06


def test_near_copies_are_about_as_many_as_in_the_real_data_set():
    near = []
    for number in range(24):
        jpegs = draw_story(make_story(7, "train", number))
        small = [Image.open(io.BytesIO(jpeg)).resize((125, 60), Image.Resampling.BOX) for jpeg in jpegs]
        frames = [np.asarray(image) / 255 for image in small]
        near += [near_copy(frames, target) for target in range(4, len(frames))]
    assert 0.05 < np.mean(near) < 0.3


def test_text_names_only_whom_the_frame_shows(stories):
    for story in stories[:100]:
        segments = re.findall(r"<gdi image(\d+)>(.*?)</gdi>", tell_story(story), re.DOTALL)
        for number, text in segments[: len(story.frames)]:
            frame = story.frames[int(number) - 1]
            shown = {story.ids.person(figure.person, int(number) - 1) for figure in frame.seen_figures}
            assert set(re.findall(r"char\d+", text)) <= shown
            assert "<gd" not in text or any(verb in text for verb in frame.figures[0].action.verbs)


@pytest.mark.parametrize("number", range(6))
def test_figures_are_drawn_where_the_tables_say(stories, number):
    story = stories[number]
    for frame in story.frames:
        background = paint_set(frame.location, frame.setup.angle)
        actor = replace(frame, figures=frame.figures[:1], props=())
        nobody = replace(frame, figures=(), props=())
        with_actor, without = (np.asarray(draw_frame(story, each, background), dtype=int) for each in (actor, nobody))
        rows, columns = np.nonzero(np.abs(with_actor - without).sum(axis=2))
        left, top, right, bottom = frame.in_view(frame.figures[0].box)
        assert left - 2 <= columns.min() and columns.max() <= right + 2
        assert top - 2 <= rows.min() and rows.max() <= bottom + 2
        assert columns.max() - columns.min() > 0.7 * (right - left)


def test_text_and_tables_have_the_quirks_of_the_real_ones(stories):
    told, tables = [tell_story(story) for story in stories], [tabulate_story(story) for story in stories]
    text, table = "\n".join(told), "\n".join(tables)
    actions = re.findall(r"<gda [^>]+>[^<]*</(gd[oal])>", text)
    assert 0.02 < np.mean([closer != "gda" for closer in actions]) < 0.1
    for pattern in (
        r"<gdo bg\d+>",
        r"<gdl bg\d+>",
        r"<gdl lm\d+>",
        r"<gda char\d+ char\d+>",
        r"</gdo>'s ",
        r"<gdo char\d+> ",
    ):
        assert re.search(pattern, text), pattern
    counts = [(len(story.frames), one.count("<gdi ")) for story, one in zip(stories, told, strict=True)]
    assert 0 < sum(images != segments for images, segments in counts) < 0.1 * len(counts)
    assert table.count("### Characters") < table.count("## Image ") * 0.99
    assert re.search(r"\| Unknown \|", table) and not table.isascii()
    boxes = np.array([list(map(int, box.split(","))) for box in re.findall(r"\d+,\d+,\d+,\d+", table)])
    beyond = (boxes[:, 2] > FRAME_SIZE[0]).mean()
    assert 0 < beyond < 0.15 and boxes[:, 2].max() <= 1.1 * FRAME_SIZE[0]


def test_tags_of_a_frame_are_typed_and_agree_with_it(stories):
    story = stories[1]
    for frame in story.frames:
        tags = tag_frame(story, frame)
        assert ("action", frame.figures[0].action.name) in tags
        assert ("location", frame.location.name) in tags
        assert len(set(tags)) == len(tags)
    assert not any(";" in value or "|" in value or "," in value for _, value in tags)
    assert len(metadata_row(story, score_story(story))) == 6


# Scores: what a model that sees this or that could know


def tag_shares(stories, vocabulary: dict, num_bins: int) -> np.ndarray:
    """Share of the frames of each bin that have each tag: [stories, num_bins * tags]."""
    shares = np.zeros((len(stories), num_bins, len(vocabulary)))
    for row, story in zip(shares, stories, strict=True):
        for number, frame in enumerate(story.frames):
            place = third(number, len(story.frames)) if num_bins == 3 else 0
            for tag in tag_frame(story, frame):
                if tag in vocabulary:
                    row[place, vocabulary[tag]] += num_bins / len(story.frames)
    return shares.reshape(len(stories), -1)


def r2(truth: np.ndarray, prediction: np.ndarray) -> float:
    return 1 - ((truth - prediction) ** 2).sum() / ((truth - truth.mean()) ** 2).sum()


def ridge_r2(train, train_scores, judged, judged_scores, num_bins: int) -> float:
    tags = sorted({tag for story in train for frame in story.frames for tag in tag_frame(story, frame)})
    vocabulary = {tag: column for column, tag in enumerate(tags)}
    model = RidgeCV(np.logspace(-2, 4, 13)).fit(tag_shares(train, vocabulary, num_bins), train_scores)
    return r2(judged_scores, model.predict(tag_shares(judged, vocabulary, num_bins)))


def test_scores_lie_in_the_order_of_actions_more_than_in_the_bag(stories, held_out):
    train, judged = (np.array([score_story(story).total for story in part]) for part in (stories, held_out))
    assert 1.2 < train.std() < 2.5
    assert ridge_r2(stories, train, held_out, judged, num_bins=1) < 0.35
    assert ridge_r2(stories, train, held_out, judged, num_bins=3) > 0.5


def test_an_oracle_knows_most_of_a_score_but_not_all(held_out):
    parts = [score_story(story) for story in held_out]
    oracle = np.array([MEAN + part.tags + part.order + part.pixels for part in parts])
    assert 0.85 < r2(np.array([part.total for part in parts]), oracle) < 0.98


def test_noise_scores_are_distributed_alike_and_know_nothing(stories, held_out):
    scores = np.array([score_story(story).total for story in stories])
    train, judged = (
        np.array([score_noise(7, split, number).total for number in range(300)]) for split in ("train", "test")
    )
    assert train.mean() == pytest.approx(scores.mean(), abs=0.5)
    assert train.std() == pytest.approx(scores.std(), rel=0.2)
    assert abs(np.corrcoef(train, scores)[0, 1]) < 0.2
    assert ridge_r2(stories, train, held_out, judged, num_bins=3) < 0.05


# What a user can get wrong


def test_a_full_folder_is_left_alone(dataset):
    before = (dataset / "metadata.csv").read_bytes()
    with pytest.raises(ValueError, match=r"not empty.*--overwrite"):
        synthesize(dataset, "--seed", "9")
    assert (dataset / "metadata.csv").read_bytes() == before


def test_overwrite_replaces_a_data_set_but_nothing_else(tmp_path):
    out = synthesize(tmp_path / "data")
    before = (out / "metadata.csv").read_bytes()
    synthesize(out, "--overwrite", "--seed", "8")
    assert (out / "metadata.csv").read_bytes() != before
    (out / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(ValueError, match=r"thesis\.txt"):
        synthesize(out, "--overwrite")
    assert (out / "thesis.txt").exists()


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("power cut")

    monkeypatch.setattr("shards.synthesize.render", fail)
    with pytest.raises(RuntimeError):
        synthesize(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["--train", "0"], "--train"), (["--workers", "0"], "--workers"), (["--seed", "-1"], "--seed")],
)
def test_wrong_counts_are_named(tmp_path, arguments, named):
    with pytest.raises(ValueError, match=named):
        synthesize(tmp_path / "data", *arguments)


def test_the_command_says_what_is_wrong_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "data"  # below a file: not even root may write there
    done = subprocess.run(
        [sys.executable, str(COMMAND), "--out", str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and str(tmp_path / "file") in done.stderr
    assert done.stderr.count("\n") == 1
