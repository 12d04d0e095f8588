"""Stage 3: the small decoder of previews, taught to decode the finished autoencoder's latents.

accelerate launch -m training.train_tiny
"""

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import nn
from torch.nn import functional as F  # noqa: N812, the usual name

from training.canvas import load_pictures, loose_crops
from training.config import Config, load_config, stage_arguments
from training.models import make_tiny, make_vae
from training.runner import Average, Clock, Loop, load_weights, precision, save_grid, save_weights, start
from training.train_vae import edge_loss, examples, psnr, split_pictures


class TinyLoss(nn.Module):
    """Both halves' losses in one module, so that one compilation covers them. The autoencoder is not trained."""

    def __init__(self, tiny: AutoencoderTiny, vae: AutoencoderKL, config: Config) -> None:
        super().__init__()
        self.tiny, self.vae = tiny, vae
        self.gradient_weight, self.latent_noise = config.tiny.gradient_weight, config.vae.latent_noise

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            latents = self.vae.quant_conv(self.vae.encoder(images)).chunk(2, dim=1)[0]
            level = self.latent_noise * torch.linspace(0, 1, len(images), device=images.device).square()
            noisy = latents + torch.randn_like(latents) * level[:, None, None, None]
        error = self.tiny.decoder(noisy).float() - images
        square = error.square().mean()
        loss = error.abs().mean() + square + self.gradient_weight * edge_loss(error, torch.zeros_like(error))
        # No preview needs the encoder; it makes the folder a whole autoencoder for whoever loads it.
        return loss + 0.1 * F.mse_loss(self.tiny.encoder(images), latents), square


def main() -> None:
    args = stage_arguments("train the decoder of previews").parse_args()
    config = load_config(args.config, args.changes)
    clock = Clock(config.minutes)
    accelerator = start(config)
    device = accelerator.device
    pictures = load_pictures(config.data, device)
    seen, held = split_pictures(pictures)
    vae = make_vae(config.vae.model).to(device, memory_format=torch.channels_last).requires_grad_(False).eval()
    if not load_weights(vae, args.out, "vae"):
        raise FileNotFoundError(f"{args.out}: no autoencoder; train it first")
    tiny = make_tiny(config.tiny.width, config.vae.model["latent_channels"]).to(device, memory_format=torch.channels_last)
    resumed = load_weights(tiny, args.out, "tiny")
    average = Average(tiny, config.tiny.ema)
    both = TinyLoss(tiny, vae, config)
    forward = torch.compile(both) if device.type == "cuda" else both
    shown = examples(pictures, held[:: max(1, len(held) // 96)])
    accelerator.print(f"tiny: {sum(p.numel() for p in tiny.parameters()) / 1e6:.3f} M parameters, resumed: {resumed}")

    def loss(step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        images = loose_crops(pictures, seen, config.tiny.batch, config.tiny.crop).contiguous(memory_format=torch.channels_last)
        with precision(device):
            value, square = forward(images)
        return value, {"mse": square.detach()}

    def checkpoint(step: int) -> None:
        save_weights(tiny, args.out, "tiny")
        with torch.inference_mode():
            output = torch.cat([tiny.decode(vae.encode(chunk).latent_dist.mode()).sample for chunk in shown.split(16)])
        accelerator.print(f"tiny step {step}: held-out PSNR {psnr(output, shown):.2f} dB at 256 px")
        save_grid([shown[:8], output[:8]], args.out / "tiny.png")

    Loop(config, accelerator, tiny, average, clock, config.tiny.lr, config.tiny.warmup, config.tiny.decay_from, 0.0, checkpoint, "tiny").run(loss)
    accelerator.end_training()


if __name__ == "__main__":
    main()
