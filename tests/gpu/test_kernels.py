"""Our kernels on a Hopper GPU beside their references."""

from pathlib import Path

import pytest
import torch

from serve_app.config import ModelConfig
from serve_app.replica.checkpoint import load_checkpoint
from serve_app.replica.denoise import Denoiser
from serve_app.replica.fp8 import Fp8Conv
from serve_app.replica.half import use_kernels
from serve_app.replica.kernels import fp8, half, have_kernels
from serve_app.replica.quantize import to_fp8
from serve_app.replica.unet import eager
from tests.conftest import make_slot
from tests.replica.test_compilation import trajectory

GPU = torch.device("cuda")
pytestmark = pytest.mark.skipif(not (torch.cuda.is_available() and have_kernels(GPU)), reason="needs a Hopper GPU")


def small(*shape: int) -> torch.Tensor:
    """Return random numbers in 8 bits."""
    return torch.randn(*shape, device=GPU).to(torch.float8_e4m3fn)


def error(ours: torch.Tensor, reference: torch.Tensor) -> float:
    return float((ours.float() - reference.float()).norm() / reference.float().norm())


@pytest.mark.parametrize(("m", "n", "k"), [(2048, 5120, 1280), (8192, 2560, 640), (1000, 128, 128), (1, 256, 384)])
@torch.inference_mode()
def test_gates_are_those_of_the_reference(m: int, n: int, k: int) -> None:
    torch.manual_seed(m)
    given = small(m, k), small(2 * n, k), torch.randn(2 * n, device=GPU, dtype=torch.bfloat16)
    scales = torch.tensor(k**-0.5, device=GPU), torch.tensor(1.0, device=GPU), torch.tensor(50.0, device=GPU)
    ours = fp8.geglu(*given, *scales)
    assert ours.dtype == torch.float8_e4m3fn
    assert error(ours, fp8.geglu_reference(*given, *scales)) < 0.02
    assert torch.equal(ours.float(), fp8.geglu(*given, *scales).float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("m", "n", "k"), [(2048, 5120, 1280), (8192, 2560, 640), (1000, 128, 64), (1, 256, 192)])
@torch.inference_mode()
def test_gates_in_16_bits_are_rounded_once_and_the_same_alone(m: int, n: int, k: int, dtype: torch.dtype) -> None:
    torch.manual_seed(m)
    x, weight, bias = (torch.randn(*shape, device=GPU).to(dtype) for shape in ((m, k), (2 * n, k), (2 * n,)))
    weight *= k**-0.5
    ours = half.geglu(x, weight, bias)
    exact = half.geglu_reference(x.double(), weight.double(), bias.double())
    assert ours.dtype == dtype
    assert error(ours, exact) < 1.1 * error(exact.to(dtype), exact)
    assert torch.equal(ours[-1:], half.geglu(x[-1:].clone(), weight, bias))
    from serve_app.replica.kernels.geglu import geglu  # it needs Triton

    assert all(torch.equal(ours, geglu(x, weight, bias, columns=columns)) for columns in (64, 128))


of_pictures = pytest.mark.parametrize(
    ("rows", "height", "width", "channels", "n"),
    [
        (2, 128, 128, 320, 320),
        (2, 64, 64, 1920, 640),
        (2, 32, 32, 1280, 1280),
        (1, 16, 256, 64, 320),
        (3, 32, 16, 128, 64),
        (2, 28, 36, 128, 64),
        (2, 152, 104, 320, 320),
        (2, 26, 38, 64, 1280),
        (1, 5, 3, 64, 64),
        (1, 128, 128, 512, 512),
        (1, 100, 256, 256, 128),
    ],
)


@of_pictures
@torch.inference_mode()
def test_convolutions_are_those_of_the_reference(rows: int, height: int, width: int, channels: int, n: int) -> None:
    torch.manual_seed(width)
    given = small(rows, height, width, channels), small(n, 9 * channels), torch.randn(n, device=GPU).bfloat16()
    scales = torch.tensor((9 * channels) ** -0.5, device=GPU), torch.tensor(1.0, device=GPU)
    ours = fp8.conv(*given, *scales)
    reference = fp8.conv_reference(given[0], given[1], given[2].float(), *scales)
    assert ours.dtype == torch.bfloat16
    assert error(ours, reference) < 0.01
    assert torch.equal(ours, fp8.conv(*given, *scales))


@of_pictures
@torch.inference_mode()
def test_convolutions_in_16_bits_are_rounded_once_and_the_same_alone(
    rows: int, height: int, width: int, channels: int, n: int
) -> None:
    torch.manual_seed(width)
    x = torch.randn(rows, height, width, channels, device=GPU).bfloat16()
    weight = (torch.randn(n, 9 * channels, device=GPU) * (9 * channels) ** -0.5).bfloat16()
    bias = torch.randn(n, device=GPU).bfloat16()
    ours = half.conv(x, weight, bias)
    exact = half.conv_reference(x.float(), weight, bias)  # TF32, if it is used, rounds no bfloat16
    assert error(ours, exact) < 1.1 * error(exact.bfloat16(), exact)
    assert torch.equal(ours[-1:], half.conv(x[-1:].clone(), weight, bias))


@torch.inference_mode()
def test_a_tiles_columns_change_no_bit() -> None:
    from serve_app.replica.kernels.conv import CHOICES, conv  # it needs Triton

    given = small(1, 20, 40, 128), small(320, 9 * 128), torch.randn(320, device=GPU).bfloat16()
    scales = torch.tensor(0.01, device=GPU), torch.tensor(1.0, device=GPU)
    half_given = given[0].bfloat16(), given[1].bfloat16(), given[2]
    for columns in CHOICES:
        assert torch.equal(conv(*given, scales, columns), fp8.conv(*given, *scales))
        assert torch.equal(conv(*half_given, columns=columns), half.conv(*half_given))


@pytest.mark.parametrize(
    ("rows", "queries", "width", "keys"), [(1, 1024, 1280, 77), (2, 4096, 640, 77), (3, 100, 64, 128)]
)
@torch.inference_mode()
def test_attention_to_a_prompt_is_that_of_the_reference(rows: int, queries: int, width: int, keys: int) -> None:
    torch.manual_seed(queries)
    query = torch.randn(rows, queries, width, device=GPU).bfloat16()
    context = torch.randn(rows, keys, 6 * width, device=GPU).bfloat16()[..., width : 3 * width]
    factor = torch.tensor(100.0, device=GPU)
    exact = half.attend_reference(query.float(), context.float())
    assert error(half.attend(query, context), exact) < 0.004
    assert error(half.attend(query, context, factor).float() / 100, exact) < 0.04
    assert torch.equal(half.attend(query, context)[-1:], half.attend(query[-1:].clone(), context[-1:]))


@torch.inference_mode()
def test_the_unet_predicts_nearly_the_same(tiny_path: Path) -> None:
    model = ModelConfig(path=str(tiny_path), dtype="bfloat16", width=64, height=64)
    plain, ours = load_checkpoint(model, GPU), load_checkpoint(model, GPU)
    to_fp8(ours, model, fewest_features=16)
    assert any(isinstance(module, Fp8Conv) for module in ours.unet.modules())
    predictions = [Denoiser(one, eager(one.unet)).predict([trajectory(one, make_slot())])[0] for one in (plain, ours)]
    assert error(*predictions) < 0.15


@torch.inference_mode()
def test_the_unet_with_our_kernels_predicts_nearly_the_same(tiny_path: Path) -> None:
    model = ModelConfig(path=str(tiny_path), dtype="bfloat16", width=64, height=64)
    plain, ours = load_checkpoint(model, GPU), load_checkpoint(model, GPU)
    assert use_kernels(ours.unet) > 2
    predictions = [Denoiser(one, eager(one.unet)).predict([trajectory(one, make_slot())])[0] for one in (plain, ours)]
    assert error(*predictions) < 0.05
