"""Reads what single files say about sampling in ways that diffusers ignores."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

from serve_app.errors import CheckpointError

# Empty tensors: only their presence counts.
_MARKERS: Mapping[str, Mapping[str, Any]] = {
    "v_pred": {"prediction_type": "v_prediction"},
    "ztsnr": {"rescale_betas_zero_snr": True},
}
# Metadata of kohya's trainers; the value is a Python bool.
_NOTES: Mapping[str, Mapping[str, Any]] = {
    "ss_v_parameterization": _MARKERS["v_pred"],
    "ss_zero_terminal_snr": _MARKERS["ztsnr"],
}
# https://github.com/Stability-AI/ModelSpec
_SPEC_KEY = "modelspec.prediction_type"
_SPEC_WORDS = {
    "v": "v_prediction",
    "v_pred": "v_prediction",
    "v_prediction": "v_prediction",
    "eps": "epsilon",
    "epsilon": "epsilon",
}
# Tensors of models with EDM's continuous noise levels: Playground v2.5 has the statistics of its latents, CosXL levels.
_MEAN, _STD = "edm_mean", "edm_std"
_LEVELS = {"edm_vpred.sigma_max": "sigma_max", "edm_vpred.sigma_min": "sigma_min"}
_PLAYGROUND = {"_class_name": "EDMDPMSolverMultistepScheduler", "prediction_type": "epsilon", "sigma_data": 0.5}
_PLAYGROUND_SCALE = 0.5
_CHANNELS = 4
_COSXL = {
    "_class_name": "EDMEulerScheduler",
    "prediction_type": "v_prediction",
    "sigma_schedule": "exponential",
    "sigma_data": 1.0,
    "sigma_max": 120.0,
    "sigma_min": 0.002,
}


@dataclass(frozen=True, slots=True)
class Markers:
    """What a single file says: changes of the scheduler's config, a scheduler's whole config, changes of the VAE's."""

    sampling: Mapping[str, Any] = field(default_factory=dict)
    scheduler: Mapping[str, Any] | None = None
    vae: Mapping[str, Any] = field(default_factory=dict)


def read_markers(file: Path) -> Markers:
    """Return what a single file says of its sampling and the scale of its latents. Raises CheckpointError."""
    with safe_open(file, "pt") as content:
        keys = set(content.keys())

        def numbers(key: str, count: int) -> list[float]:
            values: list[float] = content.get_tensor(key).float().flatten().tolist() if key in keys else []
            if len(values) != count:
                raise CheckpointError(f"model.path: {file} is an EDM model, but {key} in it has not {count} numbers")
            return values

        if levels := _LEVELS.keys() & keys:
            return Markers(scheduler={**_COSXL, **{_LEVELS[key]: numbers(key, 1)[0] for key in levels}})
        if {_MEAN, _STD} & keys:
            latents = {"latents_mean": numbers(_MEAN, _CHANNELS), "latents_std": numbers(_STD, _CHANNELS)}
            return Markers(scheduler=_PLAYGROUND, vae={**latents, "scaling_factor": _PLAYGROUND_SCALE})
        return Markers(marked(keys, content.metadata() or {}))


def marked(keys: Collection[str], metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return what a file's keys and metadata say about its scheduler config.

    An unknown prediction type is returned unchanged: `sampling.effective_config` refuses it, unless
    `model.prediction_type` overrides it.
    """
    config = _spec(metadata.get(_SPEC_KEY, ""))
    for note, says in _NOTES.items():
        config |= says if _plain(metadata.get(note, "")) in ("true", "1") else {}
    for marker, says in _MARKERS.items():
        config |= says if marker in keys else {}
    return config


def _spec(word: str) -> dict[str, Any]:
    prediction = _SPEC_WORDS.get(_plain(word).replace("-", "_").replace(" ", "_"), " ".join(word.split()))
    # Trainers write `epsilon` by default, so it does not override the scheduler config.
    return {} if prediction in ("", "epsilon") else {"prediction_type": prediction}


def _plain(word: str) -> str:
    return word.strip().lower()
