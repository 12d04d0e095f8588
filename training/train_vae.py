"""Stage 2: train the autoencoder on crops of the renderings. Resumes from weights in --out.

accelerate launch -m training.train_vae
"""

import copy

import torch
from diffusers import AutoencoderKL
from torch import nn

from training.canvas import Pictures, load_pictures, loose_crops, palette, paste
from training.config import Config
from training.models import make_vae
from training.runner import Loop, precision, save_grid, save_weights, start
from training.subjects import held_out_subjects


def edge_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute error of the differences between neighbouring pixels, which penalises blurred edges."""
    error = output - target
    return (error[..., 1:, :] - error[..., :-1, :]).abs().mean() + (error[..., 1:] - error[..., :-1]).abs().mean()


def psnr(output: torch.Tensor, target: torch.Tensor) -> float:
    """Return the mean over pictures of the peak signal-to-noise ratio in dB; both -1 to 1."""
    error = (output.clamp(-1, 1).float() - target).square().mean((1, 2, 3)) / 4
    return float((-10 * error.log10()).mean())


def split_pictures(pictures: Pictures) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the indices of the autoencoders' training pictures, and of the held-out ones."""
    kept_back = held_out_subjects(pictures.labels.subjects)
    held = torch.tensor([s in kept_back for s in pictures.labels.subjects], device=pictures.device)
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]


def examples(pictures: Pictures, ids: torch.Tensor, canvas: int = 256) -> torch.Tensor:
    """Return centred pictures, -1 to 1, with alternating sides and colours, the same on every call."""
    colours = palette(pictures.device)
    shown = []
    for number, picture in enumerate(ids.tolist()):
        side = pictures.data.sides[canvas][number % len(pictures.data.sides[canvas])]
        corner = torch.tensor([(canvas - side) // 2], device=pictures.device)
        colour = colours[number % len(colours)][None]
        shown.append(
            paste(
                pictures.pixels[side], torch.tensor([picture], device=pictures.device), corner, corner, canvas, colour
            )
        )
    return torch.cat(shown) * 2 - 1


@torch.inference_mode()
def round_trip_psnr(vae: AutoencoderKL, images: torch.Tensor) -> float:
    """Return the mean PSNR in dB of encoding and decoding, in float32."""
    return psnr(
        torch.cat([vae.decode(vae.encode(chunk).latent_dist.mode()).sample for chunk in images.split(16)]), images
    )


@torch.no_grad()
def standardised(vae: AutoencoderKL, images: torch.Tensor) -> AutoencoderKL:
    """Return a copy whose latents have mean 0 and deviation 1 in every channel over `images`.

    It decodes to the same pictures. The change is made in the two 1x1 convolutions around the latents, so pipelines
    can use a scaling factor of 1.
    """
    vae = copy.deepcopy(vae)
    latents = torch.cat([vae.encode(chunk).latent_dist.mode() for chunk in images.split(16)])
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(mean)
    into, out = vae.quant_conv, vae.post_quant_conv
    into.weight[:channels] /= deviation[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / deviation
    into.bias[channels:] -= 2 * deviation.log()
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= deviation[None, :, None, None]
    return vae


class VaeLoss(nn.Module):
    """The loss of encoding and decoding in one module, so that it is compiled as a whole."""

    def __init__(self, vae: AutoencoderKL, config: Config) -> None:
        super().__init__()
        self.vae, self.config = vae, config.vae

    def forward(self, images: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mean, log_var = self.vae.quant_conv(self.vae.encoder(images)).float().chunk(2, dim=1)
        log_var = log_var.clamp(-30, 20)
        if self.config.freeze_encoder:
            # Generated latents are slightly off; with noise the decoder learns to decode them cleanly.
            level = self.config.latent_noise * torch.linspace(0, 1, len(images), device=images.device).square()
            latents = mean + noise * level[:, None, None, None]
        else:
            latents = mean + noise * (0.5 * log_var).exp()
        output = self.vae.decoder(self.vae.post_quant_conv(latents)).float()
        kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).mean()
        square = (output - images).square().mean()
        loss = (
            (output - images).abs().mean()
            + self.config.gradient_weight * edge_loss(output, images)
            + self.config.square_weight * square
        )
        return loss + self.config.kl_weight * kl, square, kl


def main() -> None:
    stage = start("train the autoencoder")
    config, device = stage.config, stage.device
    pictures = load_pictures(config.data, device)
    seen, held = split_pictures(pictures)
    vae = make_vae(config.vae.model).to(device, memory_format=torch.channels_last)
    stage.resume(vae, "vae")
    if config.vae.freeze_encoder:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    trip = VaeLoss(vae, config)
    forward = torch.compile(trip) if device.type == "cuda" else trip
    shown = examples(pictures, held[:: max(1, len(held) // 96)])
    usual = examples(pictures, seen[:: max(1, len(seen) // 256)])

    def loss(step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        images = loose_crops(pictures, seen, config.vae.batch, config.vae.crop).contiguous(
            memory_format=torch.channels_last
        )
        cells = config.vae.crop // 8
        noise = torch.randn(len(images), config.vae.model["latent_channels"], cells, cells, device=device)
        with precision(device):
            value, square, kl = forward(images, noise)
        return value, {"mse": square.detach(), "kl": kl.detach()}

    def checkpoint(step: int) -> None:
        kept = vae if config.vae.freeze_encoder else standardised(vae, usual)
        save_weights(kept, stage.out, "vae")
        stage.accelerator.print(f"vae step {step}: held-out PSNR {round_trip_psnr(kept, shown):.2f} dB at 256 px")
        with torch.inference_mode():
            output = kept.decode(kept.encode(shown[:8]).latent_dist.mode()).sample
        save_grid([shown[:8], output], stage.out / "vae.png")

    Loop(stage, "vae", config.vae, vae, checkpoint).run(loss)
    stage.accelerator.end_training()


if __name__ == "__main__":
    main()
