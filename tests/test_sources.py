"""Sources: every form gives the same stories; texts without images; wrong ones named."""

import io
import pickle
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from shards import tables as tables_module
from shards.sources import BadStory, Source, SourceOptions, open_source
from storydist.data.sample import Tag

OUTSIDE = Path(__file__).resolve().parents[2] / "shared/data/outside"
IMAGES = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
SCHEMA = pa.schema(
    [("story_id", pa.string()), ("images", IMAGES), ("frame_count", pa.int32()),
     ("chain_of_thought", pa.string()), ("story", pa.string())]
)  # fmt: skip
TABLES = """## Image 1
### Characters
| Character ID | Name | Description | Emotions | Actions | Narrative Function | Bounding Box |
|---|---|---|---|---|---|---|
| char1 | Ann | x | x | x | x | 1,2,3,4 |
"""


def encoded(level: int, kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((12, 20, 3), level, np.uint8)).save(out, kind)
    return out.getvalue()


def text(num_frames: int) -> str:
    return "\n".join(
        f"<gdi image{n}><gdo char1>She</gdo> <gda char1>walks</gda> to <gdo bg{n}>place {n}</gdo>.</gdi>"
        for n in range(1, num_frames + 1)
    )


def row(story_id: str | None, num_images: int = 3, num_texts: int | None = None, **changes) -> dict:
    images = [{"bytes": encoded(10 * n), "path": f"{n}.jpg"} for n in range(num_images)]
    story = text(num_images if num_texts is None else num_texts)
    whole = {"story_id": story_id, "images": images, "frame_count": num_images, "story": story}
    return {**whole, "chain_of_thought": TABLES, **changes}


def write_table(path: Path, rows: list[dict], schema: pa.Schema = SCHEMA, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), path, **options)
    return path


def write_csv(path: Path, *rows: str, header: str = "story_id,story_score,tags") -> str:
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def loaded(source: Source) -> list:
    return [source.load(number) for number in range(source.num_stories)]


@pytest.fixture
def folder(tmp_path) -> Path:
    write_table(tmp_path / "data/test-00000-of-00001.parquet", [row("t1", 2), row("t2", 4)])
    train = [row(f"s{n}", 3 + n % 3) for n in range(20)]
    write_table(tmp_path / "data/train-00000-of-00001.parquet", train, row_group_size=9)
    return tmp_path / "data"


def test_a_story_has_frames_texts_tags_characters_and_its_metadata(folder, tmp_path):
    header = "story_id,story_score,tags,movie,timestamps"
    metadata = write_csv(tmp_path / "metadata.csv", 's0,6.5,"sea;sky",F,"1,2.5,4"', "s1,,,G,", header=header)
    source = open_source(str(folder), metadata)
    story = source.load(source.story_ids.index("s0"))
    assert (story.score, story.story_tags, story.movie, story.times_s) == (6.5, ("sea", "sky"), "F", (0.0, 1.5, 3.0))
    assert story.images == tuple(encoded(10 * n) for n in range(3))
    assert story.texts == tuple(f"She walks to place {n}." for n in (1, 2, 3))
    assert story.frame_tags[1] == (Tag("character", "ann"), Tag("action", "walks"), Tag("location", "2"))
    assert story.characters == (("char1",),) * 3
    assert (story.story, story.chain_of_thought) == (text(3), TABLES)
    plain = source.load(source.story_ids.index("t2"))
    assert (plain.score, plain.story_tags, plain.movie, plain.times_s) == (None, (), None, None)
    assert source.notes == (f"20 of 22 stories have no row in {metadata}: no score, no tags",)


def test_splits_are_named_by_files_and_val_is_a_fifth_of_train(folder):
    source = open_source(str(folder))
    assert Counter(source.splits) == {"train": 16, "val": 4, "test": 2}
    assert source.story_ids == (*(f"s{n}" for n in range(20)), "t1", "t2")
    assert [source.describe(number).split for number in range(22)] == list(source.splits)
    assert Counter(open_source(str(folder), options=SourceOptions(val_fraction=0.5)).splits)["val"] == 10


def test_every_form_gives_the_same_stories(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [row(f"s{n}", 3) for n in range(5)]
    table = pa.Table.from_pylist(rows, SCHEMA)
    forms = [write_table(tmp_path / "one/train.parquet", rows), tmp_path / "one"]
    for name, writer in (("stream", pa.ipc.new_stream), ("file", pa.ipc.new_file)):
        forms.append(tmp_path / f"{name}.arrow")
        with writer(str(forms[-1]), SCHEMA) as out:
            out.write_table(table)
    features = datasets.Features(
        {"story_id": datasets.Value("string"), "images": datasets.Sequence(datasets.Image()),
         "chain_of_thought": datasets.Value("string"), "story": datasets.Value("string")}
    )  # fmt: skip
    kept = [{name: values[name] for name in features} for values in rows]
    whole = datasets.Dataset.from_list(list(reversed(kept)), features=features).select(range(4, -1, -1))
    whole.save_to_disk(str(tmp_path / "single"))
    datasets.DatasetDict({"train": whole}).save_to_disk(str(tmp_path / "dict"))
    forms += [tmp_path / "single", tmp_path / "dict", tmp_path / "o*" / "train*.parquet"]
    wanted = loaded(open_source(str(forms[0])))
    assert [len(story.images) for story in wanted] == [3] * 5
    for form in forms[1:]:
        assert loaded(open_source(str(form))) == wanted, form
        assert loaded(pickle.loads(pickle.dumps(open_source(str(form))))) == wanted, form


def test_a_pickled_source_gives_the_same_in_any_order(folder):
    source = open_source(str(folder))
    wanted = loaded(source)
    copy = pickle.loads(pickle.dumps(source))
    order = [21, 3, 2, 2, 19, 0, 8, 9, 10, 7]
    assert [copy.load(number) for number in order] == [wanted[number] for number in order]


def test_describing_reads_no_image(folder, monkeypatch):
    source = open_source(str(folder))
    wanted = [story.texts for story in loaded(open_source(str(folder)))]

    def refuse(*_):
        raise AssertionError("images were asked for")

    asked: list[list[str]] = []
    read = pq.ParquetFile.read_row_group

    def record(self, group, columns):
        asked.append(columns)
        return read(self, group, columns=columns)

    monkeypatch.setattr(tables_module.ParquetTable, "images", refuse)
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", record)
    stories = [source.describe(number) for number in range(source.num_stories)]
    assert [story.texts for story in stories] == wanted and all(story.images == () for story in stories)
    assert len(asked) == 4 and all(columns[-1].endswith(".path") for columns in asked)


@pytest.mark.parametrize(("num_images", "num_texts", "num_frames"), [(5, 3, 3), (3, 5, 3), (4, 4, 4)])
def test_frames_used_are_those_with_image_and_description(tmp_path, num_images, num_texts, num_frames):
    source = open_source(str(write_table(tmp_path / "a.parquet", [row("s", num_images, num_texts)])))
    story = source.load(0)
    assert len(story.images) == len(story.texts) == len(story.frame_tags) == len(story.characters) == num_frames


def test_descriptions_are_in_order_of_images(tmp_path):
    story = "<gdi image2>second</gdi><gdi image1>first</gdi>"
    source = open_source(str(write_table(tmp_path / "a.parquet", [row("s", 2, story=story)])))
    assert source.describe(0).texts == ("first", "second")


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"images": []}, "images", "no frames"),
        ({"images": None}, "images", "no frames"),
        ({"story": ""}, "story", "no descriptions"),
        ({"story": None}, "story", "no descriptions"),
        ({"images": [{"bytes": None, "path": "/etc/hostname"}] * 3}, "images", "missing image"),
        ({"images": [{"bytes": b"", "path": None}] * 3}, "images", "missing image"),
        ({"images": [{"bytes": b"text", "path": None}] * 3}, "images", "corrupt image"),
    ],
)
def test_an_unusable_story_is_named(tmp_path, changes, field, reason):
    path = write_table(tmp_path / "a.parquet", [row("good"), row("bad", **changes)])
    source = open_source(str(path))
    assert source.load(0).story_id == "good"
    with pytest.raises(BadStory) as caught:
        source.load(1)
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.story_id, error.field, error.reason) == ("bad", field, reason)
    assert str(error) == str(caught.value) and f"{path}, row 1 (story bad)" in str(error)


def test_other_image_formats_become_png(tmp_path):
    images = [{"bytes": encoded(9, kind), "path": None} for kind in ("PNG", "WEBP", "BMP")]
    story = open_source(str(write_table(tmp_path / "a.parquet", [row("s", 3, images=images)]))).load(0)
    assert story.images[0] == images[0]["bytes"]
    assert all(Image.open(io.BytesIO(image)).format == "PNG" for image in story.images)


def test_ids_twice_or_missing_in_the_source(tmp_path):
    write_table(tmp_path / "train.parquet", [row("a"), row("b"), row(None), row("a", 4)])
    write_table(tmp_path / "test.parquet", [row("b", 4), row("c")])
    with pytest.raises(BadStory, match=r"row 2: story_id is empty"):
        open_source(str(tmp_path))
    dropped: list[BadStory] = []
    source = open_source(str(tmp_path), on_bad_row=dropped.append)
    assert source.story_ids == ("a", "b", "c") and len(source.load(1).texts) == 3
    assert [error.reason for error in dropped] == ["no story id", "duplicate id", "duplicate id"]
    assert "train.parquet, row 0" in str(dropped[1]) and "train.parquet, row 3" in str(dropped[1])


def test_integer_ids_meet_the_metadata(tmp_path):
    schema = SCHEMA.set(0, pa.field("story_id", pa.int64()))
    path = write_table(tmp_path / "a.parquet", [{**row("7"), "story_id": 7}], schema)
    assert open_source(str(path), write_csv(tmp_path / "m.csv", "7,2,a")).describe(0).score == 2


def test_metadata_of_unknown_stories_and_wrong_rows(folder, tmp_path):
    with pytest.raises(ValueError, match=r"m\.csv, row 3: story zz is not in the source \(1 such rows\)"):
        open_source(str(folder), write_csv(tmp_path / "m.csv", "s1,2,a", "zz,2,a"))
    metadata = write_csv(tmp_path / "m.csv", "s1,abc,a", "s2,2,a")
    with pytest.raises(BadStory, match=r"row 2 \(story s1\), column story_score: 'abc' is not a number"):
        open_source(str(folder), metadata)
    dropped: list[BadStory] = []
    source = open_source(str(folder), metadata, on_bad_row=dropped.append)
    assert "s1" not in source.story_ids and source.num_stories == 21 and len(dropped) == 1


def test_frame_tags_of_the_metadata_replace_those_of_the_text(tmp_path):
    path = str(write_table(tmp_path / "a.parquet", [row("s", 3, 2)]))
    header = "story_id,story_score,tags,frame_tags,timestamps"
    metadata = write_csv(tmp_path / "m.csv", 's,1,,object:a|action:b|,"0,1"', header=header)
    story = open_source(path, metadata).describe(0)
    assert story.frame_tags == ((Tag("object", "a"),), (Tag("action", "b"),)) and story.times_s == (0.0, 1.0)
    metadata = write_csv(tmp_path / "m.csv", 's,1,,object:a,"0,1"', header=header)
    with pytest.raises(BadStory, match="column frame_tags: has 1 entries, the story 3 images") as caught:
        open_source(path, metadata).describe(0)
    assert caught.value.reason == "frame_tags do not match the frames"


def test_what_is_no_source(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "broken.arrow").write_bytes(b"no arrow at all")
    (tmp_path / "a.txt").write_text("x")
    write_table(tmp_path / "few/a.parquet", [{"story_id": "a"}], pa.schema([("story_id", pa.string())]))
    schema = SCHEMA.set(1, pa.field("images", pa.int32()))
    write_table(tmp_path / "typed/a.parquet", [row("s", images=1)], schema)
    write_table(tmp_path / "none/a.parquet", [])
    for spec, error, message in [
        (str(tmp_path / "missing"), FileNotFoundError, "no such file or folder"),
        (str(tmp_path / "*.parq"), FileNotFoundError, "no file matches"),
        (str(tmp_path / "empty"), ValueError, "holds no parquet or Arrow file"),
        (str(tmp_path / "broken.parquet"), ValueError, "broken.parquet: is damaged"),
        (str(tmp_path / "broken.arrow"), ValueError, "broken.arrow: is damaged"),
        (str(tmp_path / "a.txt"), ValueError, "neither .parquet nor .arrow"),
        (str(tmp_path / "few"), ValueError, "column images, story is missing; the table has story_id"),
        (str(tmp_path / "typed"), ValueError, "column images is int32; needed is a list of images"),
        (str(tmp_path / "none"), ValueError, "no usable story"),
        (None, ValueError, "no source"),
    ]:
        with pytest.raises(error, match=message):
            open_source(spec)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"splits": "films"}, "'films'; choose one of source, story, movie"), ({"val_fraction": 1.0}, "fractions"),
     ({"val_fraction": 0.6, "test_fraction": 0.5}, "sum below 1"), ({"frames_per_video": 0}, "at least 1")],
)  # fmt: skip
def test_options_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        SourceOptions(**changes)


def write_frames(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(encoded(10 * number, "PNG" if name.endswith("png") else "JPEG"))


def test_folders_of_frames_in_natural_order(tmp_path):
    write_frames(tmp_path / "frames/a", ["frame2.jpg", "frame10.png", "Frame1.JPG"])
    (tmp_path / "frames/a/notes.txt").write_text("x")
    (tmp_path / "frames/b").mkdir()
    header = "story_id,story_score,tags,frames_dir"
    metadata = write_csv(tmp_path / "m.csv", "a,1,x,frames/a", "b,1,x,frames/b", "c,1,x,frames/c", header=header)
    for spec, csv in ((None, metadata), (metadata, None), (str(tmp_path), metadata)):
        source = open_source(spec, csv)
        story = source.load(0)
        assert story.images == (encoded(20), encoded(0), encoded(10, "PNG"))
        assert (story.texts, story.frame_tags, story.characters) == (("",) * 3, ((),) * 3, ((),) * 3)
        assert not source.has_text and source.describe(0).images == ()
    with pytest.raises(BadStory, match=r"row 3 \(story b\), column frames_dir: folder .* holds no image"):
        source.describe(1)
    with pytest.raises(BadStory, match="there is no folder") as caught:
        source.describe(2)
    assert caught.value.reason == "missing file"
    with pytest.raises(ValueError, match="so the source can only be its folder"):
        open_source(str(tmp_path / "frames"), metadata)


@pytest.mark.parametrize(
    "paths", ["f/1.jpg;f/2.jpg", "f/1.jpg | f/2.jpg", '"[""f/1.jpg"", ""f/2.jpg""]"', "f/1.jpg;{root}/f/2.jpg"]
)
def test_lists_of_frames(tmp_path, paths):
    write_frames(tmp_path / "f", ["1.jpg", "2.jpg"])
    header = "story_id,story_score,tags,frame_paths"
    story = open_source(write_csv(tmp_path / "m.csv", f"a,1,x,{paths.format(root=tmp_path)}", header=header)).load(0)
    assert story.images == (encoded(0), encoded(10))


@pytest.mark.parametrize(
    ("paths", "reason"),
    [("f/9.jpg", "missing file"), ("[", "malformed frame list"), ("[1]", "malformed frame list"), (";", "no frames")],
)
def test_wrong_lists_of_frames(tmp_path, paths, reason):
    header = "story_id,story_score,tags,frame_paths"
    source = open_source(write_csv(tmp_path / "m.csv", f"a,1,x,{paths}", header=header))
    with pytest.raises(BadStory, match=r"row 2 \(story a\), column frame_paths") as caught:
        source.describe(0)
    assert caught.value.reason == reason


def test_videos_at_timestamps_or_evenly(tmp_path):
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((16, 32, 3), 10 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (tmp_path / "w.mp4").write_bytes(b"no video")
    header = "video_id,story_score,tags,video_path,timestamps"
    rows = ['a,1,x,v.mp4,"0.5,1.0"', "b,1,x,v.mp4,", "c,1,x,w.mp4,", 'd,1,x,v.mp4,"0,9"']
    source = open_source(write_csv(tmp_path / "m.csv", *rows, header=header), options=SourceOptions(frames_per_video=4))
    given, even = source.load(0), source.load(1)
    assert given.times_s == (0.0, 0.5) and len(given.images) == 2
    assert even.times_s == pytest.approx((0, 0.5, 1.0, 1.5)) and len(even.images) == 4 == len(source.describe(1).texts)
    assert loaded_again(source, 1) == even
    for number, reason in ((2, "unreadable video"), (3, "timestamp behind the end")):
        with pytest.raises(BadStory, match=r"column video_path: .*\.mp4: ") as caught:
            source.load(number)
        assert caught.value.reason == reason


def loaded_again(source: Source, number: int):
    return pickle.loads(pickle.dumps(source)).load(number)


@pytest.mark.skipif(not OUTSIDE.is_dir(), reason="the data made elsewhere is not there")
@pytest.mark.parametrize(
    ("spec", "metadata", "num_stories"),
    [("parquet", "metadata.csv", 48), (".", "metadata.csv", 48), (".", "frames.csv", 6), ("video.csv", None, 2)],
)
def test_data_made_elsewhere(spec, metadata, num_stories):
    source = open_source(str(OUTSIDE / spec), str(OUTSIDE / metadata) if metadata else None)
    assert source.num_stories == num_stories
    for number in range(num_stories):
        story = source.load(number)
        assert 4 <= len(story.images) == len(story.texts) == len(story.frame_tags)
        assert not source.has_text or (all(story.texts) and "<" not in "".join(story.texts))
