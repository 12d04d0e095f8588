"""Stage 5: the judge, which names subjects and styles.

It is trained only on augmented renderings, never on generated images.

accelerate launch -m training.train_classifier
"""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812, the usual name

from training.canvas import Pictures, load_pictures, palette, paste
from training.runner import Loop, precision, save_weights, start
from training.subjects import STYLES, family

SIDE = 128
"""The side of its input in pixels; larger pictures are scaled down."""


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        half = [nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)]
        other = [nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)]
        self.body = nn.Sequential(*half, *other)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = value + self.body(value)
        return total


class Classifier(nn.Module):
    """A small residual network for pictures (batch, 3, 128, 128), -1 to 1.

    It returns subject logits, style logits and features (batch, 8 width).
    """

    def __init__(self, width: int, subjects: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, stride=2, padding=1)]
        for level in range(4):
            inner = width * 2**level
            layers += [_Block(inner), _Block(inner)]
            if level < 3:
                layers.append(nn.Conv2d(inner, 2 * inner, 3, stride=2, padding=1))
        self.body = nn.Sequential(*layers, nn.GroupNorm(8, 8 * width), nn.SiLU())
        self.subject, self.style = nn.Linear(8 * width, subjects), nn.Linear(8 * width, len(STYLES))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        features = self.body(images).mean((2, 3))
        return self.subject(features), self.style(features), features


def augmented(pictures: Pictures, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random renderings (batch, 3, 128, 128), -1 to 1, and the index of each one's picture.

    They are slightly moved, scaled, blurred and tinted.
    """
    device = pictures.device
    ids = torch.randint(len(pictures), (batch,), device=device)
    side = pictures.data.sides[256][int(torch.randint(len(pictures.data.sides[256]), ()))]
    flat, free = (
        palette(device)[torch.randint(len(palette(device)), (batch,), device=device)],
        torch.rand(batch, 3, device=device),
    )
    background = torch.where(torch.rand(batch, 1, device=device) < 0.7, flat, free)
    middle = torch.full((batch,), (256 - side) // 2, device=device)
    images = F.interpolate(
        paste(pictures.pixels[side], ids, middle, middle, 256, background) * 2 - 1, size=SIDE, mode="area"
    )
    scale, shift = 1 + 0.2 * (torch.rand(batch, device=device) - 0.5), 0.3 * (torch.rand(batch, 2, device=device) - 0.5)
    theta = torch.zeros(batch, 2, 3, device=device)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = shift
    images = F.grid_sample(
        images,
        F.affine_grid(theta, list(images.shape), align_corners=False),
        padding_mode="border",
        align_corners=False,
    )
    soft = F.interpolate(F.avg_pool2d(images, 2), size=SIDE, mode="bilinear")
    images = torch.where(torch.rand(batch, 1, 1, 1, device=device) < 0.3, soft, images)
    images = images * (1 + 0.2 * (torch.rand(batch, 1, 1, 1, device=device) - 0.5)) + 0.1 * torch.randn(
        batch, 3, 1, 1, device=device
    )
    return images + 0.05 * torch.rand(batch, 1, 1, 1, device=device) * torch.randn_like(images), ids


def class_lists(subjects: list[str]) -> tuple[list[str], list[str]]:
    """Return the classes: subjects in alphabetical order, and the family of each."""
    names = sorted(set(subjects))
    return names, [family(name) for name in names]


def main() -> None:
    stage = start("train the judge of generated images")
    config, device = stage.config, stage.device
    pictures = load_pictures(config.data, device, canvases=(256,))
    names, families = class_lists(pictures.labels.subjects)
    number = {name: i for i, name in enumerate(names)}
    style_words = list(STYLES.values())
    subject_of = torch.tensor([number[s] for s in pictures.labels.subjects], device=device)
    style_of = torch.tensor([style_words.index(s) for s in pictures.labels.styles], device=device)
    family_of = torch.tensor([sorted(set(families)).index(f) for f in families], device=device)
    model = Classifier(config.classifier.width, len(names)).to(device)
    stage.resume(model, "classifier")
    forward = torch.compile(model) if device.type == "cuda" else model

    def loss(step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        images, ids = augmented(pictures, config.classifier.batch)
        with precision(device):
            subject, style, _ = forward(images.contiguous(memory_format=torch.channels_last))
        value = F.cross_entropy(subject.float(), subject_of[ids], label_smoothing=0.05) + 0.3 * F.cross_entropy(
            style.float(), style_of[ids]
        )
        return value, {"top1": (subject.argmax(1) == subject_of[ids]).float().mean()}

    @torch.inference_mode()
    def checkpoint(step: int) -> None:
        save_weights(model, stage.out, "classifier")
        hits = torch.zeros(3, device=device)
        for _ in range(20):
            images, ids = augmented(pictures, config.classifier.batch)
            subject, style, _ = model(images)
            best = subject.argmax(1)
            truth = subject_of[ids]
            right = [best == truth, family_of[best] == family_of[truth], style.argmax(1) == style_of[ids]]
            hits += torch.stack(right).float().mean(1) / 20
        subject_hits, family_hits, style_hits = (round(100 * float(h), 2) for h in hits)
        stage.accelerator.print(
            f"classifier step {step}: fresh renderings: subject {subject_hits} %, family {family_hits} %, "
            f"style {style_hits} %"
        )

    Loop(stage, "classifier", config.classifier, model, checkpoint).run(loss)
    stage.accelerator.end_training()


if __name__ == "__main__":
    main()
