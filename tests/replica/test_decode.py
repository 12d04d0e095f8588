import numpy as np
import pytest
import torch

from serve_app.errors import SlotFailed
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.decode import Decoder, PendingPixels


def test_minus_one_to_one_becomes_0_to_255() -> None:
    image = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).expand(1, 3, 1, 5)
    assert PendingPixels(image).wait()[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_latents_are_unscaled_as_the_pipeline_does(checkpoint: Checkpoint) -> None:
    latents = torch.randn(1, 4, 8, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        raw = checkpoint.vae.decode(latents / checkpoint.vae.config.scaling_factor).sample
        stock = checkpoint.pipe.image_processor.postprocess(raw, output_type="pil")[0]
        assert np.array_equal(Decoder(checkpoint, "none").decode(latents).wait(), np.asarray(stock))


def test_values_that_are_not_finite_are_an_error() -> None:
    with pytest.raises(SlotFailed, match="not numbers"):
        PendingPixels(torch.full((1, 3, 2, 2), float("nan"))).wait()
