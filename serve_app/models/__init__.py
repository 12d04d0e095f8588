"""The model that ships with the package, and its LoRAs."""

from pathlib import Path

EMBEDDED = "embedded"
"""The value of `model.path` that selects it, and of `adapters.path` that selects the LoRAs made for it."""

PREVIEW_FOLDER = "preview_vae"
"""The subfolder of a checkpoint with its AutoencoderTiny, if it has one."""


def embedded_path() -> Path:
    """Return the folder of the embedded model, a small SDXL that generates emoji-like images."""
    return Path(__file__).parent / "emoji-sdxl"


def embedded_adapters_path() -> Path:
    """Return the folder of the LoRAs that were made for the embedded model."""
    return Path(__file__).parent / "emoji-loras"


def sdxl_path() -> Path:
    """Return a diffusers folder with SDXL's configs, for single files. It has no weights, and `clip` its tokenizers."""
    return Path(__file__).parent / "sdxl"
