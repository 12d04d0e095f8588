"""`python -m benchmarks.make_checkpoint FOLDER`: write SDXL base 1.0 with random weights, as a diffusers folder.

It has the full size. Speed does not depend on trained weights, so it replaces the real checkpoint on machines without
access to the hub. The architecture is in `benchmarks/sdxl/`; the weights are the libraries' default initialisation,
which keeps activations finite. Files have the names and types of the hub's `fp16` variant, which `configs/sdxl.yaml`
uses.
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
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from serve_app.models import PREVIEW_FOLDER, tiny
from training.vocabulary import END, START, byte_letters

ARCHITECTURE = Path(__file__).parent / "sdxl"
VARIANT = "fp16"
_DTYPE = torch.float16
_TOKENS = 77


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
            tokenizer=make_tokenizer(folder / "vocabulary", pad_token=END),
            tokenizer_2=make_tokenizer(folder / "vocabulary", pad_token="!"),
            unet=UNet2DConditionModel.from_config(architecture("unet")),
            scheduler=EulerDiscreteScheduler.from_config(architecture("scheduler")),
            add_watermarker=False,
        )
        preview_vae = AutoencoderTiny.from_config(architecture("preview_vae"))
    pipe.save_pretrained(folder, variant=VARIANT, safe_serialization=True)
    preview_vae.save_pretrained(folder / PREVIEW_FOLDER, safe_serialization=True)
    for file in (folder / "vocabulary").iterdir():
        file.unlink()
    (folder / "vocabulary").rmdir()
    return folder


def architecture(component: str) -> dict[str, Any]:
    """Return the published configuration of a component."""
    return {k: v for k, v in json.loads((ARCHITECTURE / f"{component}.json").read_text()).items() if k != "_class_name"}


def make_tokenizer(folder: Path, pad_token: str) -> CLIPTokenizer:
    """Return a CLIP tokenizer with the size of CLIP's vocabulary, but one token per letter.

    CLIP's own merges are not available offline. Calls cost the same without them: prompts are always padded to 77
    tokens.
    """
    letters = byte_letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    size = architecture("text_encoder")["vocab_size"]
    # The text encoders find the end of a prompt by its id, which must be the highest.
    tokens += [*(f"<|{i}|>" for i in range(size - len(tokens) - 2)), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(
        json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False), encoding="utf-8"
    )
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token=pad_token, model_max_length=_TOKENS
    )


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
