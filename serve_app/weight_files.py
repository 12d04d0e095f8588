"""What a file of weights is that cannot be read as one."""

import re
from pathlib import Path

_DAMAGED = "is not a complete .safetensors file; it may be damaged or cut off, download it again"
_PICKLED = "holds pickled weights, which are never loaded; convert it to .safetensors"
# How files begin. A .safetensors file: 8 bytes with the header's length, then the header's opening brace.
_KINDS = {
    rb".{4}\0{4}\{": _DAMAGED,
    rb"version https://git-lfs": "is a git-lfs pointer, not the file it stands for; fetch that with `git lfs pull`",
    rb"PK\x03\x04|\x80[\x02-\x05]": _PICKLED,
    rb"GGUF": "is a GGUF file; only .safetensors files are supported",
    rb"\Z": "is empty; download it again",
    rb"\s*<": "is a web page, not weights; download it again",
}


def what_it_is(file: Path) -> str:
    """Return what a file is that could not be read as a `.safetensors` file, and what to do."""
    try:
        with file.open("rb") as content:
            start = content.read(64)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return next((words for begins, words in _KINDS.items() if re.match(begins, start, re.DOTALL)), _DAMAGED)
