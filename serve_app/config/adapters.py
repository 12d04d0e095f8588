"""Settings of adapters: what requests can add to the served model."""

from pathlib import Path

from pydantic import Field

from serve_app.config.base import Config
from serve_app.models import EMBEDDED, embedded_adapters_path
from serve_app.setting_types import PathOrEmbedded


class AdaptersConfig(Config):
    """LoRAs and embeddings that requests may name."""

    path: PathOrEmbedded | None = Field(
        default=None,
        description="Absolute path of the folder of adapters, `.safetensors` files, the same on all nodes; new files "
        "are found without a restart. `embedded`: those that ship with the embedded model. Null: none are served.",
    )
    max_per_request: int = Field(default=4, ge=1, le=16, description="How many LoRAs a request may name.")
    resident_sets: int = Field(
        default=2,
        ge=1,
        description="For how many combinations of LoRAs a replica keeps weights ready, besides the model's own. Each "
        "takes as much memory as the UNet: 5.1 GB for SDXL. More that take turns are merged anew each time.",
    )
    cache_bytes: int = Field(
        default=2**31, ge=0, description="Memory for the LoRAs that a replica has read, in bytes, before it reads anew."
    )

    @property
    def folder(self) -> Path | None:
        """The folder of adapters; None if none are served."""
        if self.path == EMBEDDED:
            return embedded_adapters_path()
        return Path(self.path) if self.path else None
