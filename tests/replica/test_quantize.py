from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812, the usual name

from serve_app.config import ModelConfig
from serve_app.replica import peaks
from serve_app.replica.checkpoint import Checkpoint, load_checkpoint
from serve_app.replica.denoise import Denoiser
from serve_app.replica.fp8 import Fp8Linear
from serve_app.replica.quantize import to_fp8
from serve_app.replica.unet import eager
from tests.conftest import make_slot
from tests.replica.test_compilation import trajectory

MODEL = {"width": 64, "height": 64}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of what is made once for all starts, an empty one."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def fresh(tiny_path: Path) -> Checkpoint:
    torch.set_num_threads(1)
    return load_checkpoint(ModelConfig(path=str(tiny_path)), torch.device("cpu"))


def test_a_layer_in_8_bits_is_close_to_itself() -> None:
    torch.manual_seed(0)
    linear, value = nn.Linear(64, 32, dtype=torch.bfloat16), torch.randn(2, 5, 64, dtype=torch.bfloat16)
    with torch.inference_mode():
        ours = Fp8Linear(linear, value.abs().amax())(value)
        theirs = linear(value)
    assert ours.shape == theirs.shape
    assert ours.dtype == torch.bfloat16
    assert F.cosine_similarity(ours.float().flatten(), theirs.float().flatten(), dim=0) > 0.998


def test_a_prompts_keys_and_values_stay_exact(fresh: Checkpoint) -> None:
    """They are computed once a prompt: in 8 bits they would only become less exact."""
    to_fp8(fresh, ModelConfig(**MODEL), fewest_features=32)
    kinds = {name.partition("attn2.")[2]: type(layer) for name, layer in fresh.unet.named_modules() if "attn2." in name}
    assert (kinds["to_k"], kinds["to_v"], kinds["to_q"]) == (nn.Linear, nn.Linear, Fp8Linear)


def test_values_beyond_the_measured_peak_are_cut_and_stay_numbers() -> None:
    linear = nn.Linear(16, 16, bias=False, dtype=torch.bfloat16)
    nn.init.eye_(linear.weight)
    with torch.inference_mode():
        output = Fp8Linear(linear, torch.tensor(1.0))(torch.full((1, 16), 100.0, dtype=torch.bfloat16))
    torch.testing.assert_close(output, torch.ones(1, 16, dtype=torch.bfloat16), atol=0.05, rtol=0)


def test_a_layer_of_zeros_gives_zeros() -> None:
    linear = nn.Linear(16, 16, bias=False, dtype=torch.bfloat16)
    nn.init.zeros_(linear.weight)
    with torch.inference_mode():
        assert not Fp8Linear(linear, torch.tensor(1.0))(torch.ones(1, 16, dtype=torch.bfloat16)).any()


def test_the_unet_predicts_nearly_the_same_and_the_same_each_time(fresh: Checkpoint, tiny_path: Path) -> None:
    with torch.inference_mode():
        before = Denoiser(fresh, eager(fresh.unet)).predict([trajectory(fresh, make_slot())])[0]
        replaced = to_fp8(fresh, ModelConfig(**MODEL), fewest_features=32)
        after = Denoiser(fresh, eager(fresh.unet)).predict([trajectory(fresh, make_slot())])[0]
        other = load_checkpoint(ModelConfig(path=str(tiny_path)), torch.device("cpu"))
        to_fp8(other, ModelConfig(**MODEL), fewest_features=32)
        again = Denoiser(other, eager(other.unet)).predict([trajectory(other, make_slot())])[0]
    assert replaced > 10
    assert F.cosine_similarity(before.float().flatten(), after.float().flatten(), dim=0) > 0.99
    assert not torch.equal(before, after)
    assert torch.equal(after, again), "every replica measures the same scales"


def _scales(checkpoint: Checkpoint) -> list[float]:
    to_fp8(checkpoint, ModelConfig(**MODEL), fewest_features=32)
    return [float(layer.input_scale) for layer in checkpoint.unet.modules() if isinstance(layer, Fp8Linear)]


def test_what_a_start_has_measured_serves_the_next_with_the_same_weights(
    fresh: Checkpoint, tiny_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def another(**changes: object) -> Checkpoint:
        return load_checkpoint(ModelConfig(path=str(tiny_path), **changes), torch.device("cpu"))

    measured = Mock(wraps=peaks._measure)
    monkeypatch.setattr(peaks, "_measure", measured)
    first = _scales(fresh)
    assert _scales(another()) == first
    assert measured.call_count == 1

    changed = another()
    changed.unet.conv_in.weight.data *= 2
    assert _scales(changed) != first
    assert measured.call_count == 2

    for file in folder.rglob("peaks-*"):
        file.write_bytes(file.read_bytes()[:20])
    assert _scales(another()) == first
    assert measured.call_count == 3
    assert "measured again" in caplog.text
