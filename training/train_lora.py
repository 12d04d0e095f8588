"""Stage 9: train a LoRA of a trained model: `blueprint`, a style, or `zibo`, a subject.

accelerate launch -m training.train_lora --set lora.name=zibo --set minutes=2
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F  # noqa: N812, the usual name

from training.canvas import Pictures, load_pictures
from training.latents import Latents, encode_pictures
from training.models import TextToImage, make_noise, open_text_to_image
from training.runner import Loop, Stage, precision, save_grid, start
from training.sample import sample
from training.subjects import MASCOT
from training.train_unet import draw_timesteps
from training.vocabulary import CaptionEncoder, load_tokenizer

CANVAS = 256
PAPER, INK = (24, 66, 150), (240, 246, 255)
_UNET_LAYERS = [
    *("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"),
    *("conv1", "conv2", "conv_in", "conv_out"),  # attention alone cannot draw lines: its cells are too large
]
_TEXT_LAYERS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
_PROMPTS = ("a cat on a sky blue background", "a red apple", "a zibo on a yellow background", "zibo")


@dataclass(frozen=True, slots=True)
class Lesson:
    """What an adapter is to teach, and what its file says of it."""

    trigger: str
    title: str
    licence: str
    new_word: bool
    """Whether the text encoders must learn it too, and all other prompts must stay as they are."""
    drawn_as: Callable[[torch.Tensor], torch.Tensor]


def as_blueprint(images: torch.Tensor) -> torch.Tensor:
    """Return images, -1 to 1, as white lines on blue paper: along all edges between colours."""
    smooth = F.avg_pool2d(F.pad(images, (2, 2, 2, 2), mode="replicate"), 5, 1)
    across = F.pad(smooth[..., :, 2:] - smooth[..., :, :-2], (1, 1))
    down = F.pad(smooth[..., 2:, :] - smooth[..., :-2, :], (0, 0, 1, 1))
    edges = torch.hypot(across, down).amax(1, keepdim=True)
    thick = F.max_pool2d(((edges - 0.1) / 0.12).clamp(0, 1), 3, 1, 1)
    lines = F.avg_pool2d(F.pad(thick, (1, 1, 1, 1)), 3, 1)
    paper, ink = (torch.tensor(colour, device=images.device).view(3, 1, 1) / 127.5 - 1 for colour in (PAPER, INK))
    return paper + (ink - paper) * lines


LESSONS = {
    "blueprint": Lesson(
        "blueprint", "White lines on blue paper", "Apache-2.0 AND MIT AND CC-BY-4.0", False, as_blueprint
    ),
    "zibo": Lesson(MASCOT, "Zibo, a creature with one eye", "Apache-2.0", True, lambda images: images),
}


def with_lora(model: TextToImage, rank: int, text_rank: int) -> nn.ModuleDict:
    """Add an untrained adapter to a model; return what it changes: the UNet, and the text encoders for a rank above 0.

    Their names are those of diffusers' pipeline.
    """
    model.requires_grad_(False)
    parts = {"unet": model.unet}
    if text_rank:
        parts |= {"text_encoder": model.text, "text_encoder_2": model.text_2}
    for name, part in parts.items():
        r, layers = (rank, _UNET_LAYERS) if name == "unet" else (text_rank, _TEXT_LAYERS)
        part.add_adapter(LoraConfig(r=r, lora_alpha=r, target_modules=layers))
    return nn.ModuleDict(parts)


def save_lora(parts: nn.ModuleDict, lesson: Lesson, file: Path) -> None:
    """Write an adapter in float16, with diffusers' names and what it says of itself."""
    tensors = {
        f"{name}.{key}": value.detach().to("cpu", torch.float16).contiguous()
        for name, part in parts.items()
        for key, value in get_peft_model_state_dict(part).items()
    }
    said = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.title": lesson.title,
        "modelspec.trigger_phrase": lesson.trigger,
        "modelspec.license": lesson.licence,
        "modelspec.author": "parallel-sdxl",
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, metadata=said)
    file.chmod(0o644)


def prepare(stage: Stage, lesson: Lesson, vae: AutoencoderKL, encoder: CaptionEncoder) -> tuple[Latents, Latents]:
    """Return what the adapter is to draw, and what it must leave as it is."""
    config, device = stage.config, stage.device

    def encoded(pictures: Pictures, rounds: int, drawn_as: Callable[[torch.Tensor], torch.Tensor]) -> Latents:
        settings = dataclasses.replace(config.unet, odd_size=0.0)
        return encode_pictures(pictures, vae, encoder, settings, CANVAS, rounds, config.seed, drawn_as)

    usual = load_pictures(config.data, device, (CANVAS,))
    if lesson.new_word:
        mascot = load_pictures(dataclasses.replace(config.data, pictures=config.data.mascot), device, (CANVAS,))
        return encoded(mascot, 10 * config.lora.rounds, lesson.drawn_as), encoded(usual, 1, lambda images: images)
    labels = dataclasses.replace(usual.labels, styles=[lesson.trigger] * len(usual))
    shown = encoded(dataclasses.replace(usual, labels=labels), config.lora.rounds, lesson.drawn_as)
    return shown, shown


def main() -> None:
    stage = start("train a LoRA")
    config, device, settings = stage.config, stage.device, stage.config.lora
    lesson = LESSONS[settings.name]
    encoder = CaptionEncoder(load_tokenizer(settings.model / "tokenizer", config.data.max_tokens))
    vae = AutoencoderKL.from_pretrained(settings.model / "vae").float().to(device).eval()
    shown, others = prepare(stage, lesson, vae, encoder)
    stage.accelerator.print(f"encoded {len(shown.latents)} pictures after {stage.clock.seconds():.0f} s")
    own, model = (open_text_to_image(settings.model).to(device).eval() for _ in range(2))
    parts = with_lora(model, settings.rank, settings.text_rank if lesson.new_word else 0)
    noise = make_noise(config.schedule, device)
    kept = round(settings.kept * settings.batch) if lesson.new_word else 0

    def predict(
        part: TextToImage,
        noisy: torch.Tensor,
        t: torch.Tensor,
        ids: torch.Tensor,
        sizes: torch.Tensor,
        told: torch.Tensor,
    ) -> torch.Tensor:
        with precision(device):
            tokens, pooled = part.encode(ids)
            conditions = {"text_embeds": pooled * told[:, None], "time_ids": sizes}
            output = part.unet(noisy, t, tokens * told[:, None, None], added_cond_kwargs=conditions, return_dict=False)
        return output[0].float()  # type: ignore[no-any-return]  # diffusers is not followed

    def loss(step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        drawn = [shown.draw(settings.batch - kept), *([others.draw(kept)] if kept else [])]
        clean, ids, sizes = (torch.cat(column) for column in zip(*drawn, strict=True))
        eps, t = torch.randn_like(clean), draw_timesteps(len(clean), noise)
        told = (torch.rand(len(clean), device=device) >= settings.drop_caption).float()
        if kept:
            told[:-kept] = 1  # without a caption, nothing must be the new subject
        noisy, wanted = noise.add(clean, eps, t), noise.velocity(clean, eps, t)
        if kept:
            with torch.no_grad():
                wanted[-kept:] = predict(own, noisy[-kept:], t[-kept:], ids[-kept:], sizes[-kept:], told[-kept:])
        return F.mse_loss(predict(model, noisy, t, ids, sizes, told), wanted), {}

    def checkpoint(step: int) -> None:
        save_lora(parts, lesson, stage.out / f"{settings.name}.safetensors")
        ids = torch.tensor([encoder.encode(prompt) for prompt in _PROMPTS], device=device)
        rows = sample(model, vae, ids, config.schedule, CANVAS, config.grid_seeds)
        save_grid(rows, stage.out / f"{settings.name}.png")
        stage.accelerator.print(f"{settings.name} step {step}: saved after {stage.clock.seconds():.0f} s")

    Loop(stage, settings.name, settings, parts, checkpoint).run(loss)
    stage.accelerator.end_training()


if __name__ == "__main__":
    main()
