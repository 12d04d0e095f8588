"""The model that comes with the package."""

import os
from pathlib import Path

EMBEDDED = "embedded"
"""What `model.path` says for it."""

PREVIEW_FOLDER = "preview_vae"
"""The subfolder of a checkpoint that holds its AutoencoderTiny, where it brings one along."""


def embedded_path() -> Path:
    """Return the folder of the embedded model: a tiny SDXL with random weights, built on first use."""
    from serve_app.models.tiny import build  # torch is needed only where the model is

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "parallel-sdxl"
    return build(cache)
