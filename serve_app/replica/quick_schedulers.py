"""Some of diffusers' schedulers whose own classes would take long: to be made, or to be imported."""

from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteSchedulerOutput

_ORDER = 4
"""Of the linear multistep method, as diffusers' pipelines take it."""

# The type checker does not follow diffusers: it knows neither these bases nor what a mixin of them calls.


class _MadeQuickly:
    """Leaves out the schedule of all timesteps that the constructor computes and nobody uses: it takes up to 0.2 s.

    These classes give NumPy's functions tensors, which is deprecated; arrays have the same timesteps.
    """

    def set_timesteps(self, steps: int | None = None, device: str | None = None, *args: Any, **options: Any) -> None:
        if device is None:  # so only the constructor calls it
            self.sigmas = torch.empty(0)
        else:
            super().set_timesteps(steps, device, *args, **options)  # type: ignore[misc]

    def _sigma_to_t(self, sigma: Any, log_sigmas: Any) -> Any:
        return super()._sigma_to_t(np.asarray(sigma), np.asarray(log_sigmas))  # type: ignore[misc]


class HeunDiscreteScheduler(_MadeQuickly, diffusers.HeunDiscreteScheduler): ...  # type: ignore[misc]


class KDPM2DiscreteScheduler(_MadeQuickly, diffusers.KDPM2DiscreteScheduler): ...  # type: ignore[misc]


class KDPM2AncestralDiscreteScheduler(_MadeQuickly, diffusers.KDPM2AncestralDiscreteScheduler): ...  # type: ignore[misc]


class LMSDiscreteScheduler(diffusers.EulerDiscreteScheduler):  # type: ignore[misc]
    """The linear multistep method: takes Euler's derivatives of up to four steps together.

    diffusers has it only beside scipy, which takes a second of each start.
    """

    def set_timesteps(self, *args: Any, **options: Any) -> None:
        super().set_timesteps(*args, **options)
        self._derivatives: list[torch.Tensor] = []

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor) -> EulerDiscreteSchedulerOutput:
        output = super().step(model_output, timestep, sample)
        step = self.step_index - 1
        derivative = (sample - output.pred_original_sample) / self.sigmas[step]
        self._derivatives = [derivative, *self._derivatives][:_ORDER]
        weights = _weights(self.sigmas.double().numpy(), step, len(self._derivatives))
        change = sum(weight * each for weight, each in zip(weights, self._derivatives, strict=True))
        return EulerDiscreteSchedulerOutput(sample + change, output.pred_original_sample)


def _weights(sigmas: np.ndarray, step: int, order: int) -> list[float]:
    """Return how much each of the last derivatives counts, the newest first.

    They are the integrals over the step of the polynomials that are 1 at the level of one and 0 at those of the others.
    """
    levels = sigmas[step - order + 1 : step + 1][::-1]
    weights = []
    for level in levels:
        others = np.poly1d(levels[levels != level], r=True)
        integral = (others / others(level)).integ()
        weights.append(float(integral(sigmas[step + 1]) - integral(sigmas[step])))
    return weights
