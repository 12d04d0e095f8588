"""The folder in which a machine keeps what is made once: compiled models, kernels, and what else takes long."""

import hashlib
import logging
import os
import platform
import stat
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import diffusers
import torch

logger = logging.getLogger("ray.serve")

_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_KERNELS_VARIABLE = "TRITON_CACHE_DIR"
_OWN_CACHE = "~/.cache/parallel-sdxl"
_KEPT = "parallel-sdxl"
"""The folder in the cache of whole models, and of what else is made once."""


def use_compile_cache(folder: str | None) -> None:
    """Make this process's compiler keep its results in a private folder in `folder`; `~` is the home folder.

    None: in the user's cache. Where there can be no such folder, its results are kept in a temporary one.
    """
    from torch._inductor.runtime.compile_tasks import _set_triton_ptxas_path

    try:
        path = _private(Path(folder or _OWN_CACHE).expanduser())
    except (OSError, RuntimeError) as error:
        logger.warning("engine.compile_cache is not used, so that each start compiles again: %s", error)
        # Not torch's default: others can guess its name in the shared temporary folder, and create it first.
        path = Path(tempfile.mkdtemp(prefix="parallel-sdxl-"))
    os.environ[_CACHE_VARIABLE] = str(path)
    os.environ[_KERNELS_VARIABLE] = str(path / "triton")  # of Triton kernels that no model compiles
    # torch does so in processes that read compiled models, not in one that compiles them: those that come later would
    # compile kernels of ours again, with another assembler.
    _set_triton_ptxas_path()


def _private(folder: Path) -> Path:
    """Return a folder in `folder` that only this user can enter, since what it holds runs as code. Raises OSError."""
    path = folder / f"user-{os.getuid()}"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise PermissionError(f"{path} must be a folder of this user, since what it holds runs as code; remove it")
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise PermissionError(f"others can enter {path}, and what it holds runs as code; remove it")
    if not os.access(path, os.W_OK):
        raise PermissionError(f"{path} cannot be written to")
    return path


def keep(path: Path, save: Callable[[str], object]) -> None:
    """Write a file atomically, with a function that takes its name: a reader never sees a partial one.

    Where that fails a warning is logged: what is not kept is made again.
    """
    unfinished: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem)
        os.close(descriptor)
        unfinished = Path(name)
        save(name)
        unfinished.replace(path)
    except Exception:
        logger.warning("%s could not be saved; the next start makes it again", path, exc_info=True)
        if unfinished:
            unfinished.unlink(missing_ok=True)


def kept_file(name: str, suffix: str, device: torch.device, depends: Iterable[object]) -> Path:
    """Return the file for what is made once for this folder. Its name is a hash of everything that it depends on.

    Beside `depends` these are versions, settings, this code and the device.
    """
    digest = hashlib.sha256("\n".join(map(str, (_surroundings(device), *depends))).encode()).hexdigest()
    return _folder() / f"{name}-{digest[:32]}.{suffix}"


def _folder() -> Path:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir(), _KEPT)


def _surroundings(device: torch.device) -> tuple[object, ...]:
    if device.type == "cuda":
        machine: tuple[object, ...] = (torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))
    else:
        machine = (torch.backends.cpu.get_cpu_capability(), os.cpu_count(), torch.get_num_threads())
    settings = sorted(
        (name, value)
        for name, value in os.environ.items()
        if name.startswith("TORCHINDUCTOR_") and name != _CACHE_VARIABLE
    )
    return platform.python_version(), torch.__version__, diffusers.__version__, settings, _code(), machine


@cache
def _code() -> str:
    code = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        code.update(file.read_bytes())
    return code.hexdigest()
