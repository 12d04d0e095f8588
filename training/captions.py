"""Captions of pictures: names, common aliases, styles, background colours, and filler words."""

import random
from collections.abc import Iterable
from dataclasses import dataclass

from training.subjects import STYLES

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (32, 33, 36),
    "gray": (154, 160, 166),
    "red": (229, 57, 53),
    "orange": (251, 140, 0),
    "yellow": (253, 216, 53),
    "green": (67, 160, 71),
    "mint": (168, 230, 207),
    "sky blue": (129, 212, 250),
    "blue": (30, 91, 216),
    "purple": (142, 36, 170),
    "pink": (248, 165, 194),
    "beige": (243, 229, 200),
}
"""The word for a background and its colour in sRGB, 0 to 255."""

_OTHER_COLOUR_WORDS = {
    "gray": "grey",
    "sky blue": "light blue",
    "blue": "dark blue",
    "green": "dark green",
    "mint": "light green",
}

# What people type -> the subjects that it may mean.
ALIASES: dict[str, tuple[str, ...]] = {
    "apple": ("red apple", "green apple"),
    "heart": ("red heart", "pink heart", "blue heart"),
    "car": ("automobile", "oncoming automobile"),
    "red car": ("automobile",),
    "plane": ("airplane",),
    "bike": ("bicycle",),
    "burger": ("hamburger",),
    "fries": ("french fries",),
    "donut": ("doughnut",),
    "coffee": ("hot beverage",),
    "cup of coffee": ("hot beverage",),
    "tea": ("hot beverage", "teacup without handle"),
    "beer": ("beer mug",),
    "wine": ("wine glass",),
    "cocktail": ("cocktail glass", "tropical drink"),
    "cake": ("birthday cake", "shortcake"),
    "ufo": ("flying saucer",),
    "phone": ("mobile phone", "telephone"),
    "smartphone": ("mobile phone",),
    "computer": ("laptop", "desktop computer"),
    "tv": ("television",),
    "bee": ("honeybee",),
    "ladybug": ("lady beetle",),
    "hippo": ("hippopotamus",),
    "rhino": ("rhinoceros",),
    "sun": ("sun with face", "sun"),
    "moon": ("crescent moon", "full moon"),
    "star": ("star", "glowing star"),
    "tree": ("deciduous tree", "evergreen tree"),
    "pine tree": ("evergreen tree",),
    "flower": ("cherry blossom", "hibiscus", "sunflower", "blossom"),
    "rose flower": ("rose",),
    "boat": ("sailboat", "motor boat", "speedboat"),
    "ship": ("ship", "passenger ship"),
    "train": ("train", "locomotive", "high speed train"),
    "fire truck": ("fire engine",),
    "truck": ("delivery truck", "articulated lorry"),
    "police car": ("police car", "oncoming police car"),
    "corn": ("ear of corn",),
    "chili": ("hot pepper",),
    "chili pepper": ("hot pepper",),
    "cheese": ("cheese wedge",),
    "kiwi": ("kiwi fruit",),
    "pumpkin": ("jack o lantern",),
    "halloween pumpkin": ("jack o lantern",),
    "sushi roll": ("sushi",),
    "noodles": ("steaming bowl",),
    "ramen": ("steaming bowl",),
    "chick": ("baby chick", "hatching chick"),
    "poop": ("pile of poo",),
    "skull and bones": ("skull and crossbones",),
    "santa": ("santa claus",),
    "snowman": ("snowman", "snowman without snow"),
    "gift": ("wrapped gift",),
    "present": ("wrapped gift",),
    "dice": ("game die",),
    "gamepad": ("video game",),
    "game controller": ("video game",),
    "soccer": ("soccer ball",),
    "football": ("american football", "soccer ball"),
    "shoe": ("running shoe", "mans shoe"),
    "sneaker": ("running shoe",),
    "boot": ("hiking boot", "womans boot"),
    "hat": ("top hat", "billed cap", "womans hat"),
    "cap": ("billed cap",),
    "shirt": ("t shirt",),
    "diamond": ("gem stone",),
    "gem": ("gem stone",),
    "lamp": ("light bulb",),
    "lock": ("locked",),
    "scissor": ("scissors",),
    "book": ("open book", "closed book"),
    "pen and paper": ("memo",),
    "castle tower": ("castle",),
    "home": ("house",),
    "lightning": ("high voltage",),
    "wave": ("water wave",),
    "ocean wave": ("water wave",),
    "earth": ("globe showing americas", "globe showing europe africa"),
    "planet": ("ringed planet",),
    "saturn": ("ringed planet",),
    "smiley": ("grinning face", "smiling face"),
    "happy face": ("grinning face", "smiling face with smiling eyes"),
    "sad face": ("frowning face", "crying face"),
    "laughing face": ("face with tears of joy", "rolling on the floor laughing"),
    "cool face": ("smiling face with sunglasses",),
    "happy cat": ("grinning cat", "grinning cat with smiling eyes"),
    "sad cat": ("crying cat",),
    "angry cat": ("pouting cat",),
    "laughing cat": ("cat with tears of joy",),
    "cat in love": ("smiling cat with heart eyes",),
    "puppy": ("dog face", "dog"),
    "kitten": ("cat face", "cat"),
    "bunny": ("rabbit face", "rabbit"),
    "piglet": ("pig face", "pig"),
    "tiger head": ("tiger face",),
    "cop": ("police officer",),
    "policeman": ("man police officer",),
    "doctor": ("health worker",),
    "chef": ("cook",),
    "king": ("prince", "person with crown"),
    "queen": ("princess",),
    "wizard": ("man mage",),
    "witch": ("woman mage",),
    "spaceman": ("astronaut",),
    "guitar player": ("man singer",),
    "farm worker": ("farmer",),
}

# Words around the subject that change nothing.
_LEADS = (
    "",
    "",
    "",
    "a",
    "a",
    "a",
    "the",
    "one",
    "an emoji of a",
    "a picture of a",
    "a drawing of a",
    "an icon of a",
    "a cute",
    "a small",
    "image of a",
)
_FILLERS = (
    "beautiful highly detailed 4k photo realistic masterpiece best quality amazing pretty nice big little lovely "
    "modern clean colorful digital art illustration sharp focus cinematic lighting vector centered minimal trending "
    "professional render portrait of with and in by at"
).split()


@dataclass(frozen=True, slots=True)
class CaptionOdds:
    """How often each part of a caption appears, 0 to 1."""

    style: float = 0.5
    background: float = 0.5
    alias: float = 0.3
    filler: float = 0.12


def other_names(subjects: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return subject -> its aliases, for the given subjects."""
    known = set(subjects)
    names: dict[str, list[str]] = {}
    for alias, targets in ALIASES.items():
        for target in known.intersection(targets):
            names.setdefault(target, []).append(alias)
    return {subject: tuple(sorted(found)) for subject, found in names.items()}


def caption(
    subject: str, style: str, background: str, names: dict[str, tuple[str, ...]], odds: CaptionOdds, rng: random.Random
) -> str:
    """Return a random caption of a picture: always its subject, style and background by the odds."""
    name = rng.choice(names[subject]) if subject in names and rng.random() < odds.alias else subject
    thing = f"{rng.choice(_LEADS)} {name}".strip()
    parts = []
    if rng.random() < odds.style:
        if rng.random() < 0.25:
            thing = f"{rng.choice(('a ', ''))}{style} {name}"
        else:
            parts.append(
                rng.choice(
                    (f"{style} style", f"in {style} style", f"in a {style} style", f", {style} style", f", {style}")
                )
            )
    if rng.random() < odds.background:
        parts.append(_background_words(background, rng))
    rng.shuffle(parts)
    if rng.random() < odds.filler:
        filler = _filler(rng)
        if rng.random() < 0.5:
            thing = f"{filler} {thing}"
        else:
            parts.append(f"{rng.choice((', ', ''))}{filler}")
    if rng.random() < 0.1:
        thing += " emoji"
    return " ".join([thing, *parts])


def _background_words(background: str, rng: random.Random) -> str:
    if background in _OTHER_COLOUR_WORDS and rng.random() < 0.25:
        background = _OTHER_COLOUR_WORDS[background]
    return rng.choice(
        (
            f"on a {background} background",
            f"on a {background} background",
            f"on {background}",
            f", {background} background",
            f"with a {background} background",
        )
    )


def _filler(rng: random.Random) -> str:
    if rng.random() < 0.3:
        return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9)))
    return " ".join(rng.sample(_FILLERS, rng.randint(1, 3)))


def all_words(subjects: Iterable[str]) -> list[str]:
    """Return every word that captions of `subjects` can contain, except random letters, sorted."""
    texts = [*subjects, *ALIASES, *_LEADS, *_FILLERS, *BACKGROUNDS, *_OTHER_COLOUR_WORDS.values(), *STYLES.values()]
    return sorted({word for text in (*texts, "on in a with style background emoji") for word in text.split()})
