"""Lanes: UNet calls that run side by side on a GPU, each on a CUDA stream of its own, so that one fills another's gaps.

All else (prompts, pictures, the VAE) runs on the main stream. CUDA knows an order only within a stream, and torch gives
memory that is free on one to whatever comes next on it: hence `take` and `give`.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Lane:
    """A stream, on which the CPU is one step ahead of the GPU, so that the GPU never waits for it.

    Not further ahead, so that slots can still join and leave between steps. Does nothing on the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._launched: deque[torch.cuda.Event] = deque()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Launch on this lane what is launched while the context is open."""
        with torch.cuda.stream(self._stream):
            yield

    def take(self, *passing: torch.Tensor) -> None:
        """Make what this lane does next come after all that the main stream does so far.

        `passing` are tensors of the main stream that may be dropped before `give`.
        """
        if self._stream is None:
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        for tensor in passing:
            tensor.record_stream(self._stream)

    def give(self, *passing: torch.Tensor) -> None:
        """Make what the main stream does next come after all that this lane does so far.

        Afterwards tensors of the main stream may be dropped that this lane has used. `passing` are tensors of this lane
        that the main stream goes on with.
        """
        if self._stream is None:
            return
        main = torch.cuda.current_stream()
        main.wait_stream(self._stream)
        for tensor in passing:
            tensor.record_stream(main)

    def step_launched(self) -> None:
        """Wait until the GPU has computed the step before the one just launched. Raises errors of the device."""
        if self._stream is None:
            return
        event = torch.cuda.Event(blocking=True)
        event.record(self._stream)
        self._launched.append(event)
        if len(self._launched) > 1:
            self._launched.popleft().synchronize()
