"""How a model runs: its own code, or compiled ahead of time for the shapes that are warmed up.

`torch.compile` alone keeps kernels, but traces the model anew at each start, which for SDXL's UNet takes longer than
all else. Here the whole compiled model is kept in a folder: it is made once on a machine, and every other replica and
later start loads it.
"""

import hashlib
import logging
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import diffusers
import torch
from filelock import FileLock
from torch import nn

logger = logging.getLogger("ray.serve")

_MOST_STATIC_ROWS = 2
"""Up to so many rows, each number has a compiled model that knows it, which is faster; larger numbers share one.

An image has one row or, with guidance, two.
"""

_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_LONGEST_COMPILATION_S = 900.0
"""So long a process waits for another's compilation, before it compiles by itself."""

BY_RULE: Mapping[str, bool] = {"deterministic": True}
"""The option of torch's compiler that chooses by rule whatever can change a bit.

By default it gives a reduction several block sizes, and each process keeps the one that was fastest at its first
launch. A block size decides the order of a sum: four H100s with one kept model generated three pictures of a seed. As
a setting of the process it has no effect: tracing calls `torch.use_deterministic_algorithms`, which resets it.
"""

Function = Callable[..., torch.Tensor]
"""Takes a model and tensors whose first dimension are rows."""

_Shapes = tuple[tuple[int | None, ...], ...]
"""The shapes of all inputs. Where any number of rows will do, the first number of each is None."""

Output_co = TypeVar("Output_co", covariant=True)


class Forward(Protocol[Output_co]):
    """A function of tensors on the device."""

    def __call__(self, *inputs: torch.Tensor) -> Output_co: ...

    def warm_up(self, *inputs: torch.Tensor) -> None:
        """Get ready for inputs of these shapes, however long it takes; a call alone must not hold up other slots."""


def use_compile_cache(folder: str) -> None:
    """Make this process's compiler keep its results in `folder`, and look there first; `~` is the home folder.

    Raises ValueError where there is no such folder and none can be made. A read-only folder is of use as well.
    """
    try:
        path = Path(folder).expanduser()
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"engine.compile_cache: {folder} cannot be made: {error}") from error
    os.environ[_CACHE_VARIABLE] = str(path)


class AsItIs:
    """A model's own code."""

    def __init__(self, function: Function, module: nn.Module) -> None:
        self._function = function
        self._module = module

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self._function(self._module, *inputs)

    def warm_up(self, *inputs: torch.Tensor) -> None:
        pass


class Compiled(AsItIs):
    """A model's code compiled. What was not warmed up runs as it is: a compilation would hold up every slot."""

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
        """Load the model compiled for these shapes, or compile it; wait where another process is compiling it."""
        for shapes in _choices(inputs):
            if shapes not in self._by_shape:
                path = self._path(inputs, shapes)
                self._by_shape[shapes] = _load(path) or self._compile_once(inputs, shapes, path)
            if self._fits(self._by_shape[shapes], inputs):
                return

    def _fits(self, compiled: Any, inputs: tuple[torch.Tensor, ...]) -> bool:
        return bool(compiled.guard_check(self._module, *inputs))

    def _compile_once(self, inputs: tuple[torch.Tensor, ...], shapes: _Shapes, path: Path) -> Any:
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            try:
                held.enter_context(FileLock(path.with_suffix(".lock"), timeout=_LONGEST_COMPILATION_S))
            except (
                OSError,
                NotImplementedError,
            ):  # some network file systems have no locks; a timeout is an OSError too
                logger.warning("%s cannot be locked; it may be compiled more than once", path, exc_info=True)
            if not (compiled := _load(path)):
                logger.info(
                    "compiling %s for %s, once for this folder: a large model takes minutes",
                    path,
                    tuple(inputs[0].shape),
                )
                compiled = self._compile(inputs, shapes)
                # Kernels without sums still try block sizes at their first launch. torch notes the fastest in the
                # same folder, so whoever loads it times nothing.
                compiled(self._module, *inputs)
                _keep(compiled, path)
            return compiled

    def _compile(self, inputs: tuple[torch.Tensor, ...], shapes: _Shapes) -> Any:
        from serve_app.replica.choices import our_choices  # imports the compiler, which only a compilation needs

        given = [part.detach() for part in inputs]  # what is marked here shall not be marked for another compilation
        for part in given:
            if _any_rows(shapes):
                torch._dynamo.mark_static(part, list(range(1, part.dim())))
                torch._dynamo.mark_dynamic(part, 0)
            else:
                torch._dynamo.mark_static(part)
        # All else that a compiled model depends on is in its file's name.
        options = {**self._options, **BY_RULE, "guard_filter_fn": _of_shapes}
        with torch._dynamo.config.patch(enable_aot_compile=True), our_choices():
            compiler: Any = torch.compile(self._function, fullgraph=True, options=options)
            return compiler.aot_compile(((self._module, *given), {}))

    def _path(self, inputs: tuple[torch.Tensor, ...], shapes: _Shapes) -> Path:
        """Return where the compiled model is kept: a name of all that it depends on."""
        config = cast("Mapping[str, Any]", self._module.config)
        tensors = [*self._module.named_parameters(), *self._module.named_buffers()]
        parts = (
            _surroundings(inputs[0].device),
            self._function.__qualname__,
            self._options,
            self._module,
            {key: value for key, value in config.items() if not key.startswith("_")},  # the others are paths
            [(name, *_layout(tensor)) for name, tensor in tensors],
            [_layout(part[:1] if _any_rows(shapes) else part) for part in inputs],
            shapes,
        )
        digest = hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()
        return _folder() / f"{self._function.__qualname__}-{digest[:32]}.bin"


def _choices(inputs: tuple[torch.Tensor, ...]) -> Sequence[_Shapes]:
    """Return the shapes that a model for these inputs may be compiled for, the first choice first.

    Of many rows: any number of them, or, where the compiler has found that their number matters, this one.
    """
    exact = tuple(tuple(part.shape) for part in inputs)
    if len(inputs[0]) <= _MOST_STATIC_ROWS:
        return [exact]
    return [tuple((None, *others) for _, *others in exact), exact]


def _any_rows(shapes: _Shapes) -> bool:
    return shapes[0][0] is None


def _of_shapes(guards: Sequence[Any]) -> list[bool]:
    return [guard.guard_type == "SHAPE_ENV" for guard in guards]


def _layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device.type


def _load(path: Path) -> Any:
    """Return the compiled model that is kept there, or None."""
    if not path.exists():
        return None
    try:
        with path.open("rb") as file:
            return torch.compiler.load_compiled_function(file)
    except Exception:
        logger.warning("the compiled model in %s cannot be used here; it is compiled again", path, exc_info=True)
        return None


def _keep(compiled: Any, path: Path) -> None:
    """Write a compiled model; nobody sees half of it."""
    unfinished = path.with_suffix(f".{os.getpid()}")
    try:
        compiled.save_compiled_function(str(unfinished))
        unfinished.chmod(0o644)  # the folder may be shared by the users of several pods
        unfinished.replace(path)
    except Exception:
        logger.warning(
            "a compiled model could not be kept in %s; the next start compiles it again", path, exc_info=True
        )
        unfinished.unlink(missing_ok=True)


def _folder() -> Path:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir(), "parallel-sdxl")


def _surroundings(device: torch.device) -> tuple[object, ...]:
    """Everything outside of the model that a compiled model depends on: versions, settings, this code, the device."""
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
    for file in sorted(Path(__file__).parent.glob("*.py")):
        code.update(file.read_bytes())
    return code.hexdigest()
