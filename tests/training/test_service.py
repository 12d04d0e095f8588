"""In which precisions the model is judged."""

from pathlib import Path

import torch

from serve_app.config import ModelConfig
from serve_app.replica.fp8 import Fp8Conv, Fp8Linear
from training.service import Precision, load_in


def test_fp8_replaces_linear_layers_and_convolutions_whatever_their_width(tiny_path: Path) -> None:
    torch.set_num_threads(1)
    model = ModelConfig(path=str(tiny_path), width=64, height=64)
    unet = load_in(Precision.FP8, model, torch.device("cpu")).unet
    assert {Fp8Conv, Fp8Linear} <= {type(module) for module in unet.modules()}
    assert unet.dtype == torch.bfloat16
