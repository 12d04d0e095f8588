"""What a generation knows of one of its slots."""

import asyncio
import math
import time
from dataclasses import dataclass, replace
from typing import Any

from serve_app.fanout.events import DEADLINE_EXCEEDED, expired, failed
from serve_app.fanout.order import Ticket
from serve_app.fanout.states import SlotState
from serve_app.fanout.tickets import work_of
from serve_app.messages import NO_WORK, Kept, Paused, Slot, Work
from serve_app.recipe import Recipe
from serve_app.schemas import Image, ModelInfo, NoPicture, Parameters

_LATENTS = 7
"""Of the size of so many latents is what the solver that remembers most keeps, the latent itself among them."""
_LATENT_BYTES = 4 * 4
"""A float32 of four channels."""
_OTHER_STATE_BYTES = 2**14
LEAST_KEPT = 2**15
"""About what a paused image takes besides its state: its sketch, and maybe a stream of its own that stays open."""


def most_kept(slot: Slot) -> int:
    """Return how many bytes are kept of a slot at most while it is paused."""
    recipe = slot.recipe
    state = _LATENTS * _LATENT_BYTES * (recipe.height // 8) * (recipe.width // 8) + _OTHER_STATE_BYTES
    return state + LEAST_KEPT


@dataclass(eq=False, slots=True)
class SlotRecord:
    """The state of a slot. Only its generation changes it.

    A cancellation, or that it goes on, is requested first; the slot changes its state when its client is told.
    """

    slot: Slot
    ticket: Ticket
    state: SlotState = SlotState.QUEUED
    replica: str | None = None
    """The replica that it went to last."""
    cancel_requested: bool = False
    resume_requested: bool = False
    position: int | None = None
    """The place in the queue that the client was last told."""
    task: asyncio.Task[None] | None = None
    image: Image | None = None
    """The result, once the slot has ended."""
    pixels: Any = None
    work: Work = NO_WORK
    """What its sketch and its picture took."""
    paused_s: float = 0.0
    """How long it was paused before it went on, in seconds: time that does not count."""
    score: float | None = None
    """What its sketch is worth among those of its request, if that was asked."""
    branched: bool = False
    """Whether it went on with other settings than those of its request."""
    kept_after_s: float = 0.0
    """How long its replicas took up to the step that was kept last."""
    _paused_at: float | None = None
    _expires_at: float | None = None
    """When a pause ends that somebody is to end; None: it ends by itself, and its time counts."""

    def move_to(self, state: SlotState) -> None:
        """Change the state. Raises IllegalTransition."""
        self.state = self.state.to(state)

    @property
    def is_paused(self) -> bool:
        """Whether it waits for somebody to say that it goes on."""
        return self.state is SlotState.PAUSED and not (self.resume_requested or self.cancel_requested)

    @property
    def was_paused(self) -> bool:
        return self._paused_at is not None

    @property
    def kept_bytes(self) -> int:
        """How many bytes are kept of it while it is paused; before, how many may be then."""
        if self.state is SlotState.PAUSED and self.slot.kept is not None:
            return len(self.slot.kept.state) + LEAST_KEPT
        return 0 if self.state.ended or self.slot.pause_after is None else most_kept(self.slot)

    def pause(self, sketch: Paused, ttl_s: float | None) -> None:
        """Keep the state of a slot that has ended on its replica for so long, None: until all are sketched."""
        self.move_to(SlotState.PAUSED)
        self.work += sketch.work
        self.slot = replace(self.slot, kept=sketch.kept, pause_after=None)
        self.kept_after_s = self.work.encode_prompt + self.work.denoise
        self._paused_at = time.monotonic()
        self._expires_at = None if ttl_s is None else self._paused_at + ttl_s
        self.score = sketch.score

    def branch(self, recipe: Recipe) -> None:
        """Let it go on by a recipe of its own, which is its request's up to the step where it is paused."""
        self.slot = replace(self.slot, recipe=recipe)
        self.branched = True

    def own_parameters(self, model: ModelInfo) -> Parameters | None:
        """Return its settings if they are not those of its request; `model` is the one that this began with."""
        return Parameters(**dict(self.slot.recipe), **dict(self.slot.output), model=model) if self.branched else None

    def resume(self) -> None:
        """Let a paused slot wait for a replica that goes on with it."""
        assert self._paused_at is not None, "only what is paused goes on"
        self.move_to(SlotState.QUEUED)
        self.resume_requested = False
        if self._expires_at is not None:
            self.paused_s += time.monotonic() - self._paused_at
        self.ticket = replace(self.ticket, work=work_of(self.slot))
        self.position = None

    def keep(self, kept: Kept, seconds: float) -> None:
        """Remember a step to go on from if its replica is lost, and how long it took that one to get there."""
        self.slot = replace(self.slot, kept=kept)
        self.kept_after_s = seconds

    def due(self, deadline: float) -> float:
        """Return when the slot ends if nothing happens, by the request's deadline; all monotonic."""
        if self.state is SlotState.PAUSED and self._expires_at is not None:
            return self._expires_at if self.is_paused else math.inf
        return math.inf if self.state.ended else deadline + self.paused_s

    def end_by_time(self) -> NoPicture:
        """Return how the slot ends if its time is over."""
        waited = self.state is SlotState.PAUSED and self._expires_at is not None
        return expired(self.slot) if waited else failed(self.slot, DEADLINE_EXCEEDED)
