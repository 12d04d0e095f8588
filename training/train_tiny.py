"""Stage 3: train the preview decoder on the finished autoencoder's latents.

accelerate launch -m training.train_tiny
"""

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import nn
from torch.nn import functional as F  # noqa: N812, the usual name

from training.canvas import load_pictures, loose_crops
from training.config import Config
from training.models import make_tiny, make_vae
from training.runner import Loop, precision, save_grid, save_weights, start
from training.train_vae import edge_loss, examples, psnr, split_pictures


class TinyLoss(nn.Module):
    """The losses of decoder and encoder in one module, so that they are compiled together. `vae` is not trained."""

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
        # Previews do not need the encoder; it is trained so that the folder holds a complete autoencoder.
        return loss + 0.1 * F.mse_loss(self.tiny.encoder(images), latents), square


def main() -> None:
    stage = start("train the preview decoder")
    config, device = stage.config, stage.device
    pictures = load_pictures(config.data, device)
    seen, held = split_pictures(pictures)
    vae = make_vae(config.vae.model).to(device, memory_format=torch.channels_last).requires_grad_(False).eval()
    stage.load(vae, "vae")
    tiny = make_tiny(config.tiny.width, config.vae.model["latent_channels"]).to(
        device, memory_format=torch.channels_last
    )
    stage.resume(tiny, "tiny")
    both = TinyLoss(tiny, vae, config)
    forward = torch.compile(both) if device.type == "cuda" else both
    shown = examples(pictures, held[:: max(1, len(held) // 96)])

    def loss(step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        images = loose_crops(pictures, seen, config.tiny.batch, config.tiny.crop).contiguous(
            memory_format=torch.channels_last
        )
        with precision(device):
            value, square = forward(images)
        return value, {"mse": square.detach()}

    def checkpoint(step: int) -> None:
        save_weights(tiny, stage.out, "tiny")
        with torch.inference_mode():
            output = torch.cat([tiny.decode(vae.encode(chunk).latent_dist.mode()).sample for chunk in shown.split(16)])
        stage.accelerator.print(f"tiny step {step}: held-out PSNR {psnr(output, shown):.2f} dB at 256 px")
        save_grid([shown[:8], output[:8]], stage.out / "tiny.png")

    Loop(stage, "tiny", config.tiny, tiny, checkpoint).run(loss)
    stage.accelerator.end_training()


if __name__ == "__main__":
    main()
