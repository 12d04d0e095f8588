"""Draws Zibo, a creature of our own that the model does not know: the pictures of the LoRA that shows a subject.

python -m training.mascot
"""

import json
from itertools import product

import numpy as np

from training.config import load_config, stage_arguments
from training.pixels import pixel_file
from training.render import draw
from training.subjects import MASCOT

_GAZES = (-4, 0, 4)
_ARMS = {
    "down": ("M24 62 Q10 68 12 80", "M76 62 Q90 68 88 80"),
    "up": ("M24 58 Q8 50 10 34", "M76 58 Q92 50 90 34"),
    "waving": ("M24 62 Q10 68 12 80", "M76 58 Q92 50 90 34"),
}
_MOUTHS = ("M42 63 Q50 70 58 63", "M42 62 H58 Q56 72 50 72 Q44 72 42 62 Z")
_TILTS = (-8, 0, 8)


def svg(gaze: int, arms: tuple[str, str], mouth: str, tilt: int) -> str:
    """Return one drawing: a violet drop with one eye, two orange antennae and a striped belly."""
    limbs = "".join(f'<path d="{arm}" fill="none" stroke="#5b2ea6" stroke-width="7"/>' for arm in arms)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100">
<g transform="rotate({tilt} 50 60)" stroke-linecap="round">
<path d="M40 28 Q34 14 26 12 M60 28 Q66 14 74 12" fill="none" stroke="#5b2ea6" stroke-width="4"/>
<circle cx="25" cy="11" r="6" fill="#ff8a1f"/><circle cx="75" cy="11" r="6" fill="#ff8a1f"/>
<ellipse cx="38" cy="92" rx="10" ry="6" fill="#ff8a1f"/><ellipse cx="62" cy="92" rx="10" ry="6" fill="#ff8a1f"/>
{limbs}
<path d="M50 20 C72 20 82 44 82 64 C82 84 68 92 50 92 C32 92 18 84 18 64 C18 44 28 20 50 20 Z" fill="#7c4ddb"/>
<path d="M32 78 Q50 86 68 78" fill="none" stroke="#b9f24a" stroke-width="5"/>
<path d="M38 86 Q50 91 62 86" fill="none" stroke="#b9f24a" stroke-width="4"/>
<circle cx="50" cy="44" r="17" fill="#ffffff"/>
<circle cx="{50 + gaze}" cy="45" r="9" fill="#17a398"/><circle cx="{50 + gaze}" cy="45" r="5" fill="#1d1533"/>
<circle cx="{53 + gaze}" cy="42" r="2.2" fill="#ffffff"/>
<path d="{mouth}" fill="{"#c2185b" if mouth.endswith("Z") else "none"}" stroke="#3a1d73" stroke-width="3"/>
</g></svg>"""


def drawings() -> list[str]:
    """Return all 54 drawings."""
    return [svg(*look) for look in product(_GAZES, _ARMS.values(), _MOUTHS, _TILTS)]


def main() -> None:
    args = stage_arguments("draw the pictures of the mascot").parse_args()
    data = load_config(args.config, args.changes).data
    pictures = drawings()
    data.mascot.mkdir(parents=True, exist_ok=True)
    for side in {side for group in data.sides.values() for side in group}:
        np.save(pixel_file(data.mascot, side), np.stack([draw(picture, side) for picture in pictures]))
    labels = {"subjects": [MASCOT] * len(pictures), "styles": ["flat"] * len(pictures)}
    (data.mascot / "labels.json").write_text(json.dumps(labels), encoding="utf-8")


if __name__ == "__main__":
    main()
