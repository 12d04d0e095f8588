"""Brings the tensors of an adapter to the device: thousands of them in one block of memory, and in few transfers."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

_APART = 512
"""Bytes: tensors start at multiples of it, as torch's own do on GPUs. Kernels choose by it, and bits must not depend on
where in its file a tensor lies."""
_AT_ONCE = 2**25


class Packer:
    """Copies tensors to a device beside what it works on. One thread at a time may call it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        on_gpu = device.type == "cuda"
        # Made once: to pin memory holds up the device. A stream of its own: on the engine's, each copy would wait for
        # all the steps that were launched before it.
        self._pinned = torch.empty(_AT_ONCE if on_gpu else 0, dtype=torch.uint8, pin_memory=on_gpu)
        self._stream = torch.cuda.Stream(device) if on_gpu else None

    def pack(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return copies of dense tensors of the CPU, in their own types and order of elements."""
        *starts, size = accumulate((-(-tensor.nbytes // _APART) * _APART for tensor in tensors), initial=0)
        with torch.cuda.stream(self._stream):
            block = torch.empty(size, dtype=torch.uint8, device=self._device)
            self._fill(block, tensors, starts)
        if self._stream is not None:
            # The engine's stream reads it: its memory must not be given away before that stream is done.
            block.record_stream(torch.cuda.default_stream(self._device))
        return [_place(block, start, tensor) for start, tensor in zip(starts, tensors, strict=True)]

    def _fill(self, block: Tensor, tensors: Sequence[Tensor], starts: Sequence[int]) -> None:
        room = len(self._pinned)
        begin = end = 0  # of what lies in pinned memory, by its places in the block
        for start, tensor in zip(starts, tensors, strict=True):
            if begin == end or start + tensor.nbytes - begin > room:
                self._send(block[begin:end])
                begin = end = start
            if tensor.nbytes > room:  # all, where none is pinned
                _place(block, start, tensor).copy_(tensor)
                begin = end = start + tensor.nbytes
            else:
                _place(self._pinned, start - begin, tensor).copy_(tensor)
                end = start + tensor.nbytes
        self._send(block[begin:end])

    def _send(self, part: Tensor) -> None:
        """Fill a part of a block with what lies in pinned memory, and wait until that may be overwritten."""
        part.copy_(self._pinned[: len(part)], non_blocking=True)
        if self._stream is not None:
            self._stream.synchronize()


def _place(block: Tensor, start: int, tensor: Tensor) -> Tensor:
    """Return where a tensor lies in a block."""
    own = block[start : start + tensor.nbytes].view(tensor.dtype)
    return own.as_strided(tensor.shape, tensor.stride())
