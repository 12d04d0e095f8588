"""Fetches what a hub id names, or finds it in the hub's cache."""

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from serve_app.errors import CheckpointError, first_line

logger = logging.getLogger("ray.serve")

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(?<!\.safetensors)(?<!\.ckpt)")
_PART_FILES = ["config.json", "diffusion_pytorch_model*.safetensors"]
_CONFIG_FILES = ["*.json", "*.txt"]
_PAUSES_S = (5.0, 15.0)
"""Before asking again. Then the start fails with the reason, which /health says; Serve tries again (`app.py`).

Together less than the 30 s after which Serve puts a reason of its own before ours: a slow start.
"""


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form of a hub id, owner/name."""
    return _HUB_ID.fullmatch(name) is not None


def fetch_checkpoint(name: str, revision: str | None, variant: str | None) -> Path:
    """Return the folder of a whole diffusers checkpoint. Raises CheckpointError."""
    from diffusers import StableDiffusionXLPipeline  # here: it takes seconds to import

    def download() -> str:
        return str(StableDiffusionXLPipeline.download(name, revision=revision, variant=variant, use_safetensors=True))

    return _fetched("path", name, download)


def fetch_part(setting: str, name: str) -> Path:
    """Return the folder of one model of a checkpoint. Raises CheckpointError."""
    return _fetched(setting, name, lambda: snapshot_download(name, allow_patterns=_PART_FILES))


def fetch_configs(name: str) -> Path:
    """Return a diffusers folder without its weights. Raises CheckpointError."""
    return _fetched("config_path", name, lambda: snapshot_download(name, allow_patterns=_CONFIG_FILES))


def _fetched(setting: str, name: str, download: Callable[[], str]) -> Path:
    for pause_s in (*_PAUSES_S, None):
        try:
            return Path(download())
        # The hub's client has a different type for each problem with the network, the id, the permissions or the disk.
        except (OSError, ValueError, HfHubHTTPError, HFValidationError, httpx2.HTTPError) as error:
            if pause_s is None or not _may_pass(error):
                raise CheckpointError(
                    f"model.{setting}: {name} is not on this machine and could not be fetched from the hub "
                    f"({first_line(error)}); offline, name a local folder"
                ) from error
            logger.warning("the hub has not given %s (%s); asking again in %g s", name, first_line(error), pause_s)
            time.sleep(pause_s)
    raise AssertionError("the last try returns or raises")


def _may_pass(error: BaseException) -> bool:
    """Return whether the hub could not be reached, or has failed itself, which may be over soon."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, httpx2.TransportError):
            return True
        if isinstance(cause, HfHubHTTPError):
            return cause.response.is_server_error or cause.response.status_code == httpx2.codes.TOO_MANY_REQUESTS
        cause = cause.__cause__ or cause.__context__
    return False
