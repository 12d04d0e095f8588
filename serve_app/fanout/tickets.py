"""What a slot claims when it asks for its turn."""

from collections.abc import Hashable

from serve_app.fanout.order import Ticket
from serve_app.messages import Slot
from serve_app.samplers import unet_calls
from serve_app.schemas import ModelInfo


def ticket_of(slot: Slot, client: Hashable, generation: Hashable, model: ModelInfo) -> Ticket:
    """Return a slot's claim; `model` is the one that its request began with."""
    return Ticket(client, generation, slot.index, _work_of(slot), model.hash, slot.recipe.adapters_key or None)


def _work_of(slot: Slot) -> float:
    """Return how much work a slot is, compared with others."""
    recipe = slot.recipe
    return float(unet_calls(recipe) * recipe.width * recipe.height)
