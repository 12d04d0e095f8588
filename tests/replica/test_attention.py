"""Cross-attention where the unconditional prompt is zeros."""

import pytest
import torch

from serve_app.replica.attention import blocks
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.compilation import _choices
from serve_app.replica.unet import UNetInputs, eager


def inputs(checkpoint: Checkpoint, images: int, *, half: bool) -> UNetInputs:
    """Return inputs of guided images, whose unconditional contexts are zeros: all rows of the context, or half."""
    noise = torch.Generator().manual_seed(images)
    width = sum(2 * block.attn2.to_k.out_features for block in blocks(checkpoint.unet))
    prompts = torch.randn(images, 77, width, generator=noise)
    return UNetInputs(
        sample=torch.randn(images, 4, 8, 8, generator=noise).repeat_interleave(2, 0),
        timestep=torch.full((2 * images,), 500.0),
        context=prompts if half else torch.stack([torch.zeros_like(prompts), prompts], 1).flatten(0, 1),
        pooled=torch.randn(2 * images, checkpoint.pipe.text_encoder_2.config.projection_dim, generator=noise),
        time_ids=torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]]).expand(2 * images, -1),
    )


@pytest.mark.parametrize("images", [1, 3])
@torch.inference_mode()
def test_half_of_the_context_predicts_what_zeros_in_the_other_half_do(checkpoint: Checkpoint, images: int) -> None:
    run = eager(checkpoint.unet)
    ours, all_rows = (run(*inputs(checkpoint, images, half=half).tensors) for half in (True, False))
    torch.testing.assert_close(ours, all_rows, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours[::2], ours[1::2], atol=1e-2)


@torch.inference_mode()
def test_what_is_asked_of_zeros_is_answered_with_the_bias_to_the_bit(checkpoint: Checkpoint) -> None:
    attention = next(blocks(checkpoint.unet)).attn2
    asked = torch.randn(2, 16, attention.to_q.in_features)
    prompt = torch.randn(1, 77, 2 * attention.to_k.out_features)
    half = attention(asked, encoder_hidden_states=prompt)
    whole = attention(asked, encoder_hidden_states=torch.cat([torch.zeros_like(prompt), prompt]))
    assert torch.equal(half[0], whole[0])
    assert torch.equal(half[0], attention.to_out[0].bias.expand(16, -1))
    torch.testing.assert_close(half[1], whole[1])


def test_programs_for_many_rows_are_told_apart(checkpoint: Checkpoint) -> None:
    """They differ only in a number that counts as any: the rows of the context."""
    half, whole = (_choices(inputs(checkpoint, 2, half=half).tensors)[0] for half in (True, False))
    assert half != whole
    assert half == _choices(inputs(checkpoint, 4, half=True).tensors)[0]
