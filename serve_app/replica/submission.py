"""What an engine is given to generate."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from serve_app.messages import Generated, Paused, Slot, SlotEvent
from serve_app.replica.batching import Job
from serve_app.replica.denoise import CallGroup
from serve_app.replica.lora.sets import NO_ADAPTERS, Adapters
from serve_app.replica.meter import Bill
from serve_app.replica.prompt_reader import ReadPrompts

Post = Callable[[SlotEvent | Exception], None]
"""Takes a slot's events, from any thread. The last is Generated, Paused or an error; a cancelled slot has none."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A slot, its prompts, the receiver of its events, its adapters, and what it costs."""

    slot: Slot
    prompts: ReadPrompts
    post: Post
    adapters: Adapters = NO_ADAPTERS
    bill: Bill = field(default_factory=Bill)

    def group(self, step: int) -> CallGroup:
        """Return what it has in common with those that it can share a UNet call with after `step` steps."""
        recipe = self.slot.recipe
        prompts = self.prompts.phases[recipe.phase_after(step)]
        return CallGroup.of(recipe, prompts, self.adapters.key or None)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.slot.recipe.height, self.slot.recipe.width

    def told(self, outcome: Generated | Paused) -> Generated | Paused:
        """Return how the slot has ended, with what its picture's prompts are to be warned of."""
        if isinstance(outcome, Paused):
            return outcome
        return replace(outcome, warnings=(*outcome.warnings, *self.prompts.warnings))


SlotJob = Job[Submission]
