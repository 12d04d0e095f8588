"""Images that pause after a sketch, over a pool that makes sketches at once and pictures when it is told to."""

import asyncio
import time
from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from serve_app import metrics
from serve_app.branches import branched
from serve_app.canvas import canvas_of
from serve_app.errors import InvalidRequest, NotFound, NotPaused, NotReady, ServiceError, TooManyPaused
from serve_app.fanout.accounts import facts_of_end
from serve_app.fanout.sight import PoolStatus
from serve_app.fanout.slot_record import LEAST_KEPT, most_kept
from serve_app.fanout.tickets import work_of
from serve_app.recipe import Changes, Phase, Recipe
from serve_app.schemas import (
    BatchResult,
    CancelledEvent,
    CompletedEvent,
    ErrorEvent,
    FailedEvent,
    ImageEvent,
    PausedEvent,
    ResumedEvent,
    UnfinishedResult,
)
from tests.conftest import make_slot
from tests.fakes import GPU_SECONDS, REPLICA, SKETCH_SECONDS, NoPeers, OneModel
from tests.fakes import sketch as sketch_of
from tests.fanout.studio import ID, Studio, request, wait

OTHER = "11234567-89ab-4cde-8f01-23456789abcd"
KEPT = len(b"state") + LEAST_KEPT


async def test_a_sketch_is_told_and_those_resumed_go_on_from_it() -> None:
    async with Studio().sketching() as studio:
        first, *_ = await studio.told(PausedEvent)
        assert (first.index, first.step, first.num_inference_steps, first.b64_json) == (0, 6, 20, "sketch")
        assert studio.service._admission.unfinished == 0, "others are admitted"
        unfinished = (await studio.service.find(ID)).answer
        assert isinstance(unfinished, UnfinishedResult)
        assert [image.status for image in unfinished.images] == ["paused"] * 3
        assert await studio.resume(0, 2) == [0, 2]
        assert (await studio.service.cancel(ID, 1)).cancelled == [1]
    later = [slot for slot in studio.pool.slots if slot.kept]
    assert sorted(slot.index for slot in later) == [0, 2]
    assert all(slot.kept == sketch_of(make_slot(pause_after=6)).kept and slot.pause_after is None for slot in later)
    kinds = [event.type for event in studio.events if getattr(event, "index", None) == 0]
    assert kinds == ["progress", "paused", "resumed", "progress", "image"]
    assert studio.last.type == "completed"
    assert sorted(studio.metrics.outcomes) == ["cancelled", "succeeded", "succeeded"]


async def test_sketches_are_on_the_bill_and_in_the_line_and_pauses_are_not_in_the_time() -> None:
    lines: list[dict[str, Any]] = []
    studio = Studio()
    account = studio.service._accounts.ended

    def ended(generation: Any, client: str | None) -> None:
        lines.append(facts_of_end(generation))
        account(generation, client)

    studio.service._accounts.ended = ended
    async with studio.sketching():
        await asyncio.sleep(0.5)
        await studio.resume(1)
        await studio.told(ImageEvent)
        await studio.service.cancel(ID)
    (image,) = await studio.told(ImageEvent)
    assert image.gpu_seconds == SKETCH_SECONDS + GPU_SECONDS
    assert isinstance(studio.last, CompletedEvent)
    assert studio.last.timings.gpu == 3 * SKETCH_SECONDS + GPU_SECONDS
    assert studio.last.timings.queue < 0.4
    assert lines[0]["paused"] == 3
    seconds = [value for metric, value in studio.metrics.observed if metric is metrics.IMAGE_SECONDS]
    assert max(seconds) < 0.4, "nobody waits for a service while a person thinks"


async def test_what_is_not_paused_is_refused() -> None:
    release = asyncio.Event()
    async with Studio().sketching() as studio:
        studio.pool.before = lambda slot: wait(release)
        assert await studio.resume(1) == [1]
        with pytest.raises(NotPaused, match="image 1 is"):
            await studio.resume(1)
        await studio.told(ResumedEvent)
        with pytest.raises(NotPaused, match="nothing to resume: image 1 is"):
            await studio.resume(1)
        with pytest.raises(NotFound, match="no image 3"):
            await studio.resume(0, 3)
        assert await studio.resume() == [0, 2], "all that are still paused"
        release.set()
    with pytest.raises(NotFound):
        await studio.resume(1)
    assert len(studio.pool.slots) == 3, "each goes on once"


async def test_a_pause_has_its_end_and_that_is_no_failure() -> None:
    async with Studio(ttl_s=0.1).sketching() as studio:
        ends = await studio.told(CancelledEvent, 3)
    assert {end.error.type for end in ends} == {"expired"}
    assert isinstance(studio.last, CompletedEvent)
    assert studio.metrics.count(metrics.IMAGES, outcome="cancelled", reason="expired") == 3
    assert studio.metrics.outcomes == ["cancelled"] * 3
    assert (await studio.service.find(ID)).answer.images[0].status == "cancelled"


async def test_the_deadline_does_not_run_while_an_image_is_paused() -> None:
    """Nor does it end what waits: the one that is not paused fails at the deadline, the others go on later."""
    hanging = asyncio.Event()
    studio = Studio()
    studio.pool.before = lambda slot: wait(hanging) if slot.index == 0 else asyncio.sleep(0)
    asked = request(timeout_s=0.3)
    async with asyncio.timeout(10), studio.service.open(asked) as reading:
        reader = asyncio.create_task(studio._read(reading.entries))
        (failed,) = await studio.told(FailedEvent)
        assert (failed.index, failed.error.type) == (0, "deadline_exceeded")
        assert len(await studio.told(PausedEvent)) == 2
        passed = time.monotonic()
        await studio.resume(1)
        assert [image.index for image in await studio.told(ImageEvent)] == [1]
        assert studio.pool.deadlines[-1] > passed, "so its replica is told"
        studio.pool.before = lambda slot: wait(hanging)
        await studio.resume(2)
        *_, late = await studio.told(FailedEvent, 2)
        assert (late.index, late.error.type) == (2, "deadline_exceeded"), "what goes on has the rest of its time"
        await reader


async def test_a_request_that_could_keep_too_much_is_refused_until_there_is_room() -> None:
    room = 4 * most_kept(make_slot(width=1024, height=1024))
    async with Studio(max_bytes=room).sketching(width=1024, height=1024) as studio:
        assert studio.service.generations.paused == (3, 3 * KEPT), "what is kept, not what could be"
        async with studio.service.open(request(id=None, width=1024, height=1024)):
            with pytest.raises(TooManyPaused, match="limit of") as refused:
                async with studio.service.open(request(id=None, num_images=2, width=1024, height=1024)):
                    pass
        assert (refused.value.status, refused.value.param) == (429, "pause_after")
        assert studio.metrics.count(metrics.REFUSALS, reason="too_many_paused") == 1
        async with studio.service.open(request(id=None, pause_after=None)):
            pass
        await studio.resume()
    assert studio.service.generations.paused == (0, 0)


async def test_what_they_go_on_from_counts_once_as_long_as_one_is_paused() -> None:
    canvas = canvas_of(Image.new("RGB", (64, 64)), Image.new("L", (64, 64), 255), make_slot(width=64, height=64).recipe)
    assert canvas.nbytes == 64 * 64 * (3 + 1 + 3 + 1), "two pictures and two masks"
    asked = request(width=64, height=64, num_images=2, init_image="sha256:0", mask_image="sha256:1")
    states = 2 * most_kept(make_slot(width=64, height=64))
    for room, fits in ((states + canvas.nbytes - 1, False), (states + canvas.nbytes, True)):
        studio = Studio(max_bytes=room)
        with nullcontext() if fits else pytest.raises(InvalidRequest, match="max_bytes"):
            async with asyncio.timeout(10), studio.service.open(asked, canvas) as reading:
                reader = asyncio.create_task(studio._read(reading.entries))
                await studio.told(PausedEvent, 2)
                assert studio.service.generations.paused == (2, 2 * KEPT + canvas.nbytes)
                await studio.service.cancel(ID)
                await reader
        assert studio.service.generations.paused == (0, 0)


@pytest.mark.parametrize("most", [0, 2 * most_kept(make_slot(width=64, height=64))])
async def test_what_could_never_be_kept_is_not_to_be_tried_again(most: int) -> None:
    with pytest.raises(InvalidRequest, match="max_bytes") as refused:
        async with Studio(max_bytes=most).service.open(request(width=64, height=64)):
            pass
    assert refused.value.param == "pause_after"


async def test_a_drain_does_not_wait_for_what_is_paused() -> None:
    async with Studio().sketching() as studio:
        studio.pool.before = lambda slot: asyncio.sleep(0.1)
        await studio.resume(0)
        await studio.service.drain(30)
    assert [event.index for event in await studio.told(ImageEvent)] == [0], "what goes on has its grace"
    assert {event.error.type for event in await studio.told(FailedEvent, 2)} == {"shutting_down"}


class Leaving(NoPeers):
    """Serve has replaced this ingress replica, after having lost sight of it for a moment."""

    def __init__(self) -> None:
        self.looks = iter((True, False, True, True))
        self.looked = 0

    async def has_left(self) -> bool:
        self.looked += 1
        return next(self.looks, True)


async def test_what_is_paused_in_an_ingress_replica_that_is_replaced_ends_with_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serve_app.fanout.models._WATCH_INTERVAL_S", 0)
    peers = Leaving()
    async with Studio(peers).sketching() as studio, studio.service.running():
        ends = await studio.told(FailedEvent, 3)
        (end,) = await studio.told(ErrorEvent)
    assert {(end.error.type, end.seed) for end in ends} == {("shutting_down", seed) for seed in range(3)}
    assert end.error.type == "shutting_down"
    assert peers.looked == 4, "and it asks only while something is paused"


async def test_a_client_that_leaves_cancels_what_is_paused_or_comes_back_to_it() -> None:
    studio = Studio()
    async with asyncio.timeout(10):
        async with studio.service.open(request(on_disconnect="wait")) as reading:
            async for entry in reading.entries:
                studio.events.append(entry.event)
                if len([event for event in studio.events if isinstance(event, PausedEvent)]) == 3:
                    break
        assert await studio.resume(0, 1) == [0, 1]
        async with studio.service.reopen(ID, 0) as reading:
            async for entry in reading.entries:
                studio.events.append(entry.event)
                if [event.index for event in studio.events if isinstance(event, ImageEvent)] == [0, 1]:
                    break
        assert studio.service.generations.paused == (1, KEPT)
        await studio.service.cancel(ID)
        async with studio.service.open(request(id=OTHER)) as reading:
            while not isinstance((await anext(reading.entries)).event, PausedEvent):
                pass
        assert {image.status for image in (await studio.service.find(OTHER)).answer.images} == {"cancelled"}
        answer = (await studio.service.find(ID)).answer
    assert isinstance(answer, BatchResult)
    assert [image.status for image in answer.images] == ["succeeded", "succeeded", "cancelled"]
    assert studio.service.generations.paused == (0, 0)


async def test_a_stream_alone_has_sketches_and_only_with_a_preview_decoder() -> None:
    studio = Studio()
    with pytest.raises(InvalidRequest, match="use POST /stream") as refused:
        await studio.service.generate(request())
    assert refused.value.param == "pause_after"
    studio.pool.status = PoolStatus((replace(REPLICA, has_previews=False),))
    with pytest.raises(InvalidRequest, match="no preview decoder") as refused:
        async with studio.service.open(request()):
            pass
    assert refused.value.param == "pause_after"


async def test_what_goes_on_as_something_else_is_a_branch_and_says_so() -> None:
    before = Phase(until_step=4, prompt="c")
    async with Studio().sketching(before=(before,)) as studio:
        await studio.resume(0)
        changes = Changes(prompt="b", guidance_scale=2.0)
        assert (await studio.service.resume_images(ID, [1], changes)).resumed == [1]
        await studio.told(ImageEvent, 2)
        with pytest.raises(NotPaused):
            await studio.service.resume_images(ID, [1], changes)
        await studio.service.cancel(ID)
    recipes = {slot.index: slot.recipe for slot in studio.pool.slots}
    assert recipes[1] == branched(recipes[0], 6, changes.settings)
    assert recipes[1].before == (
        before.model_copy(update={"guidance_scale": 5.0}),
        Phase(until_step=6, prompt="a", guidance_scale=5.0),
    )
    plain, own = await studio.told(ResumedEvent, 2)
    assert plain.parameters is None
    assert own.parameters is not None
    assert Recipe.of(own.parameters) == recipes[1]
    said = {image.index: image.parameters for image in await studio.told(ImageEvent)}
    assert said == {0: None, 1: own.parameters}


async def test_changes_that_have_no_effect_are_named_in_the_end() -> None:
    async with Studio().sketching() as studio:
        changes = Changes(prompt="a (red:1.3) fox", negative_prompt="b", guidance_scale=1.0)
        await studio.service.resume_images(ID, [0, 1], changes)
        await studio.told(ImageEvent, 2)
        await studio.service.cancel(ID)
    assert isinstance(studio.last, CompletedEvent)
    unguided, unread = studio.last.warnings
    assert unguided == "negative_prompt has no effect: guidance_scale is 1 or less"
    assert unread.startswith("prompt: read as plain words: (red:1.3)")


@pytest.mark.parametrize(
    ("changes", "param", "why"),
    [
        (Changes(prompt="b"), "before", "4 times"),
        (Changes(negative_prompt="embedding:nag"), "negative_prompt", "cannot be found"),
    ],
)
async def test_changes_that_cannot_be_made_leave_it_paused(changes: Changes, param: str, why: str) -> None:
    many = tuple(Phase(until_step=step, prompt=f"{step}") for step in range(1, 5))
    async with Studio().sketching(before=many if param == "before" else ()) as studio:
        with pytest.raises(InvalidRequest, match=why) as refused:
            await studio.service.resume_images(ID, [1], changes)
        assert refused.value.param == param
        assert await studio.resume() == [0, 1, 2]


class Neighbours(NoPeers):
    """Reaches one other ingress replica."""

    def __init__(self) -> None:
        self.holder: OneModel | None = None
        self.busy = False

    async def resume_images(
        self, id: str, images: Collection[int] | None, changes: Changes
    ) -> list[int] | ServiceError | None:
        if self.busy:
            raise NotReady("too busy")
        return await self.holder.generations.resume_images_here(id, images, changes) if self.holder else None


async def test_another_ingress_replica_lets_it_go_on() -> None:
    way = Neighbours()
    other = Studio(way).service
    with pytest.raises(NotFound):
        await other.resume_images(ID)
    async with Studio().sketching() as studio:
        way.holder = studio.service
        assert (await other.resume_images(ID, [1])).resumed == [1]
        with pytest.raises(NotPaused):
            await other.resume_images(ID, [1])
        way.busy = True
        with pytest.raises(NotReady):
            await other.resume_images(ID)
        await studio.service.cancel(ID)


def test_a_part_of_the_work_is_less_work() -> None:
    slot, kept = make_slot(num_inference_steps=20), sketch_of(make_slot(pause_after=6)).kept
    whole = work_of(slot)
    assert work_of(make_slot(num_inference_steps=20, pause_after=6)) == pytest.approx(0.3 * whole)
    assert work_of(make_slot(num_inference_steps=20, kept=kept)) == pytest.approx(0.7 * whole)
