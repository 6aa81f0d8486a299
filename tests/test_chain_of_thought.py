"""Chain-of-thought tables, and the tags that story and tables give together."""

import pytest

from storydist.data.chain_of_thought import clip_box, parse_chain_of_thought
from storydist.data.frame_tags import frame_tags
from storydist.data.markup import parse_story
from storydist.data.sample import Tag

TEXT = """Some thoughts first.

## Image 1

### Characters
| Character ID | Name | Description | Emotions | Actions | Narrative Function | Bounding Box |
|--------------|------|-------------|----------|---------|-------------------|--------------|
| char1 | Marcus | Tall | Calm | waits | Lead | 137,30,464,125 |
| char3 | Unidentified | A | cut | off | Sad | runs | Foil | -5,0,620,250 |

### Objects
| Object ID | Description | Function | Interaction | Narrative Function | Bounding Box |
|-----------|-------------|----------|------------|-------------------|--------------|
| obj1 | A small box of tools | Storage | None | Prop | 10,10,90,80 |
| bg4 | The dim hall | Place |

### Setting
| Setting Element | Description | Mood | Time | Narrative Function |
|-----------------|-------------|------|------|-------------------|
| Location | a sunny meadow | Neutral | Unknown | Place |


## Image 2

### Characters
| Character ID | Name | Description | Emotions | Actions | Narrative Function | Bounding Box |
|--------------|------|-------------|----------|---------|-------------------|--------------|

## Image 4
| Character ID | Name | Description | Emotions | Actions | Narrative Function | Bounding Box |
|---|---|---|---|---|---|---|
| **char1** | Other Name | x | x | x | x | none |
| char2 | the Captain | a \\| b | x | x | x | 1, 2, 3, 4 |

## Narrative Structure

| Narrative Phase | Description | Key Events | Images |
|-----------------|-------------|-----------|--------|
| Introduction | They meet | A | Images 1 to 3, roughly |
| Conclusion | They part | B | 4 |
"""


def test_tables_become_typed_rows():
    tables = parse_chain_of_thought(TEXT)
    assert [image.image for image in tables.images] == [1, 2, 4]
    marcus = tables.images[0].characters[0]
    assert (marcus.id, marcus.name, marcus.narrative_function) == ("char1", "Marcus", "Lead")
    assert marcus.box == (137, 30, 464, 125)
    assert [(thing.id, thing.kind) for thing in tables.images[0].objects] == [("obj1", "object"), ("bg4", "location")]
    assert tables.images[0].settings[0].time == "Unknown"
    assert [(phase.phase, phase.images) for phase in tables.narrative] == [
        ("Introduction", "Images 1 to 3, roughly"), ("Conclusion", "4"),
    ]  # fmt: skip
    assert tables.notes == ("Some thoughts first.",)


def test_a_pipe_inside_a_cell_does_not_shift_the_columns():
    row = parse_chain_of_thought(TEXT).images[0].characters[1]
    assert (row.description, row.emotions, row.narrative_function) == ("A | cut | off", "Sad", "Foil")
    assert row.box == (-5, 0, 620, 250)
    assert parse_chain_of_thought(TEXT).images[2].characters[1].description == "a | b"


def test_short_rows_and_missing_headings_are_read():
    tables = parse_chain_of_thought(TEXT)
    hall = tables.images[0].objects[1]
    assert (hall.function, hall.interaction, hall.box) == ("Place", "", None)
    assert [row.id for row in tables.images[2].characters] == ["char1", "char2"]
    short = "## Image 1\n### Objects\n| obj1 | Box | 1,2,3,4 |"
    assert parse_chain_of_thought(short).images[0].objects[0].box == (1, 2, 3, 4)


def test_names_are_by_id_and_the_first_counts():
    assert parse_chain_of_thought(TEXT).names() == {"char1": "Marcus", "char3": "Unidentified", "char2": "the Captain"}
    assert parse_chain_of_thought(TEXT).descriptions()["bg4"] == "The dim hall"


@pytest.mark.parametrize(
    "text",
    [
        "", "|", "||||", "## Image 1", "### Characters\n| a | b |", "| Character ID |\n|---|\n| x |",
        "## Image 1\n| Character ID |\n|---|\n| x | y |", "## Image 9\n### Setting\n| | |",
    ],
)  # fmt: skip
def test_damaged_text_never_raises(text):
    parse_chain_of_thought(text)


def test_every_cut_of_a_text_can_be_read():
    for end in range(0, len(TEXT), 7):
        parse_chain_of_thought(TEXT[:end])
        parse_chain_of_thought(TEXT[end:])


def test_boxes_are_clipped_to_the_image():
    assert clip_box((-5, 0, 620, 250), 575, 240) == (0, 0, 575, 240)
    assert clip_box((90, 80, 10, 10), 575, 240) == (10, 10, 90, 80)
    assert clip_box((600, 0, 700, 10), 575, 240) is None


def tags_of(inner: str) -> list[tuple[str, str]]:
    segment = parse_story(f"<gdi image2>{inner}</gdi>").segments[0]
    return [(tag.kind, tag.value) for tag in frame_tags(segment, parse_chain_of_thought(TEXT))]


@pytest.mark.parametrize(
    ("inner", "tags"),
    [
        ("<gdo char1>he</gdo>", [("character", "marcus")]),
        ("<gdo char1 char2>the two men</gdo>", [("character", "marcus"), ("character", "captain")]),
        ("<gdo char3>a Stranger</gdo>'s", [("character", "stranger")]),
        ("<gdo char9>they</gdo>", []),
        ("<gdo obj1>it</gdo>", [("object", "box")]),
        ("<gdo obj7>the old wooden cart with wheels</gdo>", [("object", "cart")]),
        ("<gdo bg4>here</gdo> <gdl bg5>a launch pad</gdl>", [("location", "hall"), ("location", "pad")]),
        ("<gda char1>Turned away</gda>", [("action", "turned away")]),
        ("<gda char2>walks to the door</gda>", [("action", "walks")]),
        ("<gdo obj1>box</gdo> <gdo obj2>the box</gdo>", [("object", "box")]),
        ("<gdo obj9></gdo><gda char1>...</gda>", []),
        ("nothing", []),
    ],
)
def test_frame_tags_are_named_short_and_once(inner, tags):
    assert tags_of(inner) == tags


def test_frame_tags_are_tags():
    segment = parse_story("<gdi image1><gda char1>ran</gda></gdi>").segments[0]
    assert frame_tags(segment, parse_chain_of_thought("")) == (Tag("action", "ran"),)
