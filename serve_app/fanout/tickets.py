"""What a slot claims when it asks for its turn."""

from collections.abc import Hashable

from serve_app.fanout.order import Ticket
from serve_app.messages import Slot
from serve_app.samplers import unet_calls
from serve_app.schemas import ModelInfo


def ticket_of(slot: Slot, client: Hashable, generation: Hashable, model: ModelInfo) -> Ticket:
    """Return a slot's claim; `model` is the one that its request began with."""
    recipe = slot.recipe
    adapters, files = recipe.adapters_key or None, recipe.adapter_files
    return Ticket(client, generation, slot.index, work_of(slot), model.hash, adapters, files)


def work_of(slot: Slot) -> float:
    """Return how much work a slot is, compared with others: only a part of it where it is a sketch, or goes on."""
    recipe = slot.recipe
    first, last = recipe.first_step, recipe.num_inference_steps
    steps = (slot.pause_after or last) - (slot.kept.step if slot.kept else first)
    return unet_calls(recipe) * steps / (last - first) * recipe.width * recipe.height
