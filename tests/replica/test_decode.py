import copy

import numpy as np
import pytest
import torch

from serve_app.errors import SlotFailed
from serve_app.replica import vae_attention
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.decode import Decoder, PendingPixels
from serve_app.replica.vae_attention import use_products


def test_minus_one_to_one_becomes_0_to_255() -> None:
    image = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).expand(1, 3, 1, 5)
    assert PendingPixels(image).wait()[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_latents_are_unscaled_as_the_pipeline_does(checkpoint: Checkpoint) -> None:
    latents = torch.randn(1, 4, 8, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        raw = checkpoint.vae.decode(latents / checkpoint.vae.config.scaling_factor).sample
        stock = checkpoint.pipe.image_processor.postprocess(raw, output_type="pil")[0]
        assert np.array_equal(Decoder(checkpoint, "none").decode(latents).wait(), np.asarray(stock))


@torch.inference_mode()
def test_attention_by_products_is_torchs_own(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vae_attention, "_MOST_SCORES", 5000)  # of 8 * 16 queries and keys, so that they come in parts
    ours = copy.deepcopy(checkpoint.vae)
    use_products(ours)
    latents = torch.randn(2, 4, 8, 16, generator=torch.Generator().manual_seed(0))
    picture = checkpoint.vae.decode(latents).sample
    torch.testing.assert_close(ours.decode(latents).sample, picture, atol=1e-4, rtol=1e-4)


def test_values_that_are_not_finite_are_an_error() -> None:
    with pytest.raises(SlotFailed, match="not numbers"):
        PendingPixels(torch.full((1, 3, 2, 2), float("nan"))).wait()
