"""Stage 7: measure the quality of the shipped folder. The service's engine generates, the classifier judges.

python -m training.evaluate --model serve_app/models/<name> --out out/weights
"""

import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from torch.nn import functional as F  # noqa: N812, the usual name

from serve_app.replica.checkpoint import Checkpoint
from training.captions import BACKGROUNDS
from training.config import Config, load_config, stage_arguments
from training.render import draw
from training.runner import load_weights
from training.service import Precision, Service, open_service
from training.subjects import STYLES, Picture, evaluation_subjects, held_out_subjects, read_icons
from training.train_classifier import SIDE, Classifier, class_lists
from training.train_vae import psnr

_COLOURS = list(BACKGROUNDS)
_BORDER = 10  # pixels at each edge that pictures usually leave free

Figures = Mapping[str, float]
"""What the judge says of a model in one precision."""


@dataclass(frozen=True, slots=True)
class Judge:
    """The trained classifier with its classes."""

    model: Classifier
    names: list[str]
    families: list[str]

    @torch.inference_mode()
    def look(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return subject logits, style logits and features of pictures (batch, 3, height, width), -1 to 1."""
        device = next(self.model.parameters()).device
        return tuple(
            part.float().cpu() for part in self.model(F.interpolate(images, size=SIDE, mode="area").to(device))
        )


def load_judge(config: Config, subjects: Sequence[str], weights: Path, device: torch.device) -> Judge:
    """Return the classifier of `weights` for all `subjects`."""
    names, families = class_lists(list(subjects))
    model = Classifier(config.classifier.width, len(names))
    if not load_weights(model, weights, "classifier"):
        raise FileNotFoundError(f"{weights}: no classifier; train it first")
    return Judge(model.to(device).eval(), names, families)


def twins(judge: Judge) -> dict[str, list[str]]:
    """Return the families with more than one subject. Each counts as one class."""
    members: dict[str, list[str]] = defaultdict(list)
    for name, family in zip(judge.names, judge.families, strict=True):
        members[family].append(name)
    return {family: names for family, names in members.items() if len(names) > 1}


def share(hits: Sequence[bool]) -> float:
    """Return the percentage of hits."""
    return round(100 * sum(hits) / max(1, len(hits)), 2)


def top_hits(judge: Judge, images: torch.Tensor, subjects: Sequence[str]) -> tuple[list[bool], list[bool], list[bool]]:
    """Return for each picture whether the judge recognises its subject.

    Three lists: whether its first guess is the subject, whether that is in the subject's family, and whether one of its
    first five guesses is.
    """
    best = torch.cat([judge.look(chunk)[0] for chunk in images.split(64)]).topk(5).indices.tolist()
    family = dict(zip(judge.names, judge.families, strict=True))
    found = [[judge.families[i] == family[s] for i in five] for five, s in zip(best, subjects, strict=True)]
    exact = [judge.names[five[0]] == s for five, s in zip(best, subjects, strict=True)]
    return exact, [five[0] for five in found], [any(five) for five in found]


def border_colour(image: torch.Tensor) -> str:
    """Return the word of the background colour nearest to the mean colour of a picture's border.

    `image` is (3, height, width), -1 to 1.
    """
    inner = torch.ones(image.shape[1:], dtype=torch.bool)
    inner[_BORDER:-_BORDER, _BORDER:-_BORDER] = False
    mean = (image[:, inner].mean(1) + 1) * 127.5
    return min(_COLOURS, key=lambda word: float((mean - torch.tensor(BACKGROUNDS[word])).square().sum()))


def reference(picture: Picture, colour: str = "white", canvas: int = 256, side: int = 208) -> torch.Tensor:
    """Return a rendering in the middle of a flat colour, (3, canvas, canvas), -1 to 1."""
    rgba = torch.from_numpy(draw(picture.svg, side).copy()).permute(2, 0, 1) / 255
    image = (torch.tensor(BACKGROUNDS[colour]) / 255)[:, None, None].repeat(1, canvas, canvas)
    edge = (canvas - side) // 2
    inside = image[:, edge : edge + side, edge : edge + side]
    inside.copy_(rgba[:3] * rgba[3:] + inside * (1 - rgba[3:]))
    return image * 2 - 1


def _spread(features: torch.Tensor) -> float:
    return sum(float((features[i] - features[j]).norm()) for i, j in combinations(range(len(features)), 2)) / max(
        1, len(features) * (len(features) - 1) // 2
    )


def judge_images(
    service: Service, judge: Judge, pictures: Sequence[Picture], count: int | None, seeds: int, steps: int, size: int
) -> Figures:
    """Return the figures on generated images: subjects alone, on background colours, and in styles."""
    subjects = evaluation_subjects(judge.names)
    subjects = subjects[:: max(1, len(subjects) // count)] if count else subjects
    asked = [(s, seed) for s in subjects for seed in range(seeds)]
    bare = service.generate(asked, steps, size)
    exact, first, five = top_hits(judge, bare, [s for s, _ in asked])
    ratios = []
    for number, subject in enumerate(subjects):
        styles = torch.stack([reference(p) for p in pictures if p.subject == subject])
        if len(styles) == len(STYLES) and seeds > 1:
            ratios.append(
                _spread(judge.look(bare[number * seeds : (number + 1) * seeds])[2]) / _spread(judge.look(styles)[2])
            )
    colours = [_COLOURS[i % len(_COLOURS)] for i in range(len(subjects))]
    on_colours = service.generate(
        [(f"{s} on a {c} background", 1) for s, c in zip(subjects, colours, strict=True)], steps, size
    )
    words = list(STYLES.values())
    drawn = {(p.subject, p.style) for p in pictures}
    wanted = [(s, words[i % len(words)]) for i, s in enumerate(subjects) if (s, words[i % len(words)]) in drawn]
    in_styles = service.generate([(f"{s}, {style} style", 2) for s, style in wanted], steps, size)
    named = [words[i] for chunk in in_styles.split(64) for i in judge.look(chunk)[1].argmax(1).tolist()]
    return {
        "subjects": len(subjects),
        "pictures": len(asked),
        "top1_exact_percent": share(exact),
        "top1_percent": share(first),
        "top5_percent": share(five),
        "background_percent": share([border_colour(image) == c for image, c in zip(on_colours, colours, strict=True)]),
        "style_percent": share([n == style for n, (_, style) in zip(named, wanted, strict=True)]),
        "seed_spread_over_style_spread": round(sum(ratios) / max(1, len(ratios)), 3),
    }


@torch.inference_mode()
def judge_autoencoders(checkpoint: Checkpoint, pictures: Sequence[Picture], count: int) -> Figures:
    """Return the round trips' PSNR in dB on renderings of subjects that the autoencoders were not trained on."""
    held = held_out_subjects([p.subject for p in pictures])
    kept = [p for p in pictures if p.subject in held]
    chosen = kept[:: max(1, len(kept) // count)]
    images = torch.stack([reference(p, _COLOURS[i % len(_COLOURS)]) for i, p in enumerate(chosen)]).to(
        checkpoint.device, checkpoint.dtype
    )
    latents = torch.cat([checkpoint.vae.encode(chunk).latent_dist.mode() for chunk in images.split(8)])
    decoders = {"vae_psnr_db": checkpoint.vae, "tiny_vae_psnr_db": checkpoint.preview_vae}
    return {
        name: round(psnr(torch.cat([vae.decode(chunk, return_dict=False)[0] for chunk in latents.split(8)]), images), 2)
        for name, vae in decoders.items()
        if vae is not None
    }


def compared(found: Mapping[Precision, Figures]) -> dict[str, object]:
    """Return the figures of one precision as they are; those of several by name, with each one's change in top-1.

    The change is in points, against the first precision.
    """
    first, *others = found
    if not others:
        return dict(found[first])
    changes = {other: round(found[other]["top1_percent"] - found[first]["top1_percent"], 2) for other in others}
    return {**{name.value: figures for name, figures in found.items()}, "top1_change_points": changes}


def main() -> None:
    parser = stage_arguments("measure the shipped folder")
    parser.add_argument("--model", type=Path, required=True, help="the diffusers folder")
    parser.add_argument(
        "--subjects",
        type=int,
        help="about how many subjects of the evaluation list to use, evenly spread; all by default",
    )
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4, help="images generated at once")
    parser.add_argument(
        "--images-per-call", type=int, default=1, help="images in one UNet call; more is faster on a GPU"
    )
    parser.add_argument(
        "--precision",
        type=Precision,
        nargs="+",
        default=[Precision.FLOAT32],
        choices=list(Precision),
        metavar="PRECISION",
        help=f"{', '.join(Precision)}: judge the same prompts and seeds in each, and compare top-1 with the first",
    )
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    config = load_config(args.config, args.changes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pictures = read_icons(config.data.icons, config.data.min_styles)
    judge = load_judge(config, [p.subject for p in pictures], args.out, device)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("ray.serve").setLevel(logging.INFO)  # says how many layers fp8 replaces, and by what
    found: dict[Precision, Figures] = {}
    for precision in args.precision:
        with open_service(
            args.model, args.batch, device, precision=precision, images_per_call=args.images_per_call
        ) as service:
            found[precision] = {
                **judge_autoencoders(service.checkpoint, pictures, 96),
                **judge_images(service, judge, pictures, args.subjects, args.seeds, args.steps, args.size),
            }
    figures = compared(found)
    print(json.dumps(figures, indent=2))
    if args.json:
        shown = {**figures, "steps": args.steps, "size": args.size, "families": twins(judge)}
        args.json.write_text(json.dumps(shown, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
