"""The story text with its markup: one `<gdi imageN>` segment a frame, quirks of the real data included.

A segment names the figures in view, what they do, the place, light, things and landmarks of its frame, and closes on
the mood of the action. How often each quirk appears is stated once, in QUIRKS.
"""

from __future__ import annotations

import re
from random import Random

from shards.synthetic import lexicon
from shards.synthetic.film import seen_landmarks
from shards.synthetic.state import Figure, Frame, Person, StoryState

QUIRKS = {
    "wrong closer": 0.05,  # of the action tags: <gda char1>waited</gdo>
    "wrong closer, entity": 0.01,
    "background in gdo": 0.5,  # of the background mentions: <gdo bg3>
    "no tags": 0.015,  # of the segments
    "untagged": 0.12,  # of the pronouns and actions
    "nested": 0.02,  # of the action tags: <gda char1>waited by <gdo obj2>a lamp</gdo></gda>
    "space inside": 0.01,  # of the entity tags: <gdo char1> Anna</gdo>
    "segment missing": 0.02,  # of the stories: the last one
    "segment too many": 0.01,  # of the stories
}
_TAG = re.compile(r"</?gd[oal][^>]*>")


def tell_story(story: StoryState) -> str:
    """The `story` column."""
    rng = Random(f"{story.key}/tell")
    segments = [_Teller(story, number, rng).segment() for number in range(len(story.frames))]
    fate = rng.random()
    if fate < QUIRKS["segment missing"]:
        segments.pop()
    elif fate < QUIRKS["segment missing"] + QUIRKS["segment too many"]:
        segments.append("And so it ended, as all things must.")
    return "\n\n".join(f"<gdi image{number}>\n{text}\n</gdi>" for number, text in enumerate(segments, start=1))


class _Teller:
    """Tells one frame. Its only state is the generator, shared by the frames of a story."""

    def __init__(self, story: StoryState, number: int, rng: Random) -> None:
        self.story, self.number, self.rng = story, number, rng
        self.frame: Frame = story.frames[number]
        self.actor = self.frame.seen_figures[0]

    def segment(self) -> str:
        sentences = [self._opening()]
        sentences += [self._detail()] if self.rng.random() < 0.6 else []
        sentences += [self._thought()] if self.rng.random() < 0.75 else []
        sentences += self._reactions()
        sentences += [self._thing()] if self.frame.seen_props and self.rng.random() < 0.65 else []
        sentences += self._landmarks()
        sentences += [self._together()] if len(self.frame.seen_figures) > 1 and self.rng.random() < 0.35 else []
        if self.rng.random() < 0.6:
            sentences.append(self.rng.choice(lexicon.AIR[self.frame.location.indoor]) + ".")
        if self.rng.random() < 0.8:
            sentences.append(self.rng.choice(lexicon.CLOSINGS[self.frame.mood]) + ".")
        text = " ".join(sentences)
        return _TAG.sub("", text) if self.rng.random() < QUIRKS["no tags"] else text

    def _opening(self) -> str:
        light = self.rng.choice(self.frame.lighting.words)
        what = f"{self._name(self.actor)} {self._deed(self.actor)}"
        new_scene = self.number == 0 or self.story.frames[self.number - 1].scene != self.frame.scene
        form = 0 if new_scene else self.rng.randrange(4)
        if form == 0:
            return f"{self.rng.choice(('In', 'Inside'))} {self._place()}, {light}, {what}."
        if form == 1:
            return f"{light[0].upper()}{light[1:]}, {what} in {self._place()}."
        if form == 2:
            return f"{what}, and {self._place()} felt {self._mood_word()}."
        return f"Once more, {what}."

    def _detail(self) -> str:
        person = self._person(self.actor)
        subject, possessive = person.pronouns
        if self.rng.random() < 0.4:
            return (
                f"{self._name(self.actor)}'s {person.garment} stood out {self.rng.choice(self.frame.lighting.words)}."
            )
        if self.rng.random() < 0.5:
            emotion = self.actor.action.emotion.lower()
            return f"{possessive.capitalize()} face was {emotion}, and the mood was {self._mood_word()}."
        was = "were" if subject == "they" else "was"
        looks = f"{self._pronoun(self.actor)} {was} {person.look}"
        return f"{looks}, {self._mood_word()} and alone with {possessive} thoughts."

    def _thought(self) -> str:
        they, their = self._person(self.actor).pronouns
        thought = self.rng.choice(lexicon.THOUGHTS[self.frame.mood]).format(they=they, their=their)
        return f"{thought[0].upper()}{thought[1:]}."

    def _reactions(self) -> list[str]:
        others = self.frame.seen_figures[1:]
        if len(others) == 2 and others[0].action == others[1].action:
            names = " and ".join(self._person(figure).name for figure in others)
            return [f"{self._entity(self._ids(*others), names)} {self._deed(*others)}."]
        return [f"{self._name(figure)} {self._deed(figure)}." for figure in others]

    def _deed(self, *figures: Figure) -> str:
        return f"{self._act(*figures)} {self.rng.choice(figures[0].action.endings)}"

    def _thing(self) -> str:
        prop = self.rng.choice(self.frame.seen_props)
        words = self.story.film.things[prop.thing].words
        thing = self._entity(self.story.ids.things[prop.thing], words)
        side = "left" if prop.x < self.actor.x else "right"
        return self.rng.choice(
            (
                f"On the {side}, {thing} stood within reach.",
                f"There was {thing} close at hand, {self._mood_word()} in its stillness.",
                f"Nobody touched {thing}.",
            )
        )

    def _landmarks(self) -> list[str]:
        marks = seen_landmarks(self.frame)
        if not marks or self.rng.random() > 0.5:
            return []
        mark = self.rng.choice(sorted(marks))
        number = self.story.ids.landmarks[self.frame.location.key, mark]
        return [f"Behind {self._pronoun_object()}, {self._tag('gdl', number, f'the {mark}')} kept its own counsel."]

    def _together(self) -> str:
        both = self._entity(self._ids(*self.frame.seen_figures), "They" if self.rng.random() < 0.7 else "All of them")
        return f"{both} shared the same {self._mood_word()} thought."

    def _mood_word(self) -> str:
        return self.rng.choice(lexicon.MOOD_WORDS[self.frame.mood])

    def _person(self, figure: Figure) -> Person:
        return self.story.film.cast[figure.person]

    def _ids(self, *figures: Figure) -> str:
        return " ".join(self.story.ids.person(figure.person, self.number) for figure in figures)

    def _name(self, figure: Figure) -> str:
        person = self._person(figure)
        unnamed = person.name == "Unidentified" or self.rng.random() < 0.08
        return self._entity(self._ids(figure), f"the figure in the {person.garment}" if unnamed else person.name)

    def _pronoun(self, figure: Figure) -> str:
        word = self._person(figure).pronouns[0].capitalize()
        return word if self.rng.random() < QUIRKS["untagged"] else self._entity(self._ids(figure), word)

    def _pronoun_object(self) -> str:
        return {"she": "her", "he": "him", "they": "them"}[self._person(self.actor).pronouns[0]]

    def _act(self, *figures: Figure) -> str:
        verbs = figures[0].action.verbs
        verb = verbs[0] if self.rng.random() < 0.7 else verbs[-1]
        if self.rng.random() < QUIRKS["untagged"]:
            return verb
        if self.frame.seen_props and self.rng.random() < QUIRKS["nested"]:
            prop = self.frame.seen_props[0]
            verb += f" near {self._entity(self.story.ids.things[prop.thing], self.story.film.things[prop.thing].words)}"
        return self._tag("gda", self._ids(*figures), verb)

    def _place(self) -> str:
        number = self.story.ids.backgrounds[self.frame.location.key]
        kind = "gdo" if self.rng.random() < QUIRKS["background in gdo"] else "gdl"
        return self._tag(kind, number, self.frame.location.words)

    def _entity(self, ids: str, words: str) -> str:
        return self._tag("gdo", ids, f" {words}" if self.rng.random() < QUIRKS["space inside"] else words)

    def _tag(self, kind: str, ids: str, words: str) -> str:
        closer = kind
        if self.rng.random() < QUIRKS["wrong closer" if kind == "gda" else "wrong closer, entity"]:
            closer = "gdo" if kind == "gda" else "gda"
        return f"<{kind} {ids}>{words}</{closer}>"
