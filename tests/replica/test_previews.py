from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.decode import PendingPixels
from serve_app.replica.previews import PreviewDecoder, PreviewPace


def latent(step: int) -> torch.Tensor:
    return torch.full((1, 4, 8, 8), float(step))


def test_a_newer_preview_replaces_a_waiting_one() -> None:
    pace = PreviewPace(frozenset(range(1, 10)), min_interval_s=1.0)
    pace.step_done(1, latent(1))
    first = pace.take(now=0.0)
    assert first is not None
    assert first[0] == 1
    pace.busy = False
    pace.step_done(2, latent(2))
    assert pace.take(now=0.5) is None
    pace.step_done(3, latent(3))
    newest = pace.take(now=1.0)
    assert newest is not None
    assert newest[0] == 3


def test_none_is_taken_while_one_is_being_encoded() -> None:
    pace = PreviewPace(frozenset(range(1, 10)), min_interval_s=0.0)
    pace.step_done(1, latent(1))
    assert pace.take(now=0.0)
    pace.step_done(2, latent(2))
    assert pace.take(now=1.0) is None
    pace.busy = False
    assert pace.take(now=1.0)


@pytest.mark.parametrize(
    ("height", "width", "max_size", "expected"),
    [
        (64, 64, 512, (64, 64)),
        (64, 128, 64, (32, 64)),
        (256, 256, 100, (85, 85)),
        (520, 512, 512, (260, 256)),
        (64, 512, 256, (32, 256)),
        (512, 64, 96, (85, 11)),
        (512, 1536, 512, (171, 512)),
        (1536, 64, 512, (512, 21)),
        (8, 512, 8, (1, 8)),
    ],
)
def test_a_preview_is_of_the_pictures_shape_and_never_larger_than_its_limit(
    checkpoint: Checkpoint, height: int, width: int, max_size: int, expected: tuple[int, int]
) -> None:
    assert checkpoint.preview_vae is not None
    decoder = PreviewDecoder(checkpoint, checkpoint.preview_vae, max_size, "none")
    clean = torch.randn(1, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(0))
    decoder.warm_up(clean)
    pixels = decoder.decode(clean).wait()
    assert pixels.shape == (*expected, 3)
    assert pixels.dtype == np.uint8
    assert max(expected) <= max_size
    scale = max(height, width) / max(expected)
    assert all(abs(side - whole / scale) <= 1 for side, whole in zip(expected, (height, width), strict=True))
    assert np.array_equal(decoder.decode(clean).wait(), pixels)


@pytest.mark.parametrize("statistics", [None, ((0.5, -1.0, 0.0, 2.0), (1.0, 2.0, 0.5, 4.0))])
@pytest.mark.parametrize(("factor", "shift"), [(1.0, 0.0), (2.0, 0.25)])
def test_a_tiny_vae_gets_latents_scaled_as_in_its_training(
    checkpoint: Checkpoint, statistics: tuple[tuple[float, ...], ...] | None, factor: float, shift: float
) -> None:
    assert checkpoint.preview_vae is not None
    tiny = AutoencoderTiny.from_config(
        {**checkpoint.preview_vae.config, "scaling_factor": factor, "shift_factor": shift}
    )
    tiny.load_state_dict(checkpoint.preview_vae.state_dict(), strict=False)
    changes = {"latents_mean": statistics[0], "latents_std": statistics[1], "scaling_factor": 0.5} if statistics else {}
    vae = AutoencoderKL.from_config({**checkpoint.vae.config, **changes})
    clean = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scaled = clean
    if statistics:
        mean, std = (torch.tensor(values).view(1, 4, 1, 1) for values in statistics)
        scaled = (clean * std / 0.5 + mean) * 0.13025  # the VAE's own latents, as SDXL scales them
    with torch.inference_mode():
        expected = PendingPixels(tiny.decode(scaled / factor + shift).sample).wait()
        shown = PreviewDecoder(replace(checkpoint, vae=vae), tiny, 512, "none").decode(clean).wait()
    assert np.array_equal(shown, expected)


def test_edges_are_not_shifted_in_a_preview(checkpoint: Checkpoint) -> None:
    """Sides that are not a multiple of the pooling size are cropped, not stretched.

    The part they share with a longer picture is the same.
    """
    assert checkpoint.preview_vae is not None
    decoder = PreviewDecoder(checkpoint, checkpoint.preview_vae, 128, "none")
    clean = torch.randn(1, 4, 24, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        longer, shorter = (decoder._pooled(part) for part in (clean, clean[..., :22, :]))
    assert torch.equal(longer[..., :5, :], shorter[..., :5, :])
