"""The model that comes with the package."""

from pathlib import Path

EMBEDDED = "embedded"
"""What `model.path` says for it."""

PREVIEW_FOLDER = "preview_vae"
"""The subfolder of a checkpoint that holds its AutoencoderTiny, where it brings one along."""


def embedded_path() -> Path:
    """Return the folder of the embedded model: a small SDXL of our own that generates emoji-like pictures."""
    return Path(__file__).parent / "emoji-sdxl"
