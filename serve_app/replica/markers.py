"""Reads what single files say about sampling in ways that diffusers ignores."""

from collections.abc import Collection, Mapping
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
_EDM = ("edm_vpred.sigma_max", "edm_vpred.sigma_min", "edm_mean", "edm_std")
"""Tensors of models with EDM's continuous noise levels, such as CosXL and Playground 2.5."""


def read_markers(file: Path) -> dict[str, Any]:
    """Return what a single file says about its scheduler config. Raises CheckpointError if it is an EDM model."""
    with safe_open(file, "pt") as content:
        return marked(content.keys(), content.metadata() or {})


def marked(keys: Collection[str], metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return what a file's keys and metadata say about its scheduler config. Raises CheckpointError for an EDM model.

    An unknown prediction type is returned unchanged: `sampling.effective_config` refuses it, unless
    `model.prediction_type` overrides it.
    """
    if edm := [key for key in _EDM if key in keys]:
        raise CheckpointError(f"model.path: the file holds {edm[0]}, so it is an EDM model, which is not supported")
    config = _spec(metadata.get(_SPEC_KEY, ""))
    for note, says in _NOTES.items():
        config |= says if _plain(metadata.get(note, "")) in ("true", "1") else {}
    for marker, says in _MARKERS.items():
        config |= says if marker in keys else {}
    return config


def _spec(word: str) -> dict[str, Any]:
    prediction = _SPEC_WORDS.get(_plain(word).replace("-", "_").replace(" ", "_"), word)
    # Trainers write `epsilon` by default, so it does not override the scheduler config.
    return {} if prediction in ("", "epsilon") else {"prediction_type": prediction}


def _plain(word: str) -> str:
    return word.strip().lower()
