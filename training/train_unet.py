"""Stage 4: train the UNet and both text encoders on latents encoded in advance. Resumes from weights in --out.

accelerate launch -m training.train_unet
"""

import torch
from accelerate import Accelerator
from torch.nn import functional as F  # noqa: N812, the usual name

from training.canvas import load_pictures
from training.latents import Latents, encode_pictures
from training.models import Noise, make_noise, make_text_to_image, make_vae
from training.runner import Loop, Stage, keep_channels_last, precision, save_grid, save_weights, start
from training.sample import GRID_PROMPTS, sample
from training.vocabulary import CaptionEncoder, load_tokenizer


def draw_timesteps(batch: int, noise: Noise) -> torch.Tensor:
    """Return random timesteps (batch,): half evenly spread, half around a noise to signal ratio of 0.9.

    That is where the main shapes of a picture form.
    """
    device = noise.sigma.device
    even = torch.randint(1000, (batch,), device=device)
    wanted = (torch.randn(batch, device=device) * 1.2 - 0.1).exp()
    ratio = noise.sigma / noise.signal
    shaped = torch.searchsorted(ratio, wanted).clamp(0, 999)
    return torch.where(torch.rand(batch, device=device) < 0.5, even, shaped)


def wants_small(step: int, every: int, accelerator: Accelerator) -> bool:
    """Return whether this device's batch has the small size: one of `every` steps, or one of `every` devices.

    With enough devices each one uses only one size, which halves the time for compilation.
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
    model = make_text_to_image(config, vocabulary_size).to(device)
    keep_channels_last(model.unet)
    stage.resume(model, "unet")
    for parameter in model.parameters():  # all devices start from the first one's weights
        parameter.data = accelerator.reduce(parameter.data * accelerator.is_main_process, reduction="sum")
    noise = make_noise(config.schedule, device)
    unet = torch.compile(model.unet, dynamic=False) if device.type == "cuda" and config.unet.compile else model.unet

    def loss(step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        small = wants_small(step, config.unet.small_every, accelerator)
        clean, ids, sizes = stores[128 if small else 256].draw(config.unet.small_batch if small else config.unet.batch)
        eps, t = torch.randn_like(clean), draw_timesteps(len(clean), noise)
        kept = (torch.rand(len(clean), device=device) >= config.unet.drop_caption).float()
        with precision(device):
            tokens, pooled = model.encode(ids)
            # Zeros without a caption, as in the pipeline.
            tokens, pooled = tokens * kept[:, None, None], pooled * kept[:, None]
            noisy = noise.add(clean, eps, t).contiguous(memory_format=torch.channels_last)
            output = unet(
                noisy, t, tokens, added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes}, return_dict=False
            )[0]
        return F.mse_loss(output.float(), noise.velocity(clean, eps, t)), {}

    def checkpoint(step: int) -> None:
        save_weights(model, stage.out, "unet")
        vae = make_vae(config.vae.model).to(device).eval()
        stage.load(vae, "vae")
        for canvas in (256, 128):
            ids = torch.tensor([encoder.encode(prompt) for prompt in GRID_PROMPTS], device=device)
            save_grid(
                sample(model, vae, ids, config.schedule, canvas, config.grid_seeds), stage.out / f"grid-{canvas}.png"
            )
        accelerator.print(f"unet step {step}: saved after {stage.clock.seconds():.0f} s")

    Loop(stage, "unet", config.unet, model, checkpoint).run(loss)
    accelerator.end_training()


if __name__ == "__main__":
    main()
