"""Schedules of noise levels that diffusers has no option for, or only beside scipy."""

from functools import lru_cache
from math import gamma
from typing import Any

import numpy as np
from diffusers.schedulers import AysSchedules

_ALPHA = 0.6
"""Of the beta distribution, for both sides: what diffusers and popular UIs take."""


def follow_beta(scheduler: Any) -> None:
    """Let a scheduler that would follow an exponential schedule follow a beta schedule.

    diffusers can, but only beside scipy, which takes a second of each start. Its schedulers take both in the same way.
    """

    def levels(in_sigmas: Any, num_inference_steps: int) -> np.ndarray:
        lowest, highest = (
            float(edge if (set_to := scheduler.config.get(name)) is None else set_to)
            for name, edge in (("sigma_min", in_sigmas[-1]), ("sigma_max", in_sigmas[0]))
        )
        return lowest + (highest - lowest) * beta_quantiles(num_inference_steps)

    scheduler._convert_to_exponential = levels


def listed_timesteps(steps: int) -> list[int]:
    """Return the timesteps of Align Your Steps for SDXL. They were published for 10 steps, between which others lie."""
    published = AysSchedules["StableDiffusionXLTimesteps"]
    places = np.linspace(0, len(published) - 1, steps)
    return [round(t) for t in np.interp(places, np.arange(len(published)), published)]


@lru_cache(maxsize=64)
def beta_quantiles(steps: int) -> np.ndarray:
    """Return the quantiles of the beta distribution (0.6, 0.6) at evenly spaced probabilities, from 1 to 0."""
    probabilities = 1 - np.linspace(0, 1, steps)
    lower = np.minimum(probabilities, 1 - probabilities)  # it is symmetric, and the series converges fast below 0.5
    low, high = np.zeros(steps), np.full(steps, 0.5)
    for _ in range(60):
        middle = (low + high) / 2
        below = _beta_cdf(middle) < lower
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    quantiles: np.ndarray = np.where(lower > 0, high, 0.0)
    quantiles[probabilities > 0.5] = 1 - quantiles[probabilities > 0.5]
    return quantiles


def _beta_cdf(x: np.ndarray) -> np.ndarray:
    """Return the distribution function of beta (0.6, 0.6) up to 0.5, by its hypergeometric series."""
    terms, total = np.ones_like(x), np.ones_like(x)
    for n in range(1, 64):
        terms = terms * x * (2 * _ALPHA + n - 1) / (_ALPHA + n)
        total += terms
    normal: float = gamma(_ALPHA) ** 2 / gamma(2 * _ALPHA)
    scaled: np.ndarray = total * (x * (1 - x)) ** _ALPHA / (_ALPHA * normal)
    return scaled
