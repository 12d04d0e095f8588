"""`parallel-sdxl info`: what a picture says of how it was made."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from PIL import Image as Pillow
from PIL import UnidentifiedImageError
from pydantic import ValidationError
from rich.console import Console

from serve_app.cli.errors import Unusable
from serve_app.cli.text import printable
from serve_app.metadata import Embedded, embedded_parameters, parameters_chunk


def info(picture: Path, console: Console) -> None:
    """Print the parameters that a picture holds: ours, else another UI's text.

    Raises Unusable where it holds none.
    """
    image = opened(picture)
    if embedded := read(picture, image):
        for name, value in lines(embedded):
            console.out(f"{name:<20} {printable(str(value))}", highlight=False)
    elif text := parameters_chunk(image):
        console.out(printable(text), highlight=False)
    else:
        raise holds_none(picture)


def lines(embedded: Embedded) -> Iterator[tuple[str, object]]:
    """Yield the name and value of every parameter."""
    yield from embedded.request.model_dump(exclude_unset=True, exclude={"num_images"}).items()
    yield "model", embedded.model.name
    if embedded.model.revision:
        yield "model revision", embedded.model.revision
    yield "model hash", embedded.model.hash
    sampled = {
        "prediction type": embedded.model.prediction_type,
        "timestep spacing": embedded.model.timestep_spacing,
        "zero SNR": embedded.model.rescale_betas_zero_snr,
    }
    yield from ((name, value) for name, value in sampled.items() if value is not None)
    yield "painted by", f"parallel-sdxl {embedded.version}"


def opened(picture: Path) -> Pillow.Image:
    """Read a picture. Raises Unusable."""
    try:
        image = Pillow.open(BytesIO(picture.read_bytes()))
        image.load()
    except UnidentifiedImageError:
        raise Unusable(f"{picture} cannot be read as a picture: its format is not known") from None
    except (OSError, SyntaxError, ValueError, Pillow.DecompressionBombError) as error:
        raise Unusable(f"{picture} cannot be read as a picture: {error}") from None
    return image


def read(picture: Path, image: Pillow.Image) -> Embedded | None:
    """Return the parameters of ours that an open picture holds.

    Raises Unusable where this version does not understand them.
    """
    try:
        return embedded_parameters(image)
    except ValidationError as error:
        fault = error.errors()[0]
        raise _not_ours(picture, f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None
    except ValueError as error:
        raise _not_ours(picture, str(error)) from None


def _not_ours(picture: Path, why: str) -> Unusable:
    return Unusable(f"the parameters in {picture} are not what this version writes: {why}")


def holds_none(picture: Path) -> Unusable:
    """Return the error of a picture without parameters of ours."""
    return Unusable(
        f"{picture} holds no parameters: it was not painted by parallel-sdxl, is a grid, "
        "or has been saved again by a program that drops them"
    )
