"""What each image costs: device time, charged to the images that share it."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from serve_app.messages import End, Loss, Stage
from serve_app.replica.gpu_clock import GpuClock
from serve_app.replica.observer import Observer


class Bill:
    """The device time of one image, in seconds; `loss` says why it is wasted, if it is."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.loss: Loss | None = None


class Meter:
    """Charges device time to bills and tells an observer. From any thread."""

    def __init__(self, device: torch.device, observer: Observer) -> None:
        self._on_gpu = device.type == "cuda"
        self._clock = GpuClock(device)
        self._observer = observer
        self._lock = threading.Lock()  # guards the bills

    @contextmanager
    def charging(
        self, stage: Stage, bills: Sequence[Bill], size: tuple[int, int] | None = None, at_once: int = 1
    ) -> Iterator[None]:
        """Charge what the device does in the body, in equal parts; with a size (height, width) it is a step.

        `at_once` is how many such pieces of work share a GPU, this one among them; a CPU does one after another.
        """
        sharing = at_once if self._on_gpu else 1
        with self._clock.timing(lambda seconds: self._charge(stage, bills, size, seconds / sharing)):
            yield

    def settle(self) -> None:
        """Charge all that the device has done by now. Raises errors of the device."""
        self._clock.settle()

    def filed(self, seconds: float) -> None:
        """A file has been encoded, on the processor: nobody is charged."""
        self._observer.stage("file", seconds)

    def ended(self, bill: Bill, outcome: End) -> None:
        """An image has ended. What is on its bill, or is charged later, is wasted unless it has succeeded or paused."""
        self._observer.ended(outcome)
        if outcome == "succeeded" or outcome == "paused":
            return
        with self._lock:
            bill.loss, spent = outcome, bill.seconds
        self._observer.wasted(outcome, spent)

    def _charge(self, stage: Stage, bills: Sequence[Bill], size: tuple[int, int] | None, seconds: float) -> None:
        self._observer.stage(stage, seconds)
        if size is not None:
            self._observer.step(seconds, len(bills), size)
        for bill in bills:
            with self._lock:
                bill.seconds += seconds / len(bills)
                loss = bill.loss
            if loss is not None:
                self._observer.wasted(loss, seconds / len(bills))
