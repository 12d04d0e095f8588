"""The UNet's inputs besides latents and timestep: prompts, size and, where it takes it, the guidance scale."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch

from serve_app.recipe import Recipe
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.device import to_device
from serve_app.replica.prompts import PromptEmbedding


class Conditioning(NamedTuple):
    """The UNet's inputs that are the same in a phase. Rows: the unconditional one, if any, then the prompt's.

    `context` is (rows, length, `attention.prompt_context`), `pooled` (rows, projection width), `time_ids` (rows, 6),
    `guidance` (rows, width of `embedded_guidance`). Where the unconditional context is zeros, `context` is only that
    of the prompt.
    """

    context: torch.Tensor
    pooled: torch.Tensor
    time_ids: torch.Tensor
    guidance: torch.Tensor | None = None

    @classmethod
    def of(cls, recipe: Recipe, checkpoint: Checkpoint, embeddings: Sequence[PromptEmbedding]) -> Self:
        """Return a recipe's conditioning, one row for each of `embeddings`.

        A UNet that is given the guidance scale has learned what it does: it takes the prompt's row alone.
        """
        guidance = embedded_guidance(recipe, checkpoint)
        if guidance is not None:
            embeddings = embeddings[-1:]
        time_ids = torch.tensor(_time_ids(recipe)[-len(embeddings) :], dtype=checkpoint.dtype)
        return cls(
            context=_joined([e.context for e in embeddings if e.context is not None]),
            pooled=torch.cat([e.pooled for e in embeddings]),
            time_ids=to_device(time_ids, checkpoint.device),
            guidance=guidance,
        )

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the rows of all parts, for one UNet call. A single part is not copied, because contexts are large."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(torch.cat(rows) for rows in zip(*parts, strict=True) if rows[0] is not None))

    @property
    def rows(self) -> int:
        return len(self.pooled)


def _joined(rows: list[torch.Tensor]) -> torch.Tensor:
    """Return rows as one tensor. Contexts are large: a single one is not copied."""
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def takes_guidance(checkpoint: Checkpoint) -> bool:
    """Return whether the UNet is distilled to be given the guidance scale, as LCM is."""
    return checkpoint.unet.config.time_cond_proj_dim is not None


def embedded_guidance(recipe: Recipe, checkpoint: Checkpoint) -> torch.Tensor | None:
    """Return the guidance scale as the UNet takes it, (1, width), computed by diffusers; None if it takes none."""
    if not takes_guidance(checkpoint):
        return None
    scale = torch.tensor(recipe.guidance_scale - 1).repeat(1)
    width = checkpoint.unet.config.time_cond_proj_dim
    embedded = checkpoint.pipe.get_guidance_scale_embedding(scale, embedding_dim=width)
    return to_device(embedded.to(checkpoint.dtype), checkpoint.device)


def without_effect(recipe: Recipe, checkpoint: Checkpoint) -> Sequence[str]:
    """Return a sentence for each setting of a recipe that such a UNet does not take."""
    ignored = {"negative_prompt": recipe.negative_prompt, "guidance_rescale": recipe.guidance_rescale}
    if not recipe.guided or not takes_guidance(checkpoint):
        return ()  # without guidance they never have one, which the plan says
    return [f"{name} has no effect: this model is given the guidance scale" for name, value in ignored.items() if value]


def _time_ids(recipe: Recipe) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return what the UNet is told of sizes beside the negative prompt and the prompt, as diffusers' pipeline does."""
    size = (recipe.height, recipe.width)
    told = (*(recipe.original_size or size), *recipe.crops_coords_top_left, *(recipe.target_size or size))
    if recipe.negative_original_size is None or recipe.negative_target_size is None:
        return told, told
    return (*recipe.negative_original_size, *recipe.negative_crops_coords_top_left, *recipe.negative_target_size), told
