"""How a model runs: eagerly, or compiled ahead of time for the shapes that are warmed up.

`torch.compile` caches kernels, but traces the model again at each start, and for SDXL's UNet tracing takes longest.
Here the whole compiled model is saved to a folder. It is compiled once per machine; every other replica and every later
start loads it.
"""

import copy
import hashlib
import logging
import os
import platform
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar, cast

import diffusers
import torch
from filelock import FileLock
from torch import nn

logger = logging.getLogger("ray.serve")

_MOST_STATIC_ROWS = 2
"""Up to this many rows, each number of rows has its own compiled model, which is faster. Larger numbers share one.

An image takes one row, or two with guidance.
"""

_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_KERNELS_VARIABLE = "TRITON_CACHE_DIR"
_OWN_CACHE = "~/.cache/parallel-sdxl"
_KEPT = "parallel-sdxl"
"""The folder in the cache of whole models, and of what else is made once."""

_LONGEST_COMPILATION_S = 900.0
"""How long a process waits for another process to compile a model before it compiles the model itself."""

BY_RULE: Mapping[str, bool] = {"deterministic": True}
"""The compiler option that makes choices by rule instead of by timing, if they affect the result.

By default the compiler tries several block sizes for a reduction, and each process keeps the fastest one it measured.
The block size decides the order of a sum: four H100s with the same compiled model generated three different images for
one seed. Setting this process-wide has no effect: tracing calls `torch.use_deterministic_algorithms`, which resets it.
"""

Function = Callable[..., torch.Tensor]
"""Takes a model and tensors whose first dimension is the rows, or a part of them."""

_Shapes = tuple[tuple[int | Fraction, ...], ...]
"""The shapes of all inputs. Fractions as the first number of each mean any number of rows: its part of the first's."""

Output_co = TypeVar("Output_co", covariant=True)


class Forward(Protocol[Output_co]):
    """A function of tensors on the device."""

    def __call__(self, *inputs: torch.Tensor) -> Output_co: ...

    def warm_up(self, *inputs: torch.Tensor) -> None:
        """Prepare for inputs of these shapes. This may take minutes; calls must not, since they hold up other slots."""


def use_compile_cache(folder: str | None) -> None:
    """Make this process's compiler keep its results in a private folder in `folder`; `~` is the home folder.

    None: in the user's cache. Where there can be no such folder, its results are kept in a temporary one.
    """
    try:
        path = _private(Path(folder or _OWN_CACHE).expanduser())
    except (OSError, RuntimeError) as error:
        logger.warning("engine.compile_cache is not used, so that each start compiles again: %s", error)
        # Not torch's default: others can guess its name in the shared temporary folder, and create it first.
        path = Path(tempfile.mkdtemp(prefix="parallel-sdxl-"))
    os.environ[_CACHE_VARIABLE] = str(path)
    os.environ[_KERNELS_VARIABLE] = str(path / "triton")  # of Triton kernels that no model compiles


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


class Eager:
    """Runs a model eagerly."""

    def __init__(self, function: Function, module: nn.Module) -> None:
        self._function = function
        self._module = module

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self._function(self._module, *inputs)

    def on(self, module: nn.Module) -> Self:
        """Return this forward of a module with other weights. What is compiled is shared: it depends on none."""
        other = copy.copy(self)
        other._module = module
        return other

    def warm_up(self, *inputs: torch.Tensor) -> None:
        pass


class Compiled(Eager):
    """Runs a compiled model. Shapes that were not warmed up run eagerly: compiling them would hold up every slot."""

    def __init__(self, function: Function, module: nn.Module, options: Mapping[str, Any] | None = None) -> None:
        """Take a function, one of diffusers' models, and options of torch's compiler.

        The function must be defined at the top level of its file.
        """
        super().__init__(function, module)
        self._options = dict(options or {})
        self._by_shape: dict[_Shapes, Any] = {}

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        for shapes in _choices(inputs):
            if (compiled := self._by_shape.get(shapes)) and self._fits(compiled, inputs):
                output: torch.Tensor = compiled(self._module, *inputs)
                return output
        return super().__call__(*inputs)

    def warm_up(self, *inputs: torch.Tensor) -> None:
        """Load the model compiled for these shapes, or compile it; wait if another process is compiling it."""
        for shapes in _choices(inputs):
            if shapes not in self._by_shape:
                path = self._path(inputs, shapes)
                self._by_shape[shapes] = _load(path) or self._compile_once(inputs, shapes, path)
            if self._fits(self._by_shape[shapes], inputs):
                return

    def _fits(self, compiled: Any, inputs: tuple[torch.Tensor, ...]) -> bool:
        return bool(compiled.guard_check(self._module, *inputs))

    def _compile_once(self, inputs: tuple[torch.Tensor, ...], shapes: _Shapes, path: Path) -> Any:
        with ExitStack() as held:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(path.with_suffix(".lock"), timeout=_LONGEST_COMPILATION_S))
            # Some network file systems have no locks. A timeout is an OSError too.
            except (OSError, NotImplementedError):
                logger.warning("%s cannot be locked; it may be compiled more than once", path, exc_info=True)
            if not (compiled := _load(path)):
                logger.info(
                    "compiling %s for %s, once for this folder: a large model takes minutes",
                    path,
                    tuple(inputs[0].shape),
                )
                compiled = self._compile(inputs, shapes)
                # Kernels without sums still time block sizes at their first launch. torch saves the fastest in the
                # same folder, so processes that load the model do not time them again.
                compiled(self._module, *inputs)
                keep(path, lambda name: compiled.save_compiled_function(name))
            return compiled

    def _compile(self, inputs: tuple[torch.Tensor, ...], shapes: _Shapes) -> Any:
        from serve_app.replica.compiler_choices import (
            our_choices,  # imports the compiler, which only a compilation needs
        )

        given = [part.detach() for part in inputs]  # the marks below must not affect other compilations
        for part in given:
            if _any_rows(shapes):
                torch._dynamo.mark_static(part, list(range(1, part.dim())))
                torch._dynamo.mark_dynamic(part, 0)
            else:
                torch._dynamo.mark_static(part)
        # Only shapes are guarded. The file's name contains everything else that a compiled model depends on.
        options = {**self._options, **BY_RULE, "guard_filter_fn": _of_shapes}
        with torch._dynamo.config.patch(enable_aot_compile=True), our_choices():
            compiler: Any = torch.compile(self._function, fullgraph=True, options=options)
            return compiler.aot_compile(((self._module, *given), {}))

    def _path(self, inputs: tuple[torch.Tensor, ...], shapes: _Shapes) -> Path:
        config = cast("Mapping[str, Any]", self._module.config)
        tensors = [*self._module.named_parameters(), *self._module.named_buffers()]
        depends = (
            self._function.__qualname__,
            self._options,
            self._module,
            {key: value for key, value in config.items() if not key.startswith("_")},  # the others are paths
            [(name, *_layout(tensor)) for name, tensor in tensors],
            [_layout(part[:1] if _any_rows(shapes) else part) for part in inputs],
            shapes,
        )
        return kept_file(self._function.__qualname__, "bin", inputs[0].device, depends)


def _choices(inputs: tuple[torch.Tensor, ...]) -> Sequence[_Shapes]:
    """Return the shapes that a model for these inputs may be compiled for, the preferred one first.

    For many rows that is any number of rows, or this number if the compiler finds that the number matters.
    """
    exact = tuple(tuple(part.shape) for part in inputs)
    if (most := len(inputs[0])) <= _MOST_STATIC_ROWS:
        return [exact]
    return [tuple((Fraction(rows, most), *others) for rows, *others in exact), exact]


def _any_rows(shapes: _Shapes) -> bool:
    return isinstance(shapes[0][0], Fraction)


def _of_shapes(guards: Sequence[Any]) -> list[bool]:
    return [guard.guard_type == "SHAPE_ENV" for guard in guards]


def _layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device.type


def _load(path: Path) -> Any:
    """Return the compiled model in a file, or None."""
    if not path.exists():
        return None
    started = time.perf_counter()
    try:
        with path.open("rb") as file:
            compiled = torch.compiler.load_compiled_function(file)
    except Exception:
        logger.warning("the compiled model in %s cannot be loaded here and is compiled again", path, exc_info=True)
        return None
    logger.info("compiled model %s read in %.1f s", path.stem, time.perf_counter() - started)
    return compiled


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
