"""The files of pictures to go on from."""

from base64 import b64encode
from pathlib import Path

from serve_app.cli.errors import Unusable
from serve_app.recipe import picture_hash


def sent(file: Path) -> str:
    """Return a picture's file as a request holds it. Raises Unusable."""
    return b64encode(_read(file)).decode()


def sent_again(file: Path | None, option: str, *, hash: str) -> str:
    """Return the file that a picture was generated from, as a request holds it.

    `option` names it. Raises Unusable if it is missing or another.
    """
    if file is None:
        raise Unusable(f"the picture was generated from a file with the hash {hash}: name that file with {option}")
    if (found := picture_hash(_read(file))) != hash:
        raise Unusable(f"{file} is not the file that the picture was generated from: its hash is {found}, not {hash}")
    return sent(file)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise Unusable(f"cannot read {file}: {error.strerror}") from None
