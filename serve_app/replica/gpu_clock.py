"""How long the device works, by its own clock: to launch work takes other times than to do it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

Tell = Callable[[float], None]
"""Takes seconds."""


@dataclass(frozen=True, slots=True)
class _Timed:
    began: torch.cuda.Event
    ended: torch.cuda.Event
    tell: Tell


class GpuClock:
    """Times work on the device without waiting for it. On the CPU, work is done when it returns."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._lock = threading.Lock()  # also held while telling: after `settle` all that is done has been told
        self._timed: list[_Timed] = []

    @contextmanager
    def timing(self, tell: Tell) -> Iterator[None]:
        """Time what the body launches on its current stream; what it raises costs nothing.

        A later `settle` tells, on the CPU the end of the body.
        """
        if not self._on_gpu:
            started = time.perf_counter()
            yield
            with self._lock:
                tell(time.perf_counter() - started)
            return
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        yield
        ended.record()
        with self._lock:
            self._timed.append(_Timed(began, ended, tell))

    def settle(self) -> None:
        """Tell of all that the device has done by now. From any thread. Raises errors of the device."""
        with self._lock:
            timed, self._timed = self._timed, []
            for one in timed:
                if one.ended.query():
                    one.tell(one.began.elapsed_time(one.ended) / 1000)
                else:
                    self._timed.append(one)
