"""One UNet call for many slots, whatever their prompts, steps, schedulers and guidance."""

from collections.abc import Sequence

import torch

from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.trajectory import Trajectory


def predict(checkpoint: Checkpoint, trajectories: Sequence[Trajectory], row_buckets: Sequence[int]) -> Sequence[torch.Tensor]:
    """Return the UNet's prediction for the next step of every trajectory, (its rows, channels, h, w) each.

    All trajectories must have one latent shape. The rows are padded to the next of `row_buckets` with copies of the
    last row, so that a bucket always runs the same kernels and gives the same bits.
    """
    rows = [t.rows for t in trajectories]
    padding = _padding(sum(rows), row_buckets)

    def batch(parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([*parts, parts[-1][-1:].expand(padding, *parts[-1].shape[1:])] if padding else parts)

    prediction = checkpoint.unet(
        batch([t.model_input() for t in trajectories]).to(checkpoint.dtype),
        batch([t.timestep.expand(t.rows) for t in trajectories]),
        encoder_hidden_states=batch([t.tokens for t in trajectories]),
        added_cond_kwargs={
            "text_embeds": batch([t.pooled for t in trajectories]),
            "time_ids": batch([t.time_ids for t in trajectories]),
        },
        return_dict=False,
    )[0]
    split: Sequence[torch.Tensor] = prediction[: sum(rows)].split(rows)
    return split


def _padding(rows: int, buckets: Sequence[int]) -> int:
    return min((b - rows for b in buckets if b >= rows), default=0)
