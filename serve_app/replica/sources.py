"""Finds the files of a checkpoint and its parts on this machine."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from serve_app.config import ModelConfig
from serve_app.errors import CheckpointError
from serve_app.models import EMBEDDED, PREVIEW_FOLDER, embedded_path, sdxl_path
from serve_app.replica.architecture import unet_config
from serve_app.replica.headers import Header, read_header
from serve_app.replica.hub import fetch_checkpoint, fetch_configs, fetch_part, is_hub_id
from serve_app.replica.markers import Markers, read_markers
from serve_app.replica.model_kind import PART_NAMES, PART_WORDS, SUPPORTED, PartName, check_header
from serve_app.replica.paths import is_there, user_path

TOKENIZERS: Mapping[str, PartName] = {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2"}
"""The folders of the tokenizers, and the text encoders they belong to."""

_PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_TINY = "AutoencoderTiny"


@dataclass(frozen=True, slots=True)
class Part:
    """A model: its weights, its config, and the setting (without `model.`) that selected it.

    In a folder, files have the names that the libraries give them, including `variant`. A single file may have any name
    and uses the keys of the original code; its `config` comes from another folder, and is empty if there is none.
    """

    setting: str
    folder: Path
    config: Mapping[str, Any]
    files: Sequence[Path]
    variant: str | None = None
    single: bool = False
    words: str = ""
    """Which model it is, for a file that holds several."""

    @property
    def where(self) -> str:
        """The file or folder to name in an error, and which model in it."""
        place = str(self.files[0] if self.single else self.folder)
        return f"{place} ({self.words})" if self.words else place

    def fault(self, words: str) -> CheckpointError:
        """Return an error about this part, for the caller to raise."""
        return CheckpointError(f"model.{self.setting}: {self.where} {words}")


@dataclass(frozen=True, slots=True)
class Sources:
    """Everything a checkpoint is loaded from. `root` is the diffusers folder with the configs and tokenizers."""

    path: Path
    root: Path
    root_setting: str
    parts: Mapping[PartName, Part]
    preview: Part | None
    header: Header | None = None
    """The header of a single file; None for a folder."""
    markers: Markers = field(default_factory=Markers)
    """What a single file says about how it is sampled."""
    usual: bool = False
    """Whether a single file uses SDXL's own configs, which ship with the package: pictures depend only on the file."""

    @property
    def models(self) -> Sequence[Part]:
        """All models to load, the preview VAE last."""
        return [*self.parts.values(), *([self.preview] if self.preview else [])]

    @property
    def scheduler_config(self) -> dict[str, Any]:
        """The checkpoint's own scheduler config: the file's, or that in the root. Raises CheckpointError."""
        return dict(self.markers.scheduler or self.read("scheduler/scheduler_config.json"))

    @property
    def scheduler_class(self) -> str | None:
        """The name of the class of the checkpoint's own scheduler. Raises CheckpointError."""
        if self.markers.scheduler:
            return str(self.markers.scheduler["_class_name"])
        return component_class(self.read("model_index.json"), "scheduler")

    def fault(self, words: str, name: str = "") -> CheckpointError:
        """Return an error about the root, or about a file or folder in it, for the caller to raise."""
        return CheckpointError(f"model.{self.root_setting}: {self.root / name} {words}")

    def read(self, name: str) -> dict[str, Any]:
        """Return a JSON file of the root. Raises CheckpointError."""
        return read_json(self.root_setting, self.root / name)


def find_sources(config: ModelConfig) -> Sources:
    """Return the files of everything that `config` names; fetch hub ids. Raises CheckpointError."""
    path = local_path(config)
    header = read_header("path", path) if path.is_file() else None
    markers = Markers()
    if header is not None:
        check_header(path, header, other_vae=config.vae_path is not None)
        markers = read_markers(path)
    root, setting = (path, "path") if header is None else (_configs(config.config_path), "config_path")
    if not (root / "model_index.json").is_file():
        raise CheckpointError(f"model.{setting}: {root} {_not_a_checkpoint(root)}")
    index = read_json(setting, root / "model_index.json")
    names = [
        name
        for name in PART_NAMES
        if index.get(name) not in (None, [None, None]) and not (name == "vae" and config.vae_path)
    ]
    if header is None:
        parts = _folder_parts(root, names, config.variant)
    else:
        parts = {
            name: Part(
                "path",
                root / name,
                read_json(setting, root / name / "config.json"),
                [path],
                single=True,
                words=PART_WORDS[name],
            )
            for name in names
        }
        if "unet" in parts:
            parts["unet"] = replace(parts["unet"], config=unet_config(header, parts["unet"].config))
        if "vae" in parts:
            parts["vae"] = replace(parts["vae"], config={**parts["vae"].config, **markers.vae})
    if config.vae_path:
        vae = _named_part("vae_path", config.vae_path, root)
        # diffusers would treat a separate VAE as that of Stable Diffusion 1, whose latents have another scale.
        usual_vae = {} if vae.config else read_json("vae_path", root / "vae" / "config.json")
        parts["vae"] = replace(vae, config={**usual_vae, **vae.config, **markers.vae})
    usual = header is not None and config.config_path is None
    return Sources(path, root, setting, parts, _preview(config, root), header, markers, usual)


def component_class(index: Mapping[str, Any], component: str) -> str | None:
    """Return the name of a component's class from a checkpoint's index."""
    match index.get(component):
        case [str(), str(found)]:
            return found
    return None


def local_path(config: ModelConfig) -> Path:
    """Return the checkpoint's path on this machine; fetch a hub id. Raises CheckpointError."""
    return path_here(config) or fetch_checkpoint(config.path, config.revision, config.variant)


def path_here(config: ModelConfig) -> Path | None:
    """Return the checkpoint's path if it is on this machine, None for a hub id. Raises CheckpointError for neither."""
    if config.path == EMBEDDED:
        return embedded_path()
    path = user_path(config.path)
    if is_there("path", path):
        return path
    if not is_hub_id(config.path):
        raise CheckpointError(
            f"model.path: there is no file or folder {config.path}, and a hub id has the form owner/name"
        )
    return None


def model_name(path: Path, config: ModelConfig) -> str:
    """Return the name of a checkpoint whose settings give it none."""
    if path.is_file():
        return path.stem
    # Not `path`: the folder of a hub id is named by its commit.
    return path.name if config.path == EMBEDDED else Path(config.path).name


def model_revision(path: Path, config: ModelConfig) -> str | None:
    """Return the commit of a checkpoint from the hub, or the revision in its settings."""
    # The hub's cache names its snapshot folders by commit, which is more exact than a branch name.
    snapshot = path.parent if path.is_file() else path
    return snapshot.name if snapshot.parent.name == "snapshots" else config.revision


def read_json(setting: str, file: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises CheckpointError."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"model.{setting}: {file} is missing or not JSON") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"model.{setting}: {file} does not hold a JSON object")
    return content


def _not_a_checkpoint(folder: Path) -> str:
    if (folder / "config.json").is_file():
        return f"is a {read_json('path', folder / 'config.json').get('_class_name', 'model')} alone; {SUPPORTED}"
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    advice = f"; to serve a single file, name it, such as {folder / files[0]}" if files else ""
    return f"is not a diffusers folder, it has no model_index.json{advice}"


def _configs(name: str | None) -> Path:
    """Return the diffusers folder with the configs and tokenizers of a single file; by default those of SDXL."""
    if name is None:
        return sdxl_path()
    folder = user_path(name)
    if is_there("config_path", folder) and folder.is_dir():
        return folder
    if not is_hub_id(name):
        raise CheckpointError(f"model.config_path: {name} is not a folder here, and a hub id has the form owner/name")
    return fetch_configs(name)


def _folder_parts(root: Path, names: Sequence[PartName], variant: str | None) -> dict[PartName, Part]:
    parts = {name: _folder_part("path", root / name, variant) for name in names}
    if variant and not any(part.variant for part in parts.values()):
        raise CheckpointError(
            f"model.variant: {root} has no weights of the variant {variant}; leave it out, or name another"
        )
    return parts


def _folder_part(setting: str, folder: Path, variant: str | None = None) -> Part:
    """Return a model in a folder. Parts without weights of the variant use those without a variant, as in diffusers."""
    config = read_json(setting, folder / "config.json")
    for known in (variant, None) if variant else (None,):
        if files := _weight_files(setting, folder, known):
            return Part(setting, folder, config, files, known)
    raise CheckpointError(f"model.{setting}: {folder} {_no_weights(folder)}")


def _weight_files(setting: str, folder: Path, variant: str | None) -> Sequence[Path]:
    """Return the files of a model's weights, empty if there are none. The first name that the libraries know counts."""
    middle = f".{variant}" if variant else ""
    shards = "model.safetensors.index" + middle + ".json"
    # diffusers looks for the index first, transformers for the single file.
    for name in (
        f"diffusion_pytorch_{shards}",
        f"diffusion_pytorch_model{middle}.safetensors",
        f"model{middle}.safetensors",
        shards,
    ):
        file = folder / name
        if file.is_file():
            if file.suffix == ".safetensors":
                return [file]
            shard_names = set(read_json(setting, file).get("weight_map", {}).values())
            missing = [shard for shard in sorted(shard_names) if not (folder / shard).is_file()]
            if missing:
                raise CheckpointError(f"model.{setting}: {folder} lacks {missing[0]}, which {name} lists")
            return [folder / shard for shard in sorted(shard_names)]
    return []


def _no_weights(folder: Path) -> str:
    found = sorted(folder.glob("*.safetensors"))
    # diffusion_pytorch_model.fp16.safetensors, model.fp16-00001-of-00002.safetensors
    variants = [
        match[1]
        for file in found
        if (match := re.fullmatch(r"(?:diffusion_pytorch_)?model\.(\w+)(?:-\d+-of-\d+)?\.safetensors", file.name))
    ]
    if variants:
        return f"has only weights of the variant {variants[0]}; set model.variant: {variants[0]}"
    if any(file.suffix in _PICKLES for file in folder.iterdir()):
        return "has only pickled weights, which are never loaded; convert them to .safetensors"
    return "has no weights that diffusers would find"


def _named_part(setting: str, name: str, root: Path) -> Part:
    """Return a model that has its own setting: a subfolder of the checkpoint, a local folder or file, or a hub id."""
    for place in (root / name, user_path(name)):
        if not is_there(setting, place):
            continue
        if place.is_dir():
            return _alone(setting, place)
        if place.is_file():
            config = _config_beside(setting, place)
            return Part(setting, place.parent, config, [place], single=True)
    if not is_hub_id(name):
        raise CheckpointError(
            f"model.{setting}: {name} is neither a subfolder of the checkpoint, nor a folder or file here, "
            "nor a hub id (owner/name)"
        )
    return _alone(setting, fetch_part(setting, name))


def _alone(setting: str, folder: Path) -> Part:
    """Return a model from its own folder. People often name the folder of the whole checkpoint instead."""
    if not (folder / "config.json").is_file():
        inside = folder / ("vae" if setting == "vae_path" else PREVIEW_FOLDER)
        advice = f"; name {inside}" if inside.is_dir() else ""
        raise CheckpointError(f"model.{setting}: {folder} is not a model's own folder, it has no config.json{advice}")
    return _folder_part(setting, folder)


def _config_beside(setting: str, file: Path) -> Mapping[str, Any]:
    """Return the config next to a single file, as on the hub, if it is for this kind of model; otherwise empty."""
    beside = file.with_name("config.json")
    config = read_json(setting, beside) if beside.is_file() else {}
    return config if config.get("_class_name") in (("AutoencoderKL",) if setting == "vae_path" else (_TINY,)) else {}


def _preview(config: ModelConfig, root: Path) -> Part | None:
    if config.preview_path:
        return _named_part("preview_path", config.preview_path, root)
    folder = root / PREVIEW_FOLDER
    return _folder_part("path", folder) if folder.is_dir() else None
