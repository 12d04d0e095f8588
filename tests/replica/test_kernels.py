"""Our operators by their references; `tests/gpu` compares the kernels with these."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from torch import nn
from torch.nn import functional as F  # noqa: N812, the usual name

from serve_app.config import ModelConfig
from serve_app.replica.attention import prepare
from serve_app.replica.checkpoint import load_checkpoint
from serve_app.replica.denoise import Denoiser
from serve_app.replica.fp8 import Fp8Conv, Fp8Geglu, Fp8Linear, use_geglu
from serve_app.replica.half import HalfConv, HalfGeglu, HalfPromptAttention, use_kernels
from serve_app.replica.kernels import convolutions, fp8, half
from serve_app.replica.lora.merging import Layers
from serve_app.replica.quantize import to_fp8
from serve_app.replica.unet import eager
from tests.conftest import make_slot
from tests.replica.test_compilation import trajectory

CPU = torch.device("cpu")


def alike(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float(F.cosine_similarity(ours.float().flatten(), theirs.float().flatten(), dim=0))


def a_conv(*, keep: bool = False) -> tuple[nn.Conv2d, Fp8Conv, torch.Tensor]:
    torch.manual_seed(0)
    plain = nn.Conv2d(64, 32, 3, padding=1, dtype=torch.bfloat16)
    value = torch.randn(2, 64, 8, 16, dtype=torch.bfloat16)
    return plain, Fp8Conv(plain, value.abs().amax(), keep), value


def a_feed_forward() -> tuple[FeedForward, FeedForward, torch.Tensor]:
    """Return one as it is, and the same in 8-bit floats."""
    torch.manual_seed(0)
    plain, ours = (FeedForward(128).to(torch.bfloat16).eval() for _ in range(2))
    ours.load_state_dict(plain.state_dict())
    value = torch.randn(2, 5, 128, dtype=torch.bfloat16)
    with torch.inference_mode():
        for name, given in (("net.0.proj", value), ("net.2", plain.net[0](value))):
            layer = ours.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            ours.set_submodule(name, Fp8Linear(layer, given.abs().amax()))
    return plain, ours, value


@torch.inference_mode()
def test_a_convolution_in_8_bits_is_close_to_itself() -> None:
    plain, ours, value = a_conv()
    assert ours(value).shape == plain(value).shape
    assert ours(value).dtype == torch.bfloat16
    assert alike(ours(value), plain(value)) > 0.998


@torch.inference_mode()
def test_a_convolution_takes_another_weight_in_its_place() -> None:
    plain, ours, value = a_conv(keep=True)
    place = ours.weight.data_ptr()
    other = torch.randn_like(plain.weight) * 3
    ours.take(other)
    assert alike(ours(value), F.conv2d(value, other, plain.bias, padding=1)) > 0.998
    assert ours.pristine is not None
    ours.take(ours.pristine)
    assert torch.equal(ours(value), a_conv()[1](value))
    assert ours.weight.data_ptr() == place


@torch.inference_mode()
def test_gates_in_8_bits_are_close_to_themselves_and_scaled_for_what_follows() -> None:
    plain, ours, value = a_feed_forward()
    apart = ours(value)
    use_geglu(ours)
    assert isinstance(ours.net[0], Fp8Geglu)
    assert ours.net[0](value).dtype == torch.float8_e4m3fn
    assert ours(value).dtype == torch.bfloat16
    assert alike(ours(value), plain(value)) > 0.997
    assert alike(ours(value), apart) > 0.999


@torch.inference_mode()
def test_gates_of_other_sizes_stay_as_they_are() -> None:
    layers = FeedForward(64).eval()
    for name in ("net.0.proj", "net.2"):
        layer = layers.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        layers.set_submodule(name, Fp8Linear(layer, torch.tensor(1.0)))
    use_geglu(layers)
    assert not isinstance(layers.net[0], Fp8Geglu)


@torch.inference_mode()
def test_fused_gates_are_those_of_the_layer_before_also_with_another_weight() -> None:
    plain, _, value = a_feed_forward()
    before = plain(value)
    weight = plain.net[0].proj.weight
    assert use_kernels(plain) == 1
    assert isinstance(plain.net[0], HalfGeglu)
    assert alike(plain(value), before) > 0.9999
    assert plain.get_submodule("net.0.proj").weight is weight, "adapters find it by its name"
    weight *= -1
    assert alike(plain(value), before) < 0.9


@torch.inference_mode()
def test_only_gates_that_the_kernel_can_take_are_fused() -> None:
    assert not use_kernels(FeedForward(128))  # 32 bits
    assert not use_kernels(FeedForward(32).bfloat16())
    assert not use_kernels(a_feed_forward()[1])  # 8 bits


@torch.inference_mode()
def test_convolutions_by_our_kernel_are_those_before() -> None:
    _, _, value = a_conv()
    model = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, dtype=torch.bfloat16))
    before, weight = model(value), model[0].weight
    assert use_kernels(model) == 1
    assert isinstance(model[0], HalfConv)
    assert alike(model(value), before) > 0.9999
    assert model[0].weight is weight


def test_adapters_find_the_layers_that_have_kernels(tiny_path: Path) -> None:
    unet = load_checkpoint(ModelConfig(path=str(tiny_path), dtype="bfloat16"), CPU).unet
    found = Layers(unet).shapes
    assert use_kernels(unet) > 2
    assert Layers(unet).shapes == found


@torch.inference_mode()
@pytest.mark.parametrize("keys", [77, 154])
@pytest.mark.parametrize("eight", [False, True])
def test_attention_to_a_prompt_by_our_kernel_is_that_before(keys: int, eight: bool) -> None:
    torch.manual_seed(0)
    block = BasicTransformerBlock(128, 2, 64, cross_attention_dim=32).bfloat16().eval().requires_grad_(False)
    prepare(nn.ModuleList([block]))
    if eight:
        out = block.get_submodule("attn2.to_out.0")
        assert isinstance(out, nn.Linear)
        block.set_submodule("attn2.to_out.0", Fp8Linear(out, torch.tensor(2.0)))
    value, context = torch.randn(4, 16, 128).bfloat16(), torch.randn(2, keys, 256).bfloat16()
    before = block.attn2(value, encoder_hidden_states=context)
    use_kernels(block)
    assert isinstance(block.attn2.processor, HalfPromptAttention)
    assert alike(block.attn2(value, encoder_hidden_states=context), before) > 0.9999


def test_the_compiler_is_told_what_operators_return() -> None:
    torch.manual_seed(0)
    scales, factor = (torch.tensor(0.1), torch.tensor(0.2)), torch.tensor(3.0)
    x, bias = torch.randn(2, 4, 8, 64).to(torch.float8_e4m3fn), torch.randn(32, dtype=torch.bfloat16)
    weight = torch.randn(32, 9 * 64).to(torch.float8_e4m3fn)
    checks = ("test_faketensor",)
    torch.library.opcheck(fp8.conv, (x, weight, bias, *scales), test_utils=checks)
    torch.library.opcheck(fp8.geglu, (x.reshape(-1, 64), weight[:, :64], bias, *scales, factor), test_utils=checks)
    given = (x.reshape(-1, 64).bfloat16(), weight[:, :64].bfloat16(), bias)
    torch.library.opcheck(half.geglu, given, test_utils=checks)
    torch.library.opcheck(half.attend, (given[0][None], given[0].repeat(1, 2)[None], factor), test_utils=checks)
    torch.library.opcheck(half.conv, (x.bfloat16(), weight.bfloat16(), bias), test_utils=checks)


def test_the_unet_and_the_vae_with_convolutions_in_8_bits_compute_nearly_the_same(tiny_path: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    fresh = load_checkpoint(ModelConfig(path=str(tiny_path)), CPU)
    fresh = replace(fresh, vae=AutoencoderKL(block_out_channels=(64,), norm_num_groups=8).eval())
    latents = torch.randn(1, 4, 8, 8)
    with torch.inference_mode():
        before = Denoiser(fresh, eager(fresh.unet)).predict([trajectory(fresh, make_slot())])[0]
        decoded = fresh.vae.decode(latents).sample
        to_fp8(fresh, ModelConfig(width=64, height=64), fewest_features=32, kernels=True)
        after = Denoiser(fresh, eager(fresh.unet)).predict([trajectory(fresh, make_slot())])[0]
        assert alike(before, after) > 0.99
        assert alike(decoded, fresh.vae.decode(latents).sample) > 0.99
    for model in (fresh.unet, fresh.vae.decoder):
        assert any(isinstance(module, Fp8Conv) for module in model.modules())
    assert convolutions(fresh.vae.encoder), "it stays as it is"
