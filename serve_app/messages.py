"""Messages between the ingress and the replicas: plain frozen data, so that neither side imports the other."""

import math
import uuid
from collections.abc import Hashable, Mapping
from dataclasses import astuple, dataclass
from typing import Any, Literal, Self

from serve_app.adapters import Version
from serve_app.recipe import USUAL_PROMPT_TOKENS, Output, Recipe, SchedulerName, Variation
from serve_app.schemas import ModelInfo

Stage = Literal["prompt", "unet", "vae", "preview", "file"]
"""What a replica spends time on."""

Loss = Literal["cancelled", "failed", "returned"]
"""Why what was spent on a slot is wasted."""

End = Literal["succeeded", "paused"] | Loss
"""How a slot ends on a replica."""

START_NEWS_S = 2.0
"""How often a replica that starts says how far it is."""

_PARTS = {*Recipe.model_fields, *Output.model_fields}


@dataclass(frozen=True, slots=True)
class Kept:
    """The state of a slot after `step` steps, to go on from if it is lost. Only replicas can read it.

    `model` is the hash of the model that made it: another cannot go on from it.
    """

    step: int
    model: str
    state: bytes


@dataclass(frozen=True, slots=True)
class Slot:
    """One image to generate. The picture depends on the seed, its variations and the recipe alone.

    `index` is its place in the request; `preview_steps` are the steps with a preview. With `keep_pixels` the replica
    also puts the decoded pixels into the object store, for a contact sheet. `canvas` is the `Canvas` of the recipe's
    pictures, or a reference to it on the way; None without pictures.
    """

    index: int
    seed: int
    recipe: Recipe
    output: Output
    preview_steps: frozenset[int] = frozenset()
    keep_pixels: bool = False
    canvas: Any = None
    generation: str = ""
    """The id of the request, for logs."""
    max_prompt_tokens: int = USUAL_PROMPT_TOKENS
    """How much of each prompt is read."""
    variations: tuple[Variation, ...] = ()
    """What moves the seed's noise, one after the other, each with a seed and a strength above 0."""
    kept: Kept | None = None
    """Where to go on; None: at the beginning."""
    pause_after: int | None = None
    """The step after which it ends as `Paused`, to go on later or never; None: it does not."""
    score_by: str | None = None
    """What scores its sketch, by name; None: nothing does."""

    @property
    def first_step(self) -> int:
        """How many steps of the schedule are done, or left out, before its first here."""
        return max(self.recipe.first_step, self.kept.step if self.kept else 0)

    @property
    def name(self) -> str:
        """What logs call it."""
        return f"image {self.index} (seed {self.seed}) of generation {self.generation or 'none'}"

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """Build a slot from the fields of a slot, a recipe and an output in one mapping. Raises ValidationError."""
        own = {name: value for name, value in fields.items() if name not in _PARTS}
        recipe = {name: value for name, value in fields.items() if name in Recipe.model_fields}
        output = {name: value for name, value in fields.items() if name in Output.model_fields}
        return cls(**own, recipe=Recipe.model_validate(recipe), output=Output.model_validate(output))


def new_caller(actor: str | None) -> str:
    """Return a name for a caller. If it is a Ray actor, the replicas ask Ray whether it lives when it does not poll."""
    return f"{actor or ''}/{uuid.uuid4().hex}"


def actor_of(caller: str) -> str | None:
    """Return the name of the actor that a caller is, if it is one."""
    return caller.rpartition("/")[0] or None


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt to have a slot generated.

    `caller` (see `new_caller`) and `number` (from 0, per caller) identify it. The caller waits at most `timeout_s`
    seconds; the replica drops the slot then. The router sends it to `replica` (`ReplicaStatus.id`), or to any where
    none is named.
    """

    caller: str
    number: int
    timeout_s: float = math.inf
    replica: str | None = None


@dataclass(frozen=True, slots=True)
class OpenCalls:
    """The calls that a caller still waits for, by number; `made` is how many it has made so far.

    `images_waiting` wait at the caller for a replica with room.
    """

    caller: str
    made: int
    numbers: frozenset[int]
    images_waiting: int = 0

    def has_given_up(self, call: Call) -> bool:
        """Return whether the caller made this call and no longer waits for it."""
        return call.caller == self.caller and call.number < self.made and call.number not in self.numbers


@dataclass(frozen=True, slots=True)
class Progress:
    """`step` denoising steps are finished."""

    step: int


@dataclass(frozen=True, slots=True)
class Preview:
    """The picture predicted after `step` steps, as a base64 JPEG."""

    step: int
    width: int
    height: int
    b64_json: str


@dataclass(frozen=True, slots=True)
class Work:
    """Seconds a replica spent on a slot after admitting it to a batch, by the clock on the wall.

    `gpu` is how long the device (GPU, or CPU where there is none) worked on it alone, by the device's own clock.
    """

    encode_prompt: float
    denoise: float
    decode: float
    encode: float
    gpu: float = 0.0

    def __add__(self, later: "Work") -> "Work":
        return Work(*(before + after for before, after in zip(astuple(self), astuple(later), strict=True)))


NO_WORK = Work(0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Paused:
    """A sketch: a slot that has ended after `Slot.pause_after` steps. What it shows so far, and where to go on."""

    preview: Preview
    kept: Kept
    work: Work
    score: float | None = None
    """How good it is among those of its request, more being better; None: it was not scored, or could not be."""


@dataclass(frozen=True, slots=True)
class Generated:
    """A finished image: the base64 file, the model that made it, and a reference to its pixels if `Slot.keep_pixels`.

    Pixels are uint8 RGB, height x width x 3. `warnings` say what a person should know of it.
    """

    width: int
    height: int
    media_type: str
    b64_json: str
    work: Work
    model: ModelInfo
    pixels: Any = None
    warnings: tuple[str, ...] = ()


SlotEvent = Progress | Preview | Kept | Paused | Generated


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """A replica's status.

    `schedulers` are those that can sample its model; `scheduler` is the default. `capacity` is how many images it
    generates at once, `finished` how many it has generated since it started.
    """

    id: str
    model: ModelInfo
    scheduler: SchedulerName
    schedulers: tuple[SchedulerName, ...]
    has_previews: bool
    capacity: int
    active: int
    waiting: int
    finished: int
    fault: str | None = None
    """Why the replica takes no slots, or None."""
    others: int = 0
    """How many calls of others than the one that asked it holds."""
    takes_pictures: bool = True
    """Whether its VAE can encode a picture to go on from."""
    adapters: frozenset[Hashable] = frozenset()
    """Which adapters' weights it has ready, each combination by hashes and scales."""
    scorers: tuple[str, ...] = ()
    """What can score sketches, by name."""
    read: frozenset[str] = frozenset()
    """Which adapters' files it has read and keeps, by their hashes."""


@dataclass(frozen=True, slots=True)
class ReadAdapters:
    """A replica has read adapters and can use them: which replica, and the hashes of those files of which it knows."""

    replica: str
    hashes: Mapping[Version, str]
