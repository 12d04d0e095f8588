"""Group norms for images that are laid out channels last, as GPUs are fastest with."""

import torch
from torch import nn


class ChannelsLastGroupNorm(nn.GroupNorm):
    """A group norm that sums every channel over the image before it looks at groups, and so reads neighbours in memory.

    torch's own, compiled, took 17.6 of the 37.4 ms of SDXL's VAE on an H100, where this one takes 5.9. The variance is a difference of
    sums, exact to about 1e-7 of the squares' mean: less than bfloat16 and float16 lose anyway. In the embedded model that mean is 25
    times the variance at most.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Take (rows, channels, and at least one dimension of an image); statistics are float32, whatever the input is."""
        image = tuple(range(2, input.dim()))
        mean = input.mean(image, dtype=torch.float32)
        square = torch.linalg.vector_norm(input, dim=image, dtype=torch.float32) ** 2 / input.shape[2:].numel()
        # Group by group: the spread inside the channels, and that of their means.
        inside, means = (channels.unflatten(1, (self.num_groups, -1)) for channels in ((square - mean**2).clamp(min=0), mean))
        between, mean = torch.var_mean(means, dim=-1, correction=0, keepdim=True)
        deviation = torch.sqrt(inside.mean(-1, keepdim=True) + between + self.eps)
        weight, bias = (parameter.float().unflatten(0, (self.num_groups, -1)) for parameter in (self.weight, self.bias))
        scale = weight / deviation
        shift = bias - mean * scale
        scale, shift = (groups.flatten(1).unflatten(1, (-1, *(1 for _ in image))) for groups in (scale, shift))
        return torch.addcmul(shift, input, scale).to(input.dtype)


def use_channels_last_norms(model: nn.Module) -> None:
    """Give a model such norms in the place of its own, with the same weights."""
    for module in list(model.modules()):
        for name, norm in module.named_children():
            if type(norm) is nn.GroupNorm and norm.affine:
                ours = ChannelsLastGroupNorm(norm.num_groups, norm.num_channels, norm.eps, device="meta")
                ours.weight, ours.bias = norm.weight, norm.bias
                setattr(module, name, ours.train(norm.training))
