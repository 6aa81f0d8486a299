"""Words and colours that films are made of. Tables only; nothing here draws lots."""

from __future__ import annotations

from shards.synthetic.state import Action, Colour, Lighting

ACTIONS = (
    Action(
        "laughed",
        1.0,
        "embraced",
        ("laughed", "burst out laughing"),
        ("until tears came", "without a care", "at the old joke"),
        "Joyful",
        (135, 150),
        2,
    ),
    Action(
        "embraced",
        0.8,
        "smiled",
        ("embraced", "opened both arms"),
        ("as if years had not passed", "and would not let go", "in relief"),
        "Relieved",
        (95, 80),
        1,
    ),
    Action(
        "smiled",
        0.5,
        "laughed",
        ("smiled", "gave a gentle smile"),
        ("at the thought of home", "for the first time that day", "and nodded slowly"),
        "Content",
        (15, 60),
        1,
    ),
    Action(
        "spoke",
        0.1,
        "waited",
        ("spoke", "talked quietly"),
        ("of what had to be done", "in a low voice", "about the long journey"),
        "Calm",
        (25, 100),
        0,
    ),
    Action(
        "waited",
        0.0,
        "searched",
        ("waited", "stood waiting"),
        ("for an answer", "without a word", "for the sound of steps"),
        "Neutral",
        (8, 8),
        0,
    ),
    Action(
        "searched",
        -0.1,
        "spoke",
        ("searched", "looked around"),
        ("for a sign", "for what was missing", "in every corner"),
        "Curious",
        (30, 155),
        0,
    ),
    Action(
        "argued",
        -0.5,
        "threatened",
        ("argued", "raised the voice"),
        ("with clenched fists", "over the broken promise", "and refused to yield"),
        "Angry",
        (70, 95),
        2,
    ),
    Action(
        "threatened",
        -1.0,
        "wept",
        ("threatened", "shook a fist"),
        ("to end it all", "with cold fury", "and stepped closer"),
        "Furious",
        (20, 165),
        -1,
    ),
    Action(
        "wept",
        -0.8,
        "argued",
        ("wept", "broke down in tears"),
        ("over all that was lost", "with bowed head", "and turned away"),
        "Sorrowful",
        (150, 140),
        -1,
    ),
)
REACTIONS = (
    Action(
        "watched",
        0.0,
        "watched",
        ("watched", "looked on"),
        ("in silence", "from a distance", "closely"),
        "Attentive",
        (10, 20),
        0,
    ),
    Action(
        "listened",
        0.0,
        "listened",
        ("listened",),
        ("to every word", "with folded hands", "and said nothing"),
        "Thoughtful",
        (40, 40),
        0,
    ),
)
ACTION_BY_NAME = {action.name: action for action in ACTIONS}
# The chain draws from these by the mood of the third: dark, calm, bright.
MOODS = {-1: ACTIONS[6:], 0: ACTIONS[3:6], 1: ACTIONS[:3]}
MOOD_WORDS = {
    -1: ("tense", "bitter", "grim", "heavy"),
    0: ("quiet", "uncertain", "expectant", "solemn"),
    1: ("hopeful", "warm", "joyful", "tender"),
}
THOUGHTS = {  # with the pronouns of the one who acts
    -1: (
        "{their} eyes narrowed at the memory of the betrayal",
        "{their} hands trembled with anger and fear",
        "{they} could no longer hide the pain behind a mask of pride",
        "{their} breath came short and {their} jaw was set",
    ),
    0: (
        "{their} eyes moved slowly across every detail",
        "{they} tried to make sense of what had been said",
        "{their} thoughts were already somewhere else",
        "{they} kept still, weighing each word with care",
    ),
    1: (
        "{their} eyes shone with a light that had long been missing",
        "{they} felt the burden of the past fall away",
        "{their} heart was lighter than it had been for years",
        "{they} knew at last that help was near",
    ),
}
AIR = {  # by whether the place is indoors
    True: (
        "Dust drifted slowly through the air",
        "Somewhere the floorboards creaked",
        "The walls seemed to lean in and listen",
        "A draught stirred in the room",
        "The tension filled every corner of the room",
    ),
    False: (
        "The wind carried the smell of rain",
        "Far away a bell began to ring",
        "Dry leaves moved along the ground",
        "The horizon seemed very far away",
        "Even outside, the tension was impossible to escape",
    ),
}
CLOSINGS = {
    -1: (
        "The tension in the air was thick enough to touch",
        "The tension between them grew with every breath",
        "Nothing would be the same after this",
        "The weight of the moment pressed down on everyone",
        "The tension had reached its breaking point",
    ),
    0: (
        "The tension was palpable, yet nobody moved",
        "Time seemed to stand still",
        "Something was about to change",
        "The silence spoke louder than words",
        "Every small sound seemed to carry a meaning",
    ),
    1: (
        "The tension slowly gave way to relief",
        "For a moment the world seemed kind",
        "Hope had found its way back",
        "A sense of peace settled over the scene",
        "It was a moment worth remembering",
    ),
}

LIGHTINGS = (
    Lighting("daylight", "Day", ("in bright daylight", "under a clear sky"), (1.12, 1.12, 1.08)),
    Lighting("dusk", "Evening", ("as dusk fell", "in the amber glow of evening"), (1.12, 0.78, 0.58)),
    Lighting("night", "Night", ("in the dead of night", "under pale moonlight"), (0.36, 0.44, 0.72)),
    Lighting("lamplight", "Night", ("by lamplight", "in the warm light of lamps"), (0.98, 0.72, 0.42)),
    Lighting("overcast", "Day", ("under grey clouds", "in flat, colourless light"), (0.74, 0.8, 0.86)),
    Lighting("dawn", "Morning", ("at first light", "in the rosy light of dawn"), (1.1, 0.86, 0.94)),
)

# name, words, indoor, hue of the far plane, saturation, brightness, landmarks
LOCATIONS = (
    ("parlour", "the old parlour", True, 0.02, 0.5, 0.62, ("window", "fireplace", "painting", "clock")),
    ("kitchen", "the farmhouse kitchen", True, 0.12, 0.45, 0.82, ("window", "counter", "door", "shelf")),
    ("office", "the cluttered office", True, 0.28, 0.25, 0.55, ("shelf", "window", "clock", "door")),
    ("corridor", "the long corridor", True, 0.48, 0.4, 0.5, ("door", "pillar", "painting", "stairs")),
    ("ward", "the hospital ward", True, 0.5, 0.15, 0.92, ("window", "counter", "door", "clock")),
    ("cellar", "the vaulted cellar", True, 0.08, 0.45, 0.3, ("pillar", "shelf", "stairs", "door")),
    ("street", "the narrow street", False, 0.58, 0.3, 0.72, ("lamp post", "house", "tower", "bench")),
    ("harbour", "the fishing harbour", False, 0.55, 0.55, 0.82, ("boat", "crane", "lamp post", "tower")),
    ("forest", "the pine forest", False, 0.3, 0.5, 0.6, ("tree", "rock", "tree", "fence")),
    ("desert", "the empty desert", False, 0.1, 0.55, 0.95, ("rock", "tower", "fence", "rock")),
    ("meadow", "the high meadow", False, 0.56, 0.45, 0.95, ("tree", "fence", "house", "bench")),
    ("rooftop", "the city rooftop", False, 0.75, 0.4, 0.6, ("tower", "house", "fence", "crane")),
)
THINGS = ("lamp", "letter", "suitcase", "bottle", "book", "telephone", "umbrella", "chair", "candle", "basket")
COLOUR_WORDS: dict[str, Colour] = {
    "red": (190, 40, 40),
    "blue": (45, 70, 170),
    "green": (50, 120, 60),
    "yellow": (225, 190, 60),
    "white": (235, 232, 225),
    "black": (28, 28, 34),
    "grey": (120, 122, 126),
    "brown": (110, 70, 40),
    "purple": (110, 50, 130),
    "orange": (220, 120, 40),
}
WOMEN = ("Anna", "Sarah", "Clara", "Ingrid", "Zoë", "Renée", "Martha", "Lucía", "Emily", "Helen", "Irène", "Ruth")
MEN = ("James", "John", "Marcus", "Tom", "José", "Henry", "Łukasz", "David", "Björn", "Victor", "Samuel", "Peter")
ROLES = ("The Detective", "The Captain", "The Doctor", "The Stranger", "Unidentified")
GARMENTS = ("coat", "dress", "jacket", "suit", "cloak", "shirt")
HAIRS: dict[str, Colour] = {
    "dark hair": (40, 28, 22),
    "fair hair": (215, 180, 110),
    "grey hair": (165, 165, 165),
    "auburn hair": (130, 60, 30),
}
SKINS: tuple[Colour, ...] = ((238, 200, 170), (214, 164, 124), (160, 108, 74), (104, 68, 48))
TITLE_FIRST = ("Silent", "Last", "Broken", "Hidden", "Golden", "Distant", "Burning", "Forgotten")
TITLE_SECOND = ("Harbour", "Letters", "Winter", "Garden", "Voyage", "Promise", "Bridge", "Season", "Mirror", "Orchard")
