"""Whether the best sketches become the best pictures: each scorer's figures of both, with the embedded model.

A scorer is good at foreseeing itself. Whether what it prefers is what a person prefers, no figure here can say.
"""

from collections.abc import Iterator, Mapping
from statistics import mean

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.conditions import Conditions
from serve_app.config import ModelConfig
from serve_app.recipe import Recipe
from serve_app.replica.checkpoint import Checkpoint, load_checkpoint, quiet_progress_bars
from serve_app.replica.decode import Decoder
from serve_app.replica.denoise import Denoiser
from serve_app.replica.previews import PreviewDecoder
from serve_app.replica.prompt_reader import PromptReader
from serve_app.replica.prompts import PromptEncoder
from serve_app.replica.scorers import OWN
from serve_app.replica.trajectory import Trajectory
from serve_app.replica.unet import eager

_PROMPTS = ("a red fox", "penguin, flat style", "a rocket on a sky blue background", "a slice of pizza")
_SEEDS, _BEST = 24, 6
_SKETCHES = (4, 6, 8, 10)
_LARGEST = 512

Scores = Mapping[str, list[list[float]]]
"""By scorer, of each seed: those of its sketches, and that of its picture."""


def probe(conditions: Conditions) -> Iterator[str]:
    quiet_progress_bars()
    checkpoint = load_checkpoint(ModelConfig(), torch.device(conditions.device))
    all_scores = [_scores(checkpoint, prompt) for prompt in _PROMPTS]
    for name in OWN:
        for place, step in enumerate(_SKETCHES):
            pairs = [np.array([(one[place], one[-1]) for one in scores[name]]) for scores in all_scores]
            shares, ranks = ([measure(pair) for pair in pairs] for measure in (_share, _rank_correlation))
            yield (
                f"{name}, after step {step}: {mean(shares):.2f} of the best {_BEST} of {_SEEDS} seeds "
                f"(least {min(shares):.2f}, by chance {_BEST / _SEEDS:.2f}), rank correlation {mean(ranks):.2f} "
                f"(least {min(ranks):.2f})"
            )


@torch.inference_mode()
def _scores(checkpoint: Checkpoint, prompt: str) -> Scores:
    """Return the scores of a prompt's seeds."""
    model, tiny = ModelConfig(), checkpoint.preview_vae
    assert tiny is not None, "the embedded model has one"
    recipe = Recipe(prompt=prompt, guidance_scale=model.guidance_scale, num_inference_steps=model.num_inference_steps)
    embeddings = PromptEncoder(checkpoint.pipe, checkpoint.device, 4).conditions(
        PromptReader(checkpoint.pipe).read(recipe)
    )
    denoiser, decoder = Denoiser(checkpoint, eager(checkpoint.unet)), Decoder(checkpoint, "none")
    previews = PreviewDecoder(checkpoint, tiny, _LARGEST, "none")
    scores: dict[str, list[list[float]]] = {name: [] for name in OWN}
    for seed in range(_SEEDS):
        trajectory, seen = Trajectory.of(recipe, seed, checkpoint, embeddings), []
        while not trajectory.done:
            trajectory.advance(denoiser.predict([trajectory])[0])
            if trajectory.step in _SKETCHES:
                seen.append(previews.decode(trajectory.clean).wait())
        seen.append(decoder.decode(trajectory.latents).wait())
        for name, scorer in OWN.items():
            scores[name].append([scorer(pixels, prompt) for pixels in seen])
    return scores


def _share(pairs: NDArray[np.float64]) -> float:
    """Return how many of the best sketches are among the best pictures."""
    sketches, pictures = ({*np.argsort(-pairs[:, column])[:_BEST].tolist()} for column in (0, 1))
    return len(sketches & pictures) / _BEST


def _rank_correlation(pairs: NDArray[np.float64]) -> float:
    ranks = pairs.argsort(axis=0).argsort(axis=0)
    return float(np.corrcoef(ranks[:, 0], ranks[:, 1])[0, 1])
