"""What each image costs, with clocks of our own."""

import time
from dataclasses import dataclass, field
from itertools import count

import pytest
import torch

from serve_app.messages import Loss, Stage
from serve_app.replica.meter import Bill, Meter
from serve_app.replica.observer import Silent

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@dataclass
class Observed(Silent):
    stages: list[tuple[Stage, float]] = field(default_factory=list)
    steps: list[tuple[float, int, tuple[int, int]]] = field(default_factory=list)
    lost: list[tuple[Loss, float]] = field(default_factory=list)

    def stage(self, stage: Stage, seconds: float) -> None:
        self.stages.append((stage, seconds))

    def step(self, seconds: float, images: int, size: tuple[int, int]) -> None:
        self.steps.append((seconds, images, size))

    def wasted(self, loss: Loss, seconds: float) -> None:
        self.lost.append((loss, seconds))


class Device:
    """A GPU whose work ends when the test says so. Each piece takes as many seconds as events lie apart."""

    def __init__(self) -> None:
        self.times = count(0, 2)
        self.done = False

    def event(self, *, enable_timing: bool) -> "Event":
        assert enable_timing
        return Event(self)


@dataclass
class Event:
    device: Device
    at: int = -1

    def record(self) -> None:
        self.at = next(self.device.times)

    def query(self) -> bool:
        return self.device.done

    def elapsed_time(self, later: "Event") -> float:
        assert self.device.done, "this would be an error of CUDA"
        return 1000.0 * (later.at - self.at)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    monkeypatch.setattr(torch.cuda, "Event", device.event)
    return device


def test_what_images_share_is_charged_to_them_in_equal_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", count(0, 3).__next__)
    observed, bills = Observed(), [Bill(), Bill()]
    meter = Meter(CPU, observed)
    with meter.charging("unet", bills, (64, 128)):
        pass
    with meter.charging("vae", bills[:1]):
        pass
    assert [bill.seconds for bill in bills] == [4.5, 1.5]
    assert observed.stages == [("unet", 3), ("vae", 3)]
    assert observed.steps == [(3, 2, (64, 128))]


def test_what_fails_costs_nothing() -> None:
    observed, bill = Observed(), Bill()
    with pytest.raises(ValueError, match="no"), Meter(CPU, observed).charging("unet", [bill], (64, 64)):
        raise ValueError("no")
    assert (bill.seconds, observed.stages) == (0, [])


def test_a_gpu_is_timed_by_its_own_clock_and_never_waited_for(device: Device) -> None:
    observed, bill = Observed(), Bill()
    meter = Meter(GPU, observed)
    with meter.charging("unet", [bill], (64, 64)):
        pass
    meter.settle()
    assert bill.seconds == 0, "the device is still at work"
    device.done = True
    meter.settle()
    meter.settle()
    assert bill.seconds == 2
    assert observed.steps == [(2, 1, (64, 64))]


def test_images_side_by_side_are_charged_their_part_of_the_gpu_but_all_of_the_cpu(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "perf_counter", count(0, 2).__next__)
    device.done, bills = True, [Bill(), Bill()]
    for bill, kind in zip(bills, (GPU, CPU), strict=True):
        meter = Meter(kind, Silent())
        with meter.charging("unet", [bill], (64, 64), at_once=2):
            pass
        meter.settle()
    assert [bill.seconds for bill in bills] == [1, 2]


def test_the_bill_of_a_cancelled_image_is_wasted_and_so_is_what_comes_later(device: Device) -> None:
    observed, bill = Observed(), Bill()
    meter = Meter(GPU, observed)
    device.done = True
    with meter.charging("unet", [bill], (64, 64)):
        pass
    meter.settle()
    with meter.charging("unet", [bill], (64, 64)):
        pass
    meter.ended(bill, "cancelled")
    meter.settle()
    assert observed.lost == [("cancelled", 2), ("cancelled", 2)]


def test_nothing_is_wasted_on_a_finished_image(device: Device) -> None:
    observed, bill = Observed(), Bill()
    meter = Meter(GPU, observed)
    with meter.charging("preview", [bill]):
        pass
    meter.ended(bill, "succeeded")
    device.done = True
    meter.settle()
    assert observed.lost == []
