"""`python -m benchmarks.make_checkpoint FOLDER`: write SDXL base 1.0 with random weights, as a diffusers folder.

It has the full size. Speed does not depend on trained weights, so it replaces the real checkpoint on machines without
access to the hub. The architecture is that in `serve_app/models/sdxl/`; the weights are the libraries' default
initialisation, which keeps activations finite. Files have the names and types of the hub's `fp16` variant, which
`configs/sdxl.yaml` uses.
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from serve_app.models import PREVIEW_FOLDER, sdxl_path, tiny
from serve_app.models.clip import clip_tokenizer

VARIANT = "fp16"
_DTYPE = torch.float16
_CONFIGS = {"scheduler": "scheduler_config.json"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write SDXL with random weights as a diffusers folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true", help="a float32 model for tests, of a few hundred kilobytes")
    options = parser.parse_args()
    started = time.perf_counter()
    folder = tiny.build(options.folder) if options.tiny else make(options.folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size / 1e9:.2f} GB in {time.perf_counter() - started:.1f} s")


def make(folder: Path) -> Path:
    """Write the checkpoint into `folder` and return the folder. Uses a GPU if there is one."""
    with _on("cuda" if torch.cuda.is_available() else "cpu"):
        pipe = StableDiffusionXLPipeline(
            vae=AutoencoderKL.from_config(architecture("vae")),
            text_encoder=CLIPTextModel(CLIPTextConfig(**architecture("text_encoder"))),
            text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**architecture("text_encoder_2"))),
            tokenizer=clip_tokenizer("tokenizer"),
            tokenizer_2=clip_tokenizer("tokenizer_2"),
            unet=UNet2DConditionModel.from_config(architecture("unet")),
            scheduler=EulerDiscreteScheduler.from_config(architecture("scheduler")),
            add_watermarker=False,
        )
        preview_vae = AutoencoderTiny.from_config(architecture("preview_vae"))
    pipe.save_pretrained(folder, variant=VARIANT, safe_serialization=True)
    preview_vae.save_pretrained(folder / PREVIEW_FOLDER, safe_serialization=True)
    return folder


def architecture(component: str) -> dict[str, Any]:
    """Return the published configuration of a component."""
    own = Path(__file__).with_name("taesdxl.json")
    file = own if component == "preview_vae" else sdxl_path() / component / _CONFIGS.get(component, "config.json")
    return {k: v for k, v in json.loads(file.read_text()).items() if k != "_class_name"}


@contextmanager
def _on(device: str) -> Iterator[None]:
    """Create modules on `device`, in the files' precision, with the same weights every time."""
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(_DTYPE)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


if __name__ == "__main__":
    main()
