"""The types of the command line's options, and those options that several commands have."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import typer


@dataclass(frozen=True, slots=True)
class Size:
    width: int
    height: int

    @classmethod
    def parse(cls, text: str) -> Self:
        try:
            width, height = map(int, text.lower().split("x"))
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not WxH, such as 256x256") from None
        return cls(width, height)


@dataclass(frozen=True, slots=True)
class Seeds:
    seeds: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        try:
            return cls(tuple(map(int, text.split(","))))
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not a list of seeds, such as 7,8,1234") from None


@dataclass(frozen=True, slots=True)
class Lora:
    name: str
    scale: float

    @classmethod
    def parse(cls, text: str) -> Self:
        name, _, scale = text.rpartition(":")
        try:
            return cls(name, float(scale)) if name else cls(text, 1.0)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not NAME:SCALE, such as pixel-art:0.8") from None


def sent_loras(loras: list[Lora] | None) -> list[dict[str, Any]] | None:
    """Return adapters as a request has them."""
    return [{"name": one.name, "scale": one.scale} for one in loras] if loras else None


def http_url(url: str) -> str:
    """Refuse what is no URL of a service."""
    if not url.startswith(("http://", "https://")):
        raise typer.BadParameter(f"{url!r} does not start with http:// or https://")
    return url


def utf8(words: str | None) -> str | None:
    """Refuse text in another encoding, whose bytes Python turns into lone surrogates."""
    if words and not words.isascii() and any("\ud800" <= c <= "\udfff" for c in words):
        raise typer.BadParameter("it is not UTF-8; set the terminal's encoding to UTF-8")
    return words


# There is no option for the key: it would stay in the shell's history.
Url = Annotated[
    str,
    typer.Option(
        envvar="PARALLEL_SDXL_URL",
        callback=http_url,
        help="Where the service is; PARALLEL_SDXL_API_KEY holds its key if it needs one.",
    ),
]
Picture = Annotated[
    Path, typer.Argument(metavar="PICTURE", exists=True, dir_okay=False, help="A PNG, JPEG or WebP file.")
]
URL = "http://127.0.0.1:8000"


def file_option(name: str, words: str) -> Any:
    """Return an option that names a file which is there."""
    return typer.Option(name, metavar="FILE", exists=True, dir_okay=False, help=words)


# Of a picture that is generated again.
OwnInit = Annotated[Path | None, file_option("--init", "The file that the picture went on from, if it did.")]
OwnMask = Annotated[Path | None, file_option("--mask", "The mask that it was generated with, if any.")]
OwnModel = Annotated[
    str | None,
    typer.Option(callback=utf8, help="Which of the service's models; by default the one that made the picture."),
]
# Of a request for new pictures.
Prompt = Annotated[str, typer.Argument(metavar="PROMPT", callback=utf8, help="What to generate.")]
Model = Annotated[str | None, typer.Option(callback=utf8, help="Which of the service's models, if it has several.")]
FirstSeed = Annotated[
    int | None, typer.Option(help="Seed of the first image; the next ones count up. Random by default.")
]
Negative = Annotated[str | None, typer.Option(callback=utf8, help="What to avoid.")]
Prompt2 = Annotated[str | None, typer.Option("--prompt-2", callback=utf8, help="What the second text encoder reads.")]
Negative2 = Annotated[
    str | None, typer.Option("--negative-prompt-2", callback=utf8, help="What the second is to avoid.")
]
Sized = Annotated[Size | None, typer.Option(parser=Size.parse, metavar="WxH", help="Width and height in pixels.")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps.")]
Guidance = Annotated[float | None, typer.Option(help="Classifier-free guidance; 1 or less turns it off.")]
By = Annotated[str | None, typer.Option(help="How it compares them: sharpness (the default), colourfulness or others.")]
Rescale = Annotated[
    float | None, typer.Option(help="How far guidance is scaled back, 0 to 1; 0.7 for v-prediction models.")
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        help="euler, euler_a, heun, dpm2, dpm2_a, lms, dpmpp_2m, dpmpp_2m_karras, dpmpp_2m_sde, dpmpp_3m_sde, "
        "dpmpp_2s, dpmpp_sde, ddim, unipc, deis, pndm, sa_solver, ddpm, lcm, tcd, edm_euler or edm_dpmpp_2m."
    ),
]
Loras = Annotated[
    list[Lora] | None,
    typer.Option(parser=Lora.parse, metavar="NAME:SCALE", help="An adapter to generate with; may be repeated."),
]
Format = Annotated[str | None, typer.Option("--format", help="png, jpeg or webp.")]
Out = Annotated[Path, typer.Option(file_okay=False, help="Folder to write to.")]
OUT = Path("out")
Sheet = Annotated[
    bool | None,
    typer.Option("--grid/--no-grid", help="Also write a sheet of all images; the default if there are several."),
]
