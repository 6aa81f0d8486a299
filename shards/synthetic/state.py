"""What a synthetic story is. Pictures, text, tables, tags and score are all functions of these values.

Lengths are in pixels of the canvas (larger than a frame, so that a camera can pan over it) unless marked. Colours are
RGB, 0 to 255. Times are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi, sin

FRAME_SIZE = (575, 240)  # width, height of a stored frame
CANVAS = (800, 334)
# Of a figure's size: an arm to the middle of the hand; from the top of the head down to where the arms begin.
ARM, SHOULDER = 0.27, 0.22
MIN_SEEN = 24  # pixels of the stored frame, across and down

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Action:
    """What a character does. Scores are made of `valence`, in [-1, 1]; `successor` is what tends to follow."""

    name: str
    valence: float
    successor: str
    verbs: tuple[str, ...]
    endings: tuple[str, ...]
    emotion: str
    arms: tuple[float, float]  # angle of the two arms, degrees: 0 hangs down, 90 points sideways, 180 points up
    mouth: float  # -1 sad, 0 straight, 1 smile, 2 open


@dataclass(frozen=True)
class Person:
    name: str
    pronouns: tuple[str, str]  # subject, possessive: ("she", "her")
    look: str
    garment: str
    skin: Colour
    hair: Colour
    coat: Colour
    hair_style: int  # 0 short, 1 long, 2 hat
    height: float  # beside the average of 1


@dataclass(frozen=True)
class Thing:
    kind: str
    words: str
    colour: Colour


@dataclass(frozen=True)
class Location:
    """`key` is unique to the film and place: the sets are drawn from it, so they look the same in every story."""

    key: str
    name: str
    words: str
    indoor: bool
    far: Colour
    near: Colour
    ground: Colour
    accent: Colour
    landmarks: tuple[str, ...]


@dataclass(frozen=True)
class Lighting:
    name: str
    time: str
    words: tuple[str, ...]
    gains: tuple[float, float, float]


@dataclass(frozen=True)
class Film:
    title: str
    cast: tuple[Person, ...]
    locations: tuple[Location, ...]
    things: tuple[Thing, ...]
    tint: tuple[float, float, float]


@dataclass(frozen=True)
class Setup:
    """A camera set-up: where it looks and whom it shows. A shot that returns to it shows the same, moved a little."""

    angle: int
    scale: str  # "close", "medium", "wide"
    people: tuple[int, ...]  # positions in the film's cast
    things: tuple[int, ...]  # positions in the film's things
    places: tuple[float, ...]  # where each person stands across the frame, 0 to 1
    thing_places: tuple[float, ...]
    centre: tuple[float, float]
    zoom: float  # width of the view beside the canvas


@dataclass(frozen=True)
class Figure:
    """A person as drawn: `x` of the spine, `top` of the head, `size` down to the feet (which may be out of view)."""

    person: int
    action: Action
    x: float
    top: float
    size: float
    facing: int  # -1 left, 1 right

    @property
    def box(self) -> Box:
        """What the figure covers, hands and hat included."""
        back, front = (0.15 + ARM * max(0.0, sin(angle * pi / 180)) for angle in self.action.arms)
        left, right = (back, front) if self.facing > 0 else (front, back)
        raised = max(0.0, *(-cos(angle * pi / 180) for angle in self.action.arms))
        above = max(0.055, ARM * raised - SHOULDER + 0.04)
        return self.x - left * self.size, self.top - above * self.size, self.x + right * self.size, self.top + self.size


@dataclass(frozen=True)
class Prop:
    thing: int
    x: float
    base: float
    size: float

    @property
    def box(self) -> Box:
        return (self.x - self.size / 2, self.base - self.size, self.x + self.size / 2, self.base)


@dataclass(frozen=True)
class Frame:
    scene: int
    location: Location
    lighting: Lighting
    setup: Setup
    view: Box
    gains: tuple[float, float, float]
    figures: tuple[Figure, ...]
    props: tuple[Prop, ...]
    time_s: float
    held: bool  # the shot before goes on

    def in_view(self, box: Box) -> tuple[int, int, int, int]:
        """`box` in pixels of the stored frame, clipped to it."""
        left, top, right, bottom = self.view
        scale_x, scale_y = FRAME_SIZE[0] / (right - left), FRAME_SIZE[1] / (bottom - top)
        xs = [min(max(round((x - left) * scale_x), 0), FRAME_SIZE[0]) for x in (box[0], box[2])]
        ys = [min(max(round((y - top) * scale_y), 0), FRAME_SIZE[1]) for y in (box[1], box[3])]
        return xs[0], ys[0], xs[1], ys[1]

    @property
    def mood(self) -> int:
        """-1 dark, 0 calm, 1 bright: that of what the first figure does."""
        valence = self.figures[0].action.valence
        return (valence > 0.3) - (valence < -0.3)

    @property
    def seen_figures(self) -> tuple[Figure, ...]:
        """Those of which the view shows at least MIN_SEEN; the one who acts comes first and is always there."""
        return tuple(figure for figure in self.figures if figure is self.figures[0] or self.shows(figure.box))

    @property
    def seen_props(self) -> tuple[Prop, ...]:
        return tuple(prop for prop in self.props if self.shows(prop.box))

    def shows(self, box: Box) -> bool:
        left, top, right, bottom = self.in_view(box)
        return right - left >= MIN_SEEN and bottom - top >= MIN_SEEN


@dataclass(frozen=True)
class Ids:
    """The ids that markup and tables use: local to the story, in a random order, with gaps.

    `renamed`: (person, frame, id): from that frame on the data set takes the person for somebody new.
    """

    people: dict[int, str]
    renamed: tuple[int, int, str] | None
    things: dict[int, str]
    backgrounds: dict[str, str]  # by location key
    landmarks: dict[tuple[str, str], str]  # by location key and landmark

    def person(self, person: int, frame: int) -> str:
        if self.renamed and self.renamed[0] == person and frame >= self.renamed[1]:
            return self.renamed[2]
        return self.people[person]


@dataclass(frozen=True)
class StoryState:
    """`brightening`, `warming`: relative change of exposure, and of red against blue, from first to last frame."""

    story_id: str
    key: str
    film: Film
    frames: tuple[Frame, ...]
    ids: Ids
    brightening: float
    warming: float
