"""The tiny model with SDXL's arrangement of blocks, and its weights' shapes."""

from collections.abc import Mapping

import pytest
from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn

from serve_app.replica.lora import Shapes

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")


@pytest.fixture(scope="session")
def models(pipe: StableDiffusionXLPipeline) -> Mapping[str, nn.Module]:
    return {name: getattr(pipe, name) for name in COMPONENTS}


@pytest.fixture(scope="session")
def shapes(models: Mapping[str, nn.Module]) -> Shapes:
    return {
        component: {
            name: layer.weight.shape
            for name, layer in model.named_modules()
            if isinstance(getattr(layer, "weight", None), Tensor)
        }
        for component, model in models.items()
    }
