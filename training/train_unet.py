"""Stage 4: the UNet and both text encoders, on latents encoded ahead. Goes on from weights in --out if there are any.

accelerate launch -m training.train_unet
"""

import torch
from accelerate import Accelerator
from torch.nn import functional as F  # noqa: N812, the usual name

from training.canvas import load_pictures
from training.latents import Latents, encode_pictures
from training.models import Noise, Painter, make_noise, make_vae
from training.runner import Loop, Stage, keep_channels_last, precision, save_grid, save_weights, start
from training.sample import GRID_PROMPTS, paint
from training.vocabulary import CaptionEncoder, load_tokenizer


def draw_timesteps(batch: int, noise: Noise) -> torch.Tensor:
    """Return random timesteps (batch,): half evenly spread, half where pictures take shape.

    The latter are around sigma 0.9 of signal 1.
    """
    device = noise.sigma.device
    even = torch.randint(1000, (batch,), device=device)
    wanted = (torch.randn(batch, device=device) * 1.2 - 0.1).exp()
    ratio = noise.sigma / noise.signal
    shaped = torch.searchsorted(ratio, wanted).clamp(0, 999)
    return torch.where(torch.rand(batch, device=device) < 0.5, even, shaped)


def wants_small(step: int, every: int, accelerator: Accelerator) -> bool:
    """Return whether this device's batch is at the small size: every so many steps, or on every so many devices.

    With enough devices each one keeps to one size, which halves the time they spend compiling.
    """
    place = accelerator.process_index if accelerator.num_processes >= every else step
    return place % every == every - 1


def prepare(stage: Stage) -> tuple[dict[int, Latents], CaptionEncoder, int]:
    """Return the encoded pictures of both canvases, the caption encoder, and the vocabulary's size."""
    config, accelerator, device = stage.config, stage.accelerator, stage.device
    tokenizer = load_tokenizer(config.data.vocabulary, config.data.max_tokens)
    encoder = CaptionEncoder(tokenizer)
    vae = make_vae(config.vae.model).to(device, memory_format=torch.channels_last).eval()
    stage.load(vae, "vae")
    pictures = load_pictures(config.data, device)
    seed = config.seed * 1000 + accelerator.process_index
    rounds = {256: config.unet.rounds, 128: config.unet.small_rounds}
    if accelerator.num_processes >= config.unet.small_every:
        unused = 256 if wants_small(0, config.unet.small_every, accelerator) else 128
        del rounds[unused]
    stores = {
        canvas: encode_pictures(pictures, vae, encoder, config.unet, canvas, n, seed) for canvas, n in rounds.items()
    }
    return stores, encoder, len(tokenizer)


def main() -> None:
    stage = start("train the UNet and the text encoders")
    config, accelerator, device = stage.config, stage.accelerator, stage.device
    stores, encoder, vocabulary_size = prepare(stage)
    accelerator.print(
        f"encoded {[len(s.latents) for s in stores.values()]} pictures after {stage.clock.seconds():.0f} s"
    )
    painter = Painter(config, vocabulary_size).to(device)
    keep_channels_last(painter.unet)
    stage.resume(painter, "unet")
    for parameter in painter.parameters():  # every device begins with the first one's weights
        parameter.data = accelerator.reduce(parameter.data * accelerator.is_main_process, reduction="sum")
    noise = make_noise(config.schedule, device)
    unet = torch.compile(painter.unet, dynamic=False) if device.type == "cuda" and config.unet.compile else painter.unet

    def loss(step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        small = wants_small(step, config.unet.small_every, accelerator)
        clean, ids, sizes = stores[128 if small else 256].draw(config.unet.small_batch if small else config.unet.batch)
        eps, t = torch.randn_like(clean), draw_timesteps(len(clean), noise)
        kept = (torch.rand(len(clean), device=device) >= config.unet.drop_caption).float()
        with precision(device):
            tokens, pooled = painter.encode(ids)
            # Without a caption the pipeline feeds zeros, and so does the training.
            tokens, pooled = tokens * kept[:, None, None], pooled * kept[:, None]
            noisy = noise.add(clean, eps, t).contiguous(memory_format=torch.channels_last)
            output = unet(
                noisy, t, tokens, added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes}, return_dict=False
            )[0]
        return F.mse_loss(output.float(), noise.velocity(clean, eps, t)), {}

    def checkpoint(step: int) -> None:
        save_weights(painter, stage.out, "unet")
        vae = make_vae(config.vae.model).to(device).eval()
        stage.load(vae, "vae")
        for canvas in (256, 128):
            ids = torch.tensor([encoder.encode(prompt) for prompt in GRID_PROMPTS], device=device)
            save_grid(
                paint(painter, vae, ids, config.schedule, canvas, config.grid_seeds), stage.out / f"grid-{canvas}.png"
            )
        accelerator.print(f"unet step {step}: saved after {stage.clock.seconds():.0f} s")

    Loop(stage, "unet", config.unet, painter, checkpoint).run(loss)
    accelerator.end_training()


if __name__ == "__main__":
    main()
