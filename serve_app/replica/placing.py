"""Puts weights on the device while the next model is read.

Reading is Python, and copying is not. Copied one by one, tensors would wait for the interpreter thousands of times: so
the memory for them is made first, and then a thread fills many in one call.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import nn

_AT_ONCE = 2**29
"""How many bytes lie on the device in the type of the file until they are converted."""
_ALIGNMENT = 256


class Placer:
    """Takes models to a device, in a type. They are there after `wait`."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self.dtype = device, dtype
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="placing")
        # The first that is asked of a GPU takes a third of a second, in which files can be found and read.
        self._placing: list[Future[Any]] = [self._thread.submit(lambda: torch.empty(1, device=device))]

    def place(self, model: nn.Module) -> None:
        """Begin to place a model, whose weights must not be used before `wait`."""
        if self._device.type == "cpu":
            model.to(self.dtype)  # what needs no other type stays in its file until it is used
            return
        self._placing += [self._thread.submit(fill) for fill in begin(model, self._device, self.dtype)]

    def wait(self) -> None:
        """Return when all models are placed. Raises errors of the device."""
        self._thread.shutdown()
        for placing in self._placing:
            placing.result()


def begin(
    model: nn.Module, device: torch.device, dtype: torch.dtype, at_once: int = _AT_ONCE
) -> Iterator[Callable[[], None]]:
    """Give a model memory on a device, and yield what fills it: functions to be called in this order.

    Floats are converted on the device: a GPU does it in no time, a CPU takes longer than everything else here.
    """
    groups = list(_groups(model, at_once))
    most = max((sum(map(_room, group)) for group in groups), default=0)
    staging = torch.empty(most, dtype=torch.uint8, device=device)
    for tensors in groups:
        theirs = [tensor.data for tensor in tensors]
        ours = [
            torch.empty_like(tensor, dtype=dtype if tensor.is_floating_point() else tensor.dtype, device=device)
            for tensor in theirs
        ]
        for tensor, own in zip(tensors, ours, strict=True):
            tensor.data = own
        yield _Filling(theirs, ours, _parts(staging, theirs))


class _Filling:
    """Copies tensors to a device, and there into others of the same shapes. Several share the memory of `near`."""

    def __init__(self, theirs: list[torch.Tensor], ours: list[torch.Tensor], near: list[torch.Tensor]) -> None:
        self._theirs, self._ours, self._near = theirs, ours, near

    @torch.inference_mode()  # whoever loads a model may be in it, and what is made there cannot be filled outside
    def __call__(self) -> None:
        torch._foreach_copy_(self._near, self._theirs, non_blocking=True)
        torch._foreach_copy_(self._ours, self._near)


def _groups(model: nn.Module, at_once: int) -> Iterator[list[torch.Tensor]]:
    """Yield a model's tensors, in groups of so many bytes or of one tensor."""
    group: list[torch.Tensor] = []
    for tensor in dict.fromkeys((*model.parameters(), *model.buffers())):
        if group and sum(map(_room, group)) + _room(tensor) > at_once:
            yield group
            group = []
        group.append(tensor)
    if group:
        yield group


def _room(tensor: torch.Tensor) -> int:
    return -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT


def _parts(staging: torch.Tensor, like: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return parts of `staging` of the types and shapes of other tensors."""
    parts, start = [], 0
    for tensor in like:
        parts.append(staging[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
        start += _room(tensor)
    return parts
