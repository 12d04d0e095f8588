"""Where a checkpoint and its parts lie on this machine; what is named by a hub id is fetched first."""

from pathlib import Path

from diffusers import StableDiffusionXLPipeline
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from serve_app.config import ModelConfig
from serve_app.errors import CheckpointError
from serve_app.models import EMBEDDED, embedded_path

_PART_FILES = ["config.json", "diffusion_pytorch_model*.safetensors"]


def local_path(config: ModelConfig) -> Path:
    """Return where the checkpoint lies on this machine, fetching a hub id first."""
    if config.path == EMBEDDED:
        return embedded_path()
    if Path(config.path).exists():
        return Path(config.path)
    return Path(StableDiffusionXLPipeline.download(config.path, revision=config.revision, variant=config.variant, use_safetensors=True))


def part_path(path: Path, config: ModelConfig, setting: str, name: str) -> Path:
    """Return the folder of a model's part that `model.<setting>` names: a subfolder of the checkpoint, a local folder or a hub id, fetched first."""
    for folder in (root(path, config) / name, Path(name)):
        if folder.is_dir():
            return folder
    try:
        return Path(snapshot_download(name, allow_patterns=_PART_FILES))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise CheckpointError(
            f"model.{setting}: {name} is neither a subfolder of the checkpoint, nor a folder here, nor a hub id that was found"
        ) from error


def root(path: Path, config: ModelConfig) -> Path:
    return Path(config.config_path) if path.is_file() and config.config_path else path


def model_name(path: Path, config: ModelConfig) -> str:
    if path.is_file():
        return path.stem
    return path.name if config.path == EMBEDDED else Path(config.path).name  # a hub id lies in a folder named by its commit


def model_revision(path: Path, config: ModelConfig) -> str | None:
    # The hub's cache names its snapshot folders by commit, which is truer than a branch name.
    snapshot = path.parent if path.is_file() else path
    return snapshot.name if snapshot.parent.name == "snapshots" else config.revision
