"""The config of all stages: `config.yaml`, and `--set stage.key=value` to change it for one run."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

DEFAULT_CONFIG = Path(__file__).with_name("config.yaml")


@dataclass(frozen=True, slots=True)
class DataConfig:
    icons: Path
    pictures: Path
    mascot: Path
    vocabulary: Path
    min_styles: int
    sides: Mapping[int, Sequence[int]]
    jitter: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class StageConfig:
    """The settings of every training loop."""

    batch: int
    lr: float
    warmup: int
    decay_from: float
    ema: float
    weight_decay: float


@dataclass(frozen=True, slots=True)
class VaeConfig(StageConfig):
    crop: int
    gradient_weight: float
    square_weight: float
    kl_weight: float
    freeze_encoder: bool
    latent_noise: float
    model: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TinyConfig(StageConfig):
    crop: int
    gradient_weight: float
    width: int


@dataclass(frozen=True, slots=True)
class UnetConfig(StageConfig):
    small_batch: int
    small_every: int
    rounds: int
    small_rounds: int
    encode_batch: int
    wordings: int
    drop_caption: float
    odd_size: float
    compile: bool
    model: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TextConfig:
    width: int
    layers: int
    layers_2: int
    heads: int


@dataclass(frozen=True, slots=True)
class ClassifierConfig(StageConfig):
    width: int


@dataclass(frozen=True, slots=True)
class LoraConfig(StageConfig):
    name: str
    model: Path
    rank: int
    text_rank: int
    rounds: int
    kept: float
    drop_caption: float


@dataclass(frozen=True, slots=True)
class Config:
    """The content of the config file. `schedule` is passed to diffusers' schedulers unchanged."""

    seed: int
    minutes: float
    checkpoint_minutes: float
    log_every: int
    grid_seeds: int
    data: DataConfig
    vae: VaeConfig
    tiny: TinyConfig
    unet: UnetConfig
    text: TextConfig
    schedule: Mapping[str, Any]
    classifier: ClassifierConfig
    lora: LoraConfig


def load_config(path: Path = DEFAULT_CONFIG, changes: Sequence[str] = ()) -> Config:
    """Return the config in `path` with `changes` ("unet.batch=8") applied. Raises KeyError for an unknown key."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    for change in changes:
        name, _, value = change.partition("=")
        *parents, key = name.split(".")
        target = values
        for parent in parents:
            target = target[parent]
        if key not in target:
            raise KeyError(f"{name}: no such setting")
        target[key] = yaml.safe_load(value)
    config: Config = _build(Config, values)
    return config


def _build(cls: Any, values: Mapping[str, Any]) -> Any:
    hints = get_type_hints(cls)
    unknown = set(values) - {f.name for f in fields(cls)}
    if unknown:
        raise KeyError(f"{cls.__name__}: no such settings: {', '.join(sorted(unknown))}")
    return cls(**{key: _convert(hints[key], value) for key, value in values.items()})


def _convert(hint: Any, value: Any) -> Any:
    if is_dataclass(hint):
        return _build(hint, value)
    return hint(value) if hint in (Path, float, int) else value


def stage_arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser with the arguments of every stage."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG)
    parser.add_argument(
        "--set", dest="changes", action="append", default=[], metavar="KEY=VALUE", help="change one value of the config"
    )
    parser.add_argument("--out", type=Path, default=Path("out/weights"), help="the folder of weights, read and written")
    return parser
