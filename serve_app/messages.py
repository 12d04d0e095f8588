"""What crosses between the ingress and a replica: plain frozen data, so that neither side knows the other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from serve_app.recipe import Output, Recipe, SchedulerName
from serve_app.schemas import ModelInfo

_PARTS = {*Recipe.model_fields, *Output.model_fields}


@dataclass(frozen=True, slots=True)
class Slot:
    """One image to generate. The picture depends on the seed and the recipe alone.

    `index` is its place in the request; previews are wanted after the steps in `preview_steps`. With `keep_pixels` the
    replica also leaves the decoded pixels in the object store, for a contact sheet.
    """

    index: int
    seed: int
    recipe: Recipe
    output: Output
    preview_steps: frozenset[int] = frozenset()
    keep_pixels: bool = False

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """Return a slot of fields that are its own, its recipe's or its output's. Raises ValidationError."""
        own = {name: value for name, value in fields.items() if name not in _PARTS}
        recipe = {name: value for name, value in fields.items() if name in Recipe.model_fields}
        output = {name: value for name, value in fields.items() if name in Output.model_fields}
        return cls(**own, recipe=Recipe.model_validate(recipe), output=Output.model_validate(output))


@dataclass(frozen=True, slots=True)
class CallId:
    """One call for a slot: who made it, and how many it had made before."""

    caller: str
    number: int


@dataclass(frozen=True, slots=True)
class OpenCalls:
    """The calls a caller still waits for, by number, of the `made` it has made so far."""

    caller: str
    made: int
    numbers: frozenset[int]

    def has_given_up(self, call: CallId) -> bool:
        """Return whether the caller has made this call and waits for it no more."""
        return call.caller == self.caller and call.number < self.made and call.number not in self.numbers


@dataclass(frozen=True, slots=True)
class Progress:
    """`step` denoising steps are done."""

    step: int


@dataclass(frozen=True, slots=True)
class Preview:
    """A JPEG, as base64 text, of the picture predicted after `step` steps."""

    step: int
    width: int
    height: int
    b64_json: str


@dataclass(frozen=True, slots=True)
class Work:
    """Seconds a replica spent on a slot once it was admitted to a batch."""

    encode_prompt: float
    denoise: float
    decode: float
    encode: float


@dataclass(frozen=True, slots=True)
class Generated:
    """A finished image: the file as base64 text, and a reference to its pixels if asked for.

    Pixels are uint8 RGB, height x width x 3.
    """

    width: int
    height: int
    media_type: str
    b64_json: str
    work: Work
    pixels: Any = None


SlotEvent = Progress | Preview | Generated


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """What a replica says of itself.

    `schedulers` are those that can sample its model, `scheduler` is the one of requests that name none. `prompt_tokens`
    is how many the text encoders read, `capacity` how many images it generates at once, `finished` how many it has
    generated since it started.
    """

    id: str
    model: ModelInfo
    scheduler: SchedulerName
    schedulers: tuple[SchedulerName, ...]
    has_previews: bool
    prompt_tokens: int
    capacity: int
    active: int
    waiting: int
    finished: int
