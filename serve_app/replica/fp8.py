"""A linear layer in 8-bit floats."""

import torch
from torch import nn

_FP8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(_FP8).max


class Fp8Linear(nn.Module):
    """A linear layer whose weight and input are 8-bit floats, each with one scale.

    Sums, bias and output keep their type. `pristine` is the weight before, if it was kept.
    """

    def __init__(self, linear: nn.Linear, peak: torch.Tensor, keep: bool = False) -> None:
        """Take a layer and the largest absolute value of its inputs."""
        super().__init__()
        weight = linear.weight.float()
        self.weight_scale = nn.Buffer(_scale(weight))
        self.input_scale = nn.Buffer(peak.float().clamp(min=1e-12) / _LARGEST)
        self.input_factor = nn.Buffer(1 / self.input_scale)  # GPUs divide slowly
        self.weight = nn.Buffer((weight / self.weight_scale).to(_FP8))
        self.bias = linear.bias
        self.pristine = linear.weight.detach() if keep else None

    def take(self, weight: torch.Tensor) -> None:
        """Quantize another weight, in its place in memory."""
        self.weight_scale.copy_(_scale(weight.float()))
        self.weight.copy_((weight.float() / self.weight_scale).to(_FP8))

    def own_weight(self) -> None:
        """Stop sharing the weight with another layer."""
        self.weight_scale = nn.Buffer(self.weight_scale.clone())
        self.weight = nn.Buffer(self.weight.clone())

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        scaled = (value.float() * self.input_factor).clamp(-_LARGEST, _LARGEST).to(_FP8)
        product: torch.Tensor = torch._scaled_mm(
            scaled.reshape(-1, scaled.shape[-1]),
            self.weight.t(),
            scale_a=self.input_scale,
            scale_b=self.weight_scale,
            bias=self.bias,
            out_dtype=value.dtype,
            use_fast_accum=True,
        )
        return product.reshape(*value.shape[:-1], -1)


def _scale(weight: torch.Tensor) -> torch.Tensor:
    return weight.abs().amax() / _LARGEST
