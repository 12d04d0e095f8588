"""Norms for the memory layout of GPUs; they can be tested on a CPU."""

from pathlib import Path

import pytest
import torch
from torch import nn

from serve_app.config import ModelConfig
from serve_app.replica.checkpoint import load_checkpoint
from serve_app.replica.norms import ChannelsLastGroupNorm, use_channels_last_norms


def pair(groups: int, channels: int) -> tuple[nn.Module, nn.Module]:
    """Return torch's norm, and ours with the same weights."""
    theirs = nn.Sequential(nn.GroupNorm(groups, channels, eps=1e-6))
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, mean=1)
    ours = nn.Sequential(theirs[0])
    use_channels_last_norms(ours)
    assert isinstance(ours[0], ChannelsLastGroupNorm)
    return theirs, ours


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(1, 64, 16, 16), (3, 64, 5, 9), (2, 64, 50)])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_equals_torchs_own(shape: tuple[int, ...], mean: float) -> None:
    theirs, ours = pair(32, 64)
    value = torch.randn(shape) + mean
    torch.testing.assert_close(ours(value), theirs(value), atol=1e-3 if mean else 1e-5, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize(
    "value", [torch.full((1, 64, 16, 16), 3.3), 1e-3 * torch.randn(1, 64, 16, 16), torch.zeros(2, 64, 4, 4)]
)
def test_inputs_with_small_variance(value: torch.Tensor) -> None:
    theirs, ours = pair(32, 64)
    torch.testing.assert_close(ours(value), theirs(value), atol=1e-2, rtol=1e-3)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once_and_keeps_its_layout(dtype: torch.dtype) -> None:
    theirs, ours = pair(4, 16)
    value = (1000 + 300 * torch.randn(2, 16, 8, 8)).to(
        dtype, memory_format=torch.channels_last
    )  # its squares overflow float16
    exact = theirs(value.float())
    theirs.to(dtype), ours.to(dtype)
    normed = ours(value)
    assert normed.dtype == dtype
    assert normed.is_contiguous(memory_format=torch.channels_last)
    assert (normed.float() - exact).abs().mean() < 1.1 * (theirs(value).float() - exact).abs().mean()


@torch.inference_mode()
def test_a_row_does_not_depend_on_the_others() -> None:
    _, ours = pair(8, 32)
    rows = torch.randn(4, 32, 8, 8)
    for row, alone in zip(ours(rows), rows, strict=True):
        assert torch.equal(row, ours(alone[None])[0])


@torch.inference_mode()
def test_a_model_gives_the_same_output_with_these_norms(tiny_path: Path) -> None:
    checkpoint = load_checkpoint(ModelConfig(path=str(tiny_path)), torch.device("cpu"))
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    before = checkpoint.vae.decode(latents).sample
    for model in (checkpoint.vae, checkpoint.unet):
        assert group_norms(model) == {nn.GroupNorm}, "a CPU keeps them"
        weights = {name: value.data_ptr() for name, value in model.state_dict().items()}
        use_channels_last_norms(model)
        assert group_norms(model) == {ChannelsLastGroupNorm}
        assert {name: value.data_ptr() for name, value in model.state_dict().items()} == weights
    torch.testing.assert_close(checkpoint.vae.decode(latents).sample, before, atol=1e-4, rtol=1e-4)


def group_norms(model: nn.Module) -> set[type]:
    return {type(module) for module in model.modules() if isinstance(module, nn.GroupNorm)}
