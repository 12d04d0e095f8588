"""How a model runs: eagerly, or compiled ahead of time for the shapes that are warmed up.

`torch.compile` caches kernels, but traces the model again at each start, and for SDXL's UNet tracing takes longest.
Here the whole compiled model is saved to a folder. It is compiled once per machine; every other replica and every later
start loads it.
"""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar, cast

import torch
from filelock import FileLock
from torch import nn

from serve_app.config import Compile
from serve_app.replica.kept_files import keep, kept_file
from serve_app.replica.kept_models import KeptModels

logger = logging.getLogger("ray.serve")

_MOST_STATIC_ROWS = 2
"""Up to this many rows, each number of rows has its own compiled model, which is faster. Larger numbers share one.

An image takes one row, or two with guidance.
"""

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

    def __init__(
        self,
        function: Function,
        module: nn.Module,
        options: Mapping[str, Any] | None = None,
        kept: KeptModels | None = None,
    ) -> None:
        """Take a function, one of diffusers' models, options of torch's compiler, and what reads compiled models.

        The function must be defined at the top level of its file.
        """
        super().__init__(function, module)
        self._options = dict(options or {})
        self._kept = kept or KeptModels()
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
                self._by_shape[shapes] = self._kept.read(path) or self._compile_once(inputs, shapes, path)
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
            if not (compiled := self._kept.read(path)):
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


def whole(function: Function, module: nn.Module, mode: Compile, kept: KeptModels) -> Forward[torch.Tensor]:
    """Return a model's forward, compiled as a whole if `engine.compile` is `full`."""
    return Compiled(function, module, kept=kept) if mode == "full" else Eager(function, module)


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
