"""How a model runs: its own code, or compiled ahead of time for the shapes that are warmed up, and kept in a folder for later starts.

`torch.compile` alone keeps kernels, but traces the model anew at each start, which for SDXL's UNet takes longer than all
else. Here the whole program is kept: it is compiled once on a machine, and every other replica and start loads it.
"""

import hashlib
import logging
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import diffusers
import torch
from filelock import FileLock
from torch import nn

logger = logging.getLogger("ray.serve")

_MOST_STATIC_ROWS = 2
"""One image has a row or, with guidance, two: its program knows their number, which is faster. Larger numbers share one."""

Function = Callable[..., torch.Tensor]
"""Takes a model and tensors whose first dimension are rows."""

_Shape = tuple[int | None, ...]

Output_co = TypeVar("Output_co", covariant=True)


class Program(Protocol[Output_co]):
    """A function of tensors on the device."""

    def __call__(self, *inputs: torch.Tensor) -> Output_co: ...

    def warm_up(self, *inputs: torch.Tensor) -> None:
        """Get ready for inputs of this shape, however long it takes; a call alone never does what would hold up other slots."""


def use_compile_cache(folder: str) -> None:
    """Make the compiler of this process keep its results in `folder`, where `~` is the home folder, and look there first."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder).expanduser())


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
        """Take a function that is defined at the top of its file, one of diffusers' models, and options of torch's compiler."""
        super().__init__(function, module)
        self._options = dict(options or {})
        self._programs: dict[_Shape, Function] = {}

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self._programs.get(_shape(inputs), self._function)(self._module, *inputs)

    def warm_up(self, *inputs: torch.Tensor) -> None:
        """Load the program for inputs of this shape, or compile it; where another process is at it, wait for that one's."""
        shape = _shape(inputs)
        if shape in self._programs:
            return
        path = self._path(inputs)
        self._programs[shape] = _load(path) or self._compile_once(inputs, path)

    def _compile_once(self, inputs: tuple[torch.Tensor, ...], path: Path) -> Function:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            return _load(path) or self._compile(inputs, path)

    def _compile(self, inputs: tuple[torch.Tensor, ...], path: Path) -> Function:
        logger.info("compiling %s for %s, once for this folder: a large model takes minutes", path, tuple(inputs[0].shape))
        for part in inputs:
            if len(part) > _MOST_STATIC_ROWS:
                torch._dynamo.mark_static(part, list(range(1, part.dim())))
                torch._dynamo.mark_dynamic(part, 0)
            else:
                torch._dynamo.mark_static(part)
        # All else that a program depends on is in its file's name.
        options = {**self._options, "guard_filter_fn": _of_shapes}
        with torch._dynamo.config.patch(enable_aot_compile=True):
            compiler: Any = torch.compile(self._function, fullgraph=True, options=options)
            program: Any = compiler.aot_compile(((self._module, *inputs), {}))
        try:
            program.save_compiled_function(str(path))
        except Exception:
            logger.warning("a compiled program could not be kept in %s; the next start compiles it again", path, exc_info=True)
        return cast("Function", program)

    def _path(self, inputs: tuple[torch.Tensor, ...]) -> Path:
        """Return where the program is kept: a name of all that it depends on."""
        config = cast("Mapping[str, Any]", self._module.config)
        tensors = [*self._module.named_parameters(), *self._module.named_buffers()]
        parts = (
            _surroundings(),
            self._function.__qualname__,
            self._options,
            self._module,
            {key: value for key, value in config.items() if not key.startswith("_")},  # the others are paths
            [(name, *_layout(tensor)) for name, tensor in tensors],
            [_layout(part) for part in inputs] if len(inputs[0]) <= _MOST_STATIC_ROWS else [_layout(part[:1]) for part in inputs],
            _shape(inputs),
        )
        digest = hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()
        return _folder() / f"{self._function.__qualname__}-{digest[:32]}.bin"


def _shape(inputs: tuple[torch.Tensor, ...]) -> _Shape:
    rows, *others = inputs[0].shape
    return (rows if rows <= _MOST_STATIC_ROWS else None, *others)


def _of_shapes(guards: Sequence[Any]) -> list[bool]:
    return [guard.guard_type == "SHAPE_ENV" for guard in guards]


def _layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device.type


def _load(path: Path) -> Function | None:
    if not path.exists():
        return None
    try:
        with path.open("rb") as file:
            program: Function = torch.compiler.load_compiled_function(file)
    except Exception:
        logger.warning("the compiled program in %s cannot be used here; it is compiled again", path, exc_info=True)
        return None
    return program


def _folder() -> Path:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir(), "parallel-sdxl")


@cache
def _surroundings() -> tuple[str, ...]:
    """Everything outside of the model that a program depends on: versions, this code, the device."""
    gpu = f"{torch.cuda.get_device_name()} {torch.cuda.get_device_capability()}" if torch.cuda.is_available() else "none"
    code = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        code.update(file.read_bytes())
    return platform.python_version(), torch.__version__, diffusers.__version__, code.hexdigest(), gpu, torch.backends.cpu.get_cpu_capability()
