"""An engine whose surroundings fail, whose work never ends, or that fails itself."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from serve_app.errors import SlotFailed, SlotReturned
from serve_app.messages import Generated, Preview, Progress
from serve_app.replica import engine as engine_module
from serve_app.replica.batching import Batcher
from serve_app.replica.denoise import Denoiser
from tests.conftest import Collector, MakeEngine, RunningEngine, Watch, make_slot

ENCODE = "serve_app.replica.output_processor.encode_picture"
ENCODE_BARE = "serve_app.replica.output_processor.encode_bare"


class Block:
    """Work that does not end before the test lets it."""

    def __init__(self, work: Callable[..., Any]) -> None:
        self._work = work
        self._begun = threading.Event()
        self._end = threading.Event()

    def __call__(self, *inputs: Any) -> Any:
        self._begun.set()
        assert self._end.wait(60)
        return self._work(*inputs)

    def wait(self) -> None:
        assert self._begun.wait(60)

    def end(self) -> None:
        self._end.set()


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Iterator[Block]:
    block = Block(Denoiser.predict)
    monkeypatch.setattr(Denoiser, "predict", lambda *inputs: block(*inputs))
    yield block
    block.end()


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch) -> Iterator[Block]:
    block = Block(lambda *_: "a file")
    monkeypatch.setattr(ENCODE, block)
    yield block
    block.end()


def wait_for_a_stall(running: RunningEngine) -> None:
    deadline = time.monotonic() + 30
    while running.engine.fault is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        running.engine.look_for_stalls()


@pytest.mark.parametrize("method", ["stage", "step", "begun", "ended", "wasted"])
@pytest.mark.parametrize("failing", [False, True])
def test_an_observer_that_raises_costs_nothing(
    make_engine: MakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
    failing: bool,
) -> None:
    def broken(*_: Any) -> None:
        raise OSError("no metrics")

    monkeypatch.setattr(Watch, method, broken)
    running = make_engine(max_batch_size=2)
    if failing:
        with monkeypatch.context() as patch:
            patch.setattr(Denoiser, "predict", broken)
            with pytest.raises(SlotFailed):
                running.submit(make_slot()).result()
    pictures = running.generate(*[make_slot(seed=seed, preview_steps=frozenset({1, 2})) for seed in range(3)])
    assert all(isinstance(picture, Generated) for picture in pictures)
    running.engine.check()
    if failing or method != "wasted":
        assert "no metrics" in caplog.text


@pytest.mark.parametrize("kind", [Progress, Preview, Generated, SlotFailed])
def test_a_receiver_that_raises_costs_others_nothing(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, kind: type
) -> None:
    told = threading.Event()

    def broken(event: object) -> None:
        if isinstance(event, kind):
            told.set()
            raise OSError("the loop is closed")

    running = make_engine(max_batch_size=2)
    if kind is SlotFailed:
        for encoder in (ENCODE, ENCODE_BARE):
            monkeypatch.setattr(encoder, broken_encoder)
    running.engine.submit(make_slot(preview_steps=frozenset({1, 2, 3})), broken)
    assert told.wait(60)
    monkeypatch.undo()
    assert isinstance(running.submit(make_slot()).result(), Generated)
    running.engine.check()


def broken_encoder(*_: Any) -> str:
    raise OSError("no encoder")


def test_a_receiver_that_raises_while_its_batch_fails_costs_others_nothing(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise OSError("broken")

    running = make_engine(max_batch_size=2, images_per_call=2)
    with monkeypatch.context() as patch:
        patch.setattr(Denoiser, "predict", broken)
        other = Collector()
        with running.engine._changed:
            running.engine.submit(make_slot(), broken)
            running.engine.submit(make_slot(), other.post)
        with pytest.raises(SlotFailed):
            other.result()
    assert isinstance(running.submit(make_slot()).result(), Generated)


@pytest.mark.parametrize("place", ["next_calls", "drop_cancelled", "admit"])
def test_when_the_loop_ends_by_an_error_all_its_slots_are_returned(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    def broken(_: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Batcher, place, broken)
    running = make_engine(max_batch_size=1)
    for collector in running.submit_together(*[make_slot()] * 3):
        with pytest.raises(SlotReturned):
            collector.result()
    with pytest.raises(RuntimeError, match="thread has ended"):
        running.engine.check()
    with pytest.raises(SlotReturned):
        running.submit(make_slot())
    assert "a bug" in caplog.text
    assert running.watch.outcomes == ["returned"] * 3
    assert (running.engine.load().active, running.engine.load().waiting) == (0, 0)


def test_a_step_that_never_ends_returns_all_slots(
    make_engine: MakeEngine, step: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "_STOP_S", 0.1)
    running = make_engine(max_batch_size=1, stall_timeout_s=0.3)
    active, waiting = running.submit_together(make_slot(), make_slot())
    step.wait()
    wait_for_a_stall(running)
    for collector, begun in ((active, True), (waiting, False)):
        with pytest.raises(SlotReturned, match="a step of 2 x 64 x 64 has not ended") as returned:
            collector.result()
        assert returned.value.begun is begun
    with pytest.raises(SlotReturned):
        running.submit(make_slot())
    with pytest.raises(RuntimeError, match="has not ended"):
        running.engine.check()
    assert (running.engine.load().active, running.engine.load().waiting) == (0, 0)
    began = time.monotonic()
    running.engine.stop()
    assert time.monotonic() - began < 5, "stopping does not wait for it"
    step.end()
    assert running.engine._thread
    running.engine._thread.join(30)
    assert not running.engine._thread.is_alive(), "and if it ends after all, the loop does too"
    assert running.watch.outcomes == ["returned"] * 2


def test_a_file_that_is_never_finished_returns_all_slots(make_engine: MakeEngine, file: Block) -> None:
    running = make_engine(stall_timeout_s=0.5)
    collector = running.submit(make_slot())
    file.wait()
    wait_for_a_stall(running)
    with pytest.raises(SlotReturned, match="encoding a png file of 64 x 64 has not ended") as returned:
        collector.result()
    assert returned.value.begun
    file.end()
    running.engine.stop()
    assert running.watch.outcomes == ["returned"]


def test_a_preview_that_is_never_finished_returns_all_slots(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = Block(lambda *_: "a preview")
    monkeypatch.setattr("serve_app.replica.output_processor.encode_preview", block)
    running = make_engine(stall_timeout_s=0.5)
    collector = running.submit(make_slot(preview_steps=frozenset({1}), num_inference_steps=998))
    block.wait()
    wait_for_a_stall(running)
    block.end()
    with pytest.raises(SlotReturned, match="encoding a preview has not ended"):
        collector.result()


def test_stopping_returns_what_has_not_ended(make_engine: MakeEngine, step: Block) -> None:
    running = make_engine(max_batch_size=1)
    collectors = running.submit_together(make_slot(), make_slot())
    step.wait()
    stopping = threading.Thread(target=running.engine.stop)
    stopping.start()
    step.end()
    stopping.join(30)
    for collector in collectors:
        with pytest.raises(SlotReturned, match="stopped") as returned:
            collector.result()
        assert not returned.value.begun, "it is not why"
    with pytest.raises(SlotReturned):
        running.submit(make_slot())


def test_an_image_cancelled_while_its_file_is_encoded_is_cancelled_and_not_sent(
    make_engine: MakeEngine, file: Block
) -> None:
    running, collector = make_engine(), Collector()
    job = running.engine.submit(make_slot(), collector.post)
    file.wait()
    running.engine.cancel(job)
    assert running.watch.outcomes == ["cancelled"]
    file.end()
    running.submit(make_slot()).result()
    assert running.watch.outcomes == ["cancelled", "succeeded"]
    assert running.engine.load().finished == 1
    assert not any(isinstance(event, Generated) for event in collector.posted)
