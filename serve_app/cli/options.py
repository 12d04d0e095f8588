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
Sheet = Annotated[
    bool | None,
    typer.Option("--grid/--no-grid", help="Also write a sheet of all images; the default if there are several."),
]
