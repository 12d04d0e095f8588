"""The UNet's inputs besides latents and timestep: prompts and size."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch

from serve_app.recipe import Recipe
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.device import to_device
from serve_app.replica.prompts import PromptEmbedding


class Conditioning(NamedTuple):
    """The UNet's inputs that are the same at all steps. Rows: the unconditional one, if any, then the prompt's.

    `context` is (rows, length, `attention.prompt_context`), `pooled` (rows, projection width), `time_ids` (rows, 6).
    """

    context: torch.Tensor
    pooled: torch.Tensor
    time_ids: torch.Tensor

    @classmethod
    def of(cls, recipe: Recipe, checkpoint: Checkpoint, embeddings: Sequence[PromptEmbedding]) -> Self:
        """Return a recipe's conditioning, one row for each of `embeddings`."""
        time_ids = torch.tensor(_time_ids(recipe)[-len(embeddings) :], dtype=checkpoint.dtype)
        return cls(
            context=torch.cat([e.context for e in embeddings]),
            pooled=torch.cat([e.pooled for e in embeddings]),
            time_ids=to_device(time_ids, checkpoint.device),
        )

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the rows of all parts, for one UNet call. A single part is not copied, because contexts are large."""
        return parts[0] if len(parts) == 1 else cls(*map(torch.cat, zip(*parts, strict=True)))

    @property
    def rows(self) -> int:
        return len(self.context)


def _time_ids(recipe: Recipe) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return what the UNet is told of sizes beside the negative prompt and the prompt, as diffusers' pipeline does."""
    size = (recipe.height, recipe.width)
    told = (*(recipe.original_size or size), *recipe.crops_coords_top_left, *(recipe.target_size or size))
    if recipe.negative_original_size is None or recipe.negative_target_size is None:
        return told, told
    return (*recipe.negative_original_size, *recipe.negative_crops_coords_top_left, *recipe.negative_target_size), told
