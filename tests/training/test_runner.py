from pathlib import Path

import pytest
import torch
from torch import nn

from training.config import load_config
from training.models import make_noise
from training.runner import Average, keep_channels_last, learning_rate, load_weights, save_weights


def test_learning_rate_rises_stays_and_falls() -> None:
    rates = [
        learning_rate(1.0, step, progress, 10, 0.5)
        for step, progress in [(0, 0), (9, 0.1), (50, 0.4), (90, 0.75), (100, 1.0)]
    ]
    assert rates == pytest.approx([0.1, 1, 1, 0.5, 0.02])
    assert learning_rate(1.0, 100, 1.0, 10, 1.0) == 1


def test_the_average_is_swapped_in_and_out() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 0)
    average = Average(layer, 0.5)
    nn.init.constant_(layer.weight, 1)
    average.update(1000)
    average.swap()
    assert layer.weight.item() == 0.5
    average.swap()
    assert layer.weight.item() == 1


def test_weights_come_back_from_float16_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.runner._PIECE_BYTES", 64)
    saved, loaded = nn.Linear(8, 8), nn.Linear(8, 8)
    save_weights(saved, tmp_path, "layer")
    assert len(list(tmp_path.glob("layer-*.safetensors"))) > 1
    assert load_weights(loaded, tmp_path, "layer")
    torch.testing.assert_close(loaded.weight, saved.weight, atol=1e-3, rtol=1e-3)
    assert not load_weights(loaded, tmp_path, "nothing")


def test_channels_last_changes_no_gradient() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 3))
    image = torch.randn(2, 3, 9, 9)
    layers(image).square().mean().backward()
    before = [p.grad.clone() for p in layers.parameters() if p.grad is not None]
    layers.zero_grad()
    keep_channels_last(layers)
    layers(image).square().mean().backward()
    for old, parameter in zip(before, layers.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, old)


def test_config_knows_its_keys() -> None:
    config = load_config(changes=["unet.batch=8", "vae.model.latent_channels=16"])
    assert config.unet.batch == 8
    assert config.vae.model["latent_channels"] == 16
    with pytest.raises(KeyError, match="no such setting"):
        load_config(changes=["unet.colour=8"])


def test_the_last_sigma_is_large_and_finite() -> None:
    noise = make_noise(load_config().schedule, torch.device("cpu"))
    ratio = noise.sigma / noise.signal
    assert 80 < ratio[-1] < 150
    torch.testing.assert_close(noise.sigma.square() + noise.signal.square(), torch.ones(1000))
