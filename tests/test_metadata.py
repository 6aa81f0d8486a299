"""metadata.csv: every field read or refused with one clear message."""

from pathlib import Path

import pytest

from shards.bad_story import BadStory
from shards.metadata import Metadata, read_metadata
from storydist.data.sample import Tag


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "metadata.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(folder: Path, *rows: str, header: str = "story_id,story_score,tags") -> Metadata:
    return read_metadata(write(folder, "\n".join([header, *rows]) + "\n"))


def test_a_row_with_every_field(tmp_path):
    header = "Video_ID, story_score,tags,split,movie,timestamps,frame_tags,extra"
    row = '7,6.5,"Sky; sea,sky",validation,Film A,"0.5, 1,2.25","character:Ann;action:Turned away||object:box",x'
    found = read(tmp_path, row, header=header).rows["7"]
    assert (found.number, found.score, found.tags) == (2, 6.5, ("sky", "sea"))
    assert (found.split, found.movie) == ("val", "Film A")
    assert found.times_s == (0.5, 1.0, 2.25)
    assert found.frame_tags == ((Tag("character", "ann"), Tag("action", "turned away")), (), (Tag("object", "box"),))


def test_empty_fields_are_missing(tmp_path):
    found = read(tmp_path, "7,,").rows["7"]
    assert (found.score, found.tags, found.split, found.movie, found.times_s, found.frame_tags) == (
        None, (), None, None, None, None,
    )  # fmt: skip


@pytest.mark.parametrize("tags", ['"a,b"', "a;b", "a; b;", '" a , b ; a"'])
def test_tags_are_separated_by_commas_or_semicolons(tmp_path, tags):
    assert read(tmp_path, f"7,1,{tags}").rows["7"].tags == ("a", "b")


def test_byte_order_mark_line_ends_quoted_newlines_and_blank_lines(tmp_path):
    path = write(tmp_path, b'\xef\xbb\xbfstory_id,story_score,tags\r\n\r\n7,1,"a;\r\nb"\r\n8,2,c\r\n\r\n')
    rows = read_metadata(path).rows
    assert list(rows) == ["7", "8"] and rows["7"].tags == ("a", "b") and rows["8"].number == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; its first row must name the columns"),
        ("\n\n", "is empty"),
        ("story_id,story_score,tags\n", "no row below it"),
        ("story_id,tags\n1,a\n", "column story_score is missing; the header has story_id, tags"),
        ("id,story_score,tags\n1,2,a\n", r"column story_id \(or video_id\) is missing"),
        ("story_id;story_score;tags\n1;2;a\n", "separated by semicolons"),
        ("story_id\tstory_score\ttags\n1\t2\ta\n", "separated by tabs"),
        ('story_id,story_score,tags\n1,2,"a\n3,4,b\n', "line 3: is not CSV"),
        ("story_id,video_id,story_score,tags\n1,1,2,a\n", "columns story_id and video_id; keep one"),
        ("story_id,tags,story_score,tags\n1,a,2,a\n", "column tags stands twice"),
        ("story_id,story_score,tags,frames_dir,video_path\n1,2,a,b,c\n", "columns frames_dir and video_path; keep one"),
        ("story_id,story_score,tags\n1,2,a\n1,3,b\n", "row 3: story 1 is already in row 2"),
        (b"story_id,story_score,tags\n1,2,\xff\n", r"is not UTF-8 text \(byte 30\)"),
    ],
)
def test_a_wrong_file_is_one_message_naming_it(tmp_path, text, message):
    dropped: list[BadStory] = []
    with pytest.raises(ValueError, match=message) as caught:
        read_metadata(write(tmp_path, text), dropped.append)
    assert "metadata.csv" in str(caught.value) and not isinstance(caught.value, BadStory) and not dropped


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such metadata file"):
        read_metadata(tmp_path / "none.csv")
    with pytest.raises(IsADirectoryError, match="is a folder, not a metadata file"):
        read_metadata(tmp_path)


HEADER = "story_id,story_score,tags,split,timestamps,frame_tags,frames_dir"
WRONG = [
    ("7,abc,a,,,,f", "story_score", "score is not a number", "'abc' is not a number"),
    ('7,"6,5",a,,,,f', "story_score", "score is not a number", "'6,5' is not a number"),
    ("7,1_0,a,,,,f", "story_score", "score is not a number", "'1_0'"),
    ("7,nan,a,,,,f", "story_score", "score is not finite", "'nan' is not a finite number"),
    ("7,-inf,a,,,,f", "story_score", "score is not finite", "'-inf'"),
    ("7,1e300,a,,,,f", "story_score", "score is not finite", "'1e300'"),
    ("7,1,a,dave,,,f", "split", "unknown split", "'dave' is not a split; use train, val, test"),
    ('7,1,a,,"0,x",,f', "timestamps", "timestamp is not a number", "'x'"),
    ('7,1,a,,"0,nan",,f', "timestamps", "timestamp is not a number", "'nan'"),
    ('7,1,a,,"-1,2",,f', "timestamps", "timestamp is negative", "-1 is negative"),
    ('7,1,a,,"0,2,2",,f', "timestamps", "timestamps do not increase", "2 follows 2"),
    ("7,1,a,,,dog,f", "frame_tags", "malformed frame tag", "'dog' is not a tag; write kind:value"),
    ("7,1,a,,,story:x,f", "frame_tags", "malformed frame tag", "character, object, action, location"),
    ("7,1,a,,,object:,f", "frame_tags", "malformed frame tag", "'object:'"),
    ("7,1,a,,,,", "frames_dir", "no frames", "the field is empty"),
    ("7,1,a", "split", "too few fields", "the row has 3 fields, the header 7; leave a field empty"),
    ("7,1,a,,,,f,b,c", "frames_dir", "too many fields", "the row has 9 fields, the header 7; put double quotes"),
]


@pytest.mark.parametrize(("row", "column", "reason", "message"), WRONG)
def test_a_wrong_row_names_file_row_story_column_and_value(tmp_path, row, column, reason, message):
    with pytest.raises(BadStory) as caught:
        read(tmp_path, "6,1,a,,,,f", row, header=HEADER)
    error = caught.value
    assert (error.story_id, error.field, error.reason) == ("7", column, reason)
    assert str(error).startswith(f"{tmp_path / 'metadata.csv'}, row 3 (story 7), column {column}: ")
    assert message in str(error) and "\n" not in str(error)


def test_wrong_rows_can_be_left_out(tmp_path):
    dropped: list[BadStory] = []
    rows = [*(row.replace("7,", f"{7 + n},", 1) for n, (row, *_) in enumerate(WRONG)), ",1,a,,,,f", "99,1,a,,,,f"]
    found = read_metadata(write(tmp_path, "\n".join([HEADER, *rows])), dropped.append)
    assert list(found.rows) == ["99"] and len(dropped) == len(WRONG) + 1
    assert dropped[-1].reason == "no story id" and "row 19" in str(dropped[-1])
    assert found.dropped == {str(7 + number) for number in range(len(WRONG))}
