"""Story markup: every quirk of the real data, and that no word is lost or glued."""

import random
import re

import pytest

from storydist.data.markup import characters_mentioned, kind_of, parse_story


def segment(inner: str):
    return parse_story(f"<gdi image1>{inner}</gdi>").segments[0]


def mentions(inner: str) -> list[tuple[str, tuple[str, ...], str]]:
    return [(mention.kind, mention.ids, mention.text) for mention in segment(inner).mentions]


def test_a_plain_story_gives_one_segment_a_frame():
    story = parse_story("<gdi image1>\n<gdo char1>Ann</gdo> <gda char1>runs</gda>.\n</gdi>\n\n<gdi image2>Rain.</gdi>")
    assert [(part.image, part.text) for part in story.segments] == [(1, "Ann runs."), (2, "Rain.")]
    assert [mention.kind for mention in story.segments[0].mentions] == ["character", "action"]
    assert story.preamble == ""


@pytest.mark.parametrize("closer", ["</gdo>", "</gda>", "</gdl>", "</GDO>", "</gdo >"])
def test_any_closer_closes_the_innermost_tag(closer):
    found = mentions(f"<gdo char4>Bo</gdo> <gda char4>stands{closer} by <gdo obj1>a cart</gdo>.")
    assert found == [
        ("character", ("char4",), "Bo"),
        ("action", ("char4",), "stands"),
        ("object", ("obj1",), "a cart"),
    ]


@pytest.mark.parametrize(
    ("tag", "kind"),
    [
        ("gdo bg26", "location"),
        ("gdo lm1", "location"),
        ("gdl obj2", "object"),
        ("gdl char1", "character"),
        ("gda char1", "action"),
        ("gdo", "object"),
        ("gdl", "location"),
        ("gdo thing7", "object"),
    ],
)
def test_kind_follows_the_id_and_only_then_the_tag(tag, kind):
    assert mentions(f"<{tag}>x</gdo>")[0][0] == kind


def test_several_ids_keep_their_order():
    assert mentions("<gdo char3 char1, char2 char3>they</gdo>")[0][1] == ("char3", "char1", "char2")
    assert mentions('<gdo id="char1">he</gdo>')[0][1] == ("char1",)


@pytest.mark.parametrize(
    ("inner", "text"),
    [
        ("<gdo char1>Tom</gdo>'s hat", "Tom's hat"),
        ("<gdo char1> Tom </gdo>'s hat", "Tom's hat"),
        ("<gdo char1>Tom </gdo>’s hat", "Tom’s hat"),
        ("As<gdo char1>the child</gdo>sat", "As the child sat"),
        ("as <gdo char1> the child </gdo> sat", "as the child sat"),
        ("<gdo obj1>the car </gdo>, <gdo obj2>a bus</gdo> .", "the car, a bus."),
        ("<gdo obj1>car</gdo>s pass", "cars pass"),
        ("stop.<gdo char1>Tom</gdo> ran", "stop. Tom ran"),
        ('"<gdo char1>Tom</gdo>!"', '"Tom!"'),
        ("(<gdo char1>Tom</gdo>) well-<gda char1>known</gda>", "(Tom) well-known"),
        ("<gdo char1>Tom</gdo><gdo char2>Ann</gdo>", "Tom Ann"),
        ("<gdo char1>Élodie</gdo>été 東京<gdo bg1>駅</gdo>", "Élodie été 東京 駅"),
        ("one\n\n two\tthree", "one two three"),
        ("5 < 6 and <b>bold</b> & more", "5 < 6 and <b>bold</b> & more"),
        ("", ""),
    ],
)
def test_tags_are_removed_without_gluing_or_spacing(inner, text):
    assert segment(inner).text == text


def test_mentions_lie_where_they_say():
    inner = "As<gdo char1> the child </gdo>'s <gdo obj1>toy <gda char1>falls</gdo>, <gdl bg1></gdl>dusk <gdo obj2>in"
    part = segment(inner)
    assert [part.text[m.start : m.end] for m in part.mentions] == [m.text for m in part.mentions]
    assert [m.text for m in part.mentions] == ["the child", "toy falls, dusk in", "falls", "", "in"]


def test_unclosed_tags_and_segments_close_at_the_end():
    story = parse_story("<gdi image1>A <gdo char1>fox <gdi image2>B <gda char1>runs")
    assert [part.text for part in story.segments] == ["A fox", "B runs"]
    assert [m.text for part in story.segments for m in part.mentions] == ["fox", "runs"]


def test_a_tag_without_its_bracket_takes_no_word_with_it():
    part = segment("<gdo char1 char2 Marcus and Ann</gdo> wave")
    assert part.text == "Marcus and Ann wave"
    assert part.mentions[0].ids == ("char1", "char2")
    assert part.mentions[0].text == "Marcus and Ann"


def test_text_outside_of_segments_is_kept():
    story = parse_story("Title <gdi image1>one</gdi> between </gdi> these <gdi image2>two</gdi> after")
    assert (story.preamble, [part.trailing for part in story.segments]) == ("Title", ["between these", "after"])
    assert story.plain_text() == "Title one between these two after"
    assert parse_story("no markup").preamble == "no markup"
    assert parse_story("").segments == ()


def test_images_without_a_number_follow_the_one_before_and_order_is_by_number():
    story = parse_story("<gdi>a</gdi><gdi image5>b</gdi><gdi>c</gdi><gdi image2>d</gdi><gdi image99999999>e</gdi>")
    assert [part.image for part in story.segments] == [1, 5, 6, 2, 3]
    assert [part.text for part in story.in_image_order()] == ["a", "d", "e", "b", "c"]


def test_characters_are_those_named_or_acting_once_each():
    part = segment("<gda char2>runs</gda> <gdo obj1>x</gdo> <gdo char1 char2>they</gdo>")
    assert characters_mentioned(part) == ("char2", "char1")
    assert characters_mentioned(segment("nobody")) == ()
    assert kind_of("BG7") == "location" and kind_of("image3") is None


TAGS = [
    "<gdo char1>", "<gdo bg26>", "<gda char4>", "<gdl lm1>", "<gdo char1 char2>", "</gdo>", "</gda>", "</gdl>",
    "<gdi image2>", "<gdi>", "</gdi>", "<gdo char1", "<gdo", "< gdo obj1 >", "<GDL bg3>", "</ gdo>",
]  # fmt: skip
WORDS = ["fox", "Runs", "été", "x1", "東京", "Tom", "dusk", "well", "42"]
BETWEEN = ["", "", " ", "\n\n", "  ", "\t"]


@pytest.mark.parametrize("seed", range(300))
def test_random_markup_never_raises_and_keeps_every_word_in_order(seed):
    draw = random.Random(seed)
    text, words, touching = "", [], False
    for _ in range(draw.randrange(60)):
        text += draw.choice(BETWEEN)
        if draw.random() < 0.5:
            # A word directly behind a word or a tag without ">" would be one with it already in the source.
            text += " " if touching and text[-1:].isalnum() else ""
            words.append(draw.choice(WORDS))
            text, touching = text + words[-1], True
        else:
            text += draw.choice(TAGS) if draw.random() < 0.9 else ""
            touching = touching or text.endswith(("char1", "gdo"))
    story = parse_story(text)
    assert story.plain_text().split() == words, text
    for part in story.segments:
        assert all(m.text == part.text[m.start : m.end] for m in part.mentions)
        assert "  " not in part.text and part.text == part.text.strip()


def test_any_characters_at_all_never_raise():
    draw = random.Random(5)
    alphabet = "<>/ gdoial char1bg2image\n\t'\"|&;\x00é"
    for _ in range(500):
        text = "".join(draw.choice(alphabet) for _ in range(draw.randrange(120)))
        plain = parse_story(text).plain_text()
        outside_of_tags = re.sub(r"<[^<>]*>", "", text)
        assert plain.count("é") >= outside_of_tags.count("é"), text


def test_length_costs_linear_time():
    inner = "<gdo char1>" * 20_000 + "word " + "<gdo" * 20_000
    assert len(segment(inner).mentions) >= 20_000
