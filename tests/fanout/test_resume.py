"""Generations outlive the responses that read them, over a pool that generates when it is told to."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from serve_app.config import AppArgs, StreamsConfig
from serve_app.errors import GenerationFailed, InvalidRequest, NotFound, NotReady, SlotFailed
from serve_app.fanout.peers import Peers
from serve_app.messages import Slot
from serve_app.readings import Entry, Part, Reading
from serve_app.schemas import BatchResult, ErrorEvent, GenerateRequest, ImageEvent, OnDisconnect, UnfinishedResult
from tests.fakes import FakePool, Metrics, NoPeers, OneModel, Ref

ID = "01234567-89ab-4cde-8f01-23456789abcd"
KEEP_S = 1.0
ARGS = AppArgs(streams=StreamsConfig(keep_s=KEEP_S))


def request(on_disconnect: OnDisconnect = "cancel", id: str | None = ID, grid: bool = False) -> GenerateRequest:
    return GenerateRequest(
        prompt="a", num_images=3, seed=0, preview_steps=[1], on_disconnect=on_disconnect, id=id, grid=grid
    )


class Studio:
    """A fan-out that finishes image 0 at once and the others on `release`."""

    def __init__(self, peers: Peers | None = None) -> None:
        self.release = asyncio.Event()
        self.pool = FakePool(before=self.before)
        self.metrics = Metrics()
        self.service = OneModel(self.pool, ARGS, self.metrics, peers)

    async def before(self, slot: Slot) -> None:
        if slot.index:
            await self.release.wait()

    @asynccontextmanager
    async def left_after_the_first_picture(self, on_disconnect: OnDisconnect) -> AsyncIterator[list[Entry]]:
        """Read a stream up to the first picture, leave it, and give what came."""
        got = []
        async with self.service.open(request(on_disconnect)) as reading:
            async for entry in reading.entries:
                got.append(entry)
                if isinstance(entry.event, ImageEvent):
                    break
        yield got


async def rest_of(service: OneModel, after: int) -> list[Entry]:
    async with asyncio.timeout(5), service.reopen(ID, after) as reading:
        return [entry async for entry in reading.entries]


async def ended(service: OneModel) -> BatchResult:
    """Ask for the answer until it is whole."""
    async with asyncio.timeout(5):
        while isinstance(answer := (await service.find(ID)).answer, UnfinishedResult):  # noqa: ASYNC110 - as clients do
            await asyncio.sleep(0.01)
    return answer


def pictures(entries: list[Entry]) -> list[int]:
    return sorted(entry.event.index for entry in entries if isinstance(entry.event, ImageEvent))


def last_number(entries: list[Entry]) -> int:
    assert entries[-1].number is not None
    return entries[-1].number


@pytest.mark.parametrize("on_disconnect", ["wait", "finish"])
async def test_a_client_that_comes_back_gets_the_rest_and_each_picture_once(on_disconnect: OnDisconnect) -> None:
    studio = Studio()
    async with studio.left_after_the_first_picture(on_disconnect) as got:
        asyncio.get_running_loop().call_later(0.1, studio.release.set)
        rest = await rest_of(studio.service, last_number(got))
    assert pictures(got) + pictures(rest) == [0, 1, 2]
    assert rest[-1].event.type == "completed"
    numbers = [entry.number for entry in got + rest if entry.number]
    assert len(numbers) == len(got + rest)
    assert numbers == sorted(set(numbers))
    assert sorted(studio.metrics.outcomes) == ["succeeded"] * 3


async def test_leaving_cancels_at_once_and_what_was_finished_can_still_be_read() -> None:
    studio = Studio()
    async with studio.left_after_the_first_picture("cancel") as got:
        assert not studio.pool.open
        assert studio.service._admission.waiting() == 0
        rest = await rest_of(studio.service, last_number(got))
        found = await studio.service.find(ID)
    assert [entry.event.type for entry in rest] == ["progress", "preview", "cancelled", "cancelled", "completed"][-3:]
    assert isinstance(found.answer, BatchResult)
    assert [image.status for image in found.answer.images] == ["succeeded", "cancelled", "cancelled"]


async def test_who_waits_is_cancelled_once_its_time_is_over() -> None:
    studio = Studio()
    async with studio.left_after_the_first_picture("wait"):
        await asyncio.sleep(KEEP_S / 2)
        assert studio.pool.open == {1, 2}
        await asyncio.sleep(KEEP_S)
        assert not studio.pool.open
        assert sorted(studio.metrics.outcomes) == ["cancelled", "cancelled", "succeeded"]


async def test_who_came_back_in_time_is_not_cancelled_by_the_time_it_left_before() -> None:
    studio = Studio()
    async with studio.left_after_the_first_picture("wait"):
        await asyncio.sleep(KEEP_S / 2)
        rest = asyncio.create_task(rest_of(studio.service, 0))
        await asyncio.sleep(KEEP_S)
        studio.release.set()
        assert pictures(await rest) == [0, 1, 2]


async def test_finish_needs_no_reader_and_is_found_for_a_while_after_its_end() -> None:
    studio = Studio()
    async with studio.left_after_the_first_picture("finish"):
        await asyncio.sleep(2 * KEEP_S)
        unfinished = (await studio.service.find(ID)).answer
        assert isinstance(unfinished, UnfinishedResult)
        assert [image.status for image in unfinished.images] == ["succeeded", "running", "running"]
        studio.release.set()
        await asyncio.sleep(KEEP_S / 2)
        answer = (await studio.service.find(ID)).answer
        assert isinstance(answer, BatchResult)
        assert [image.status for image in answer.images] == ["succeeded"] * 3
        await asyncio.sleep(KEEP_S)
        with pytest.raises(NotFound):
            await studio.service.find(ID)
        with pytest.raises(NotFound):
            await rest_of(studio.service, 0)


async def test_what_is_kept_holds_no_pixels_in_the_object_store() -> None:
    studio = Studio()
    studio.release.set()
    async with studio.service.open(request(grid=True)) as reading:
        assert "grid" in [entry.event.type async for entry in reading.entries]
    assert isinstance((await studio.service.find(ID)).answer, BatchResult)
    gc.collect()
    assert [kept for kept in gc.get_objects() if type(kept) is Ref] == []


async def test_two_readers_get_the_same_and_the_first_to_leave_cancels_nothing() -> None:
    studio = Studio()
    async with studio.service.open(request()):
        second = asyncio.create_task(rest_of(studio.service, 0))
        await asyncio.sleep(0.05)
    assert studio.pool.open == {1, 2}
    studio.release.set()
    assert pictures(await second) == [0, 1, 2]


async def test_a_generation_without_a_stream_finishes_for_a_client_that_has_gone() -> None:
    studio = Studio()
    answer = asyncio.create_task(studio.service.generate(request("finish", grid=True)))
    await asyncio.sleep(0.05)
    answer.cancel()
    await asyncio.gather(answer, return_exceptions=True)
    studio.release.set()
    found = await ended(studio.service)
    assert [image.status for image in found.images] == ["succeeded"] * 3
    assert found.grid


async def test_nobody_could_find_it_without_an_id() -> None:
    with pytest.raises(InvalidRequest) as refused:
        await Studio().service.generate(request("finish", id=None))
    assert refused.value.param == "on_disconnect"


async def test_an_id_is_taken_while_its_generation_is_held() -> None:
    studio = Studio()
    async with studio.left_after_the_first_picture("cancel"):
        with pytest.raises(InvalidRequest) as refused:
            await studio.service.generate(request())
    assert refused.value.param == "id"
    assert studio.service._admission.waiting() == 0


async def test_what_failed_is_found_as_the_error_it_ended_with() -> None:
    studio = Studio()

    async def fail(slot: Slot) -> None:
        raise SlotFailed("out_of_memory", "no room")

    studio.pool.before = fail
    async with studio.service.open(request()) as reading:
        assert [entry.event.type async for entry in reading.entries][-1] == "error"
    with pytest.raises(GenerationFailed, match="no room"):
        await studio.service.find(ID)


async def test_it_can_be_cancelled_while_nobody_reads() -> None:
    studio = Studio()
    async with studio.left_after_the_first_picture("finish") as got:
        assert (await studio.service.cancel(ID)).cancelled == [1, 2]
        rest = await rest_of(studio.service, last_number(got))
    assert [entry.event.type for entry in rest][-3:] == ["cancelled", "cancelled", "completed"]


async def test_no_task_is_left_when_the_service_ends() -> None:
    studio = Studio()
    before = asyncio.all_tasks()
    async with studio.service.running(), studio.left_after_the_first_picture("finish"):
        async with asyncio.timeout(5):
            while studio.pool.open != {1, 2}:  # noqa: ASYNC110 - the first call ends a little after its picture
                await asyncio.sleep(0)
    assert not studio.pool.open
    assert asyncio.all_tasks() == before


async def test_the_streams_of_other_apis_are_not_kept() -> None:
    studio = Studio()
    studio.release.set()
    async with studio.service.stream(request()) as events:
        assert [event.type async for event in events][-1] == "completed"
    await asyncio.sleep(0.01)
    with pytest.raises(NotFound):
        await studio.service.find(ID)


class Neighbours(NoPeers):
    """Reaches one other ingress replica; `busy` of the next questions find it too busy."""

    def __init__(self) -> None:
        self.service: OneModel | None = None
        self.busy = 0
        self.asked = 0

    async def next_part(self, id: str, after: int, wait_s: float) -> Part | None:
        self.asked += 1
        if self.busy:
            self.busy -= 1
            raise NotReady("too busy")
        return await self.service.generations.next_part_here(id, after, wait_s) if self.service else None


def two_ingress_replicas() -> tuple[Studio, OneModel, Neighbours]:
    """Return the one that holds a generation, another one, and the way from this to that."""
    holder, way = Studio(), Neighbours()
    way.service = holder.service
    return holder, Studio(way).service, way


async def test_another_ingress_replica_goes_on_with_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.fanout.held._LARGEST_PART", 1)  # one event at a time
    monkeypatch.setattr("serve_app.fanout.relay._PAUSE_S", 0.01)
    holder, other, way = two_ingress_replicas()
    async with holder.left_after_the_first_picture("wait") as got:
        rest = asyncio.create_task(rest_of(other, last_number(got)))
        await asyncio.sleep(2 * KEEP_S)
        way.busy = 2
        holder.release.set()
        rest_entries = await rest
    assert pictures(got) + pictures(rest_entries) == [0, 1, 2]
    assert rest_entries[-1].event.type == "completed"
    assert way.asked < 30, "it waits for news where the generation is"


async def test_every_ingress_replica_refuses_an_event_that_never_was_and_tells_the_end_again() -> None:
    holder, other, _ = two_ingress_replicas()
    async with holder.left_after_the_first_picture("finish"):
        for service in (holder.service, other):
            with pytest.raises(InvalidRequest, match="999 is above the last event so far"):
                await rest_of(service, 999)
        holder.release.set()
        await ended(holder.service)
        (*_, last) = await rest_of(holder.service, 0)
        for service in (holder.service, other):
            assert await rest_of(service, last_number([last])) == [last]


async def test_another_ingress_replica_finds_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.fanout.held._LARGEST_PART", 1)
    holder, other, _ = two_ingress_replicas()
    async with holder.left_after_the_first_picture("finish"):
        unfinished = (await other.find(ID)).answer
        assert isinstance(unfinished, UnfinishedResult)
        assert [image.status for image in unfinished.images] == ["succeeded", "running", "running"]
        holder.release.set()
        assert await ended(holder.service) == (await other.find(ID)).answer


async def test_a_reader_elsewhere_who_leaves_is_missed_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.fanout.held._LEASE_S", 0.2)
    monkeypatch.setattr("serve_app.fanout.relay._WAIT_S", 0.1)
    holder, other, _ = two_ingress_replicas()

    async def read(reading: Reading) -> None:
        async for _ in reading.entries:
            pass

    async with holder.service.open(request()), other.reopen(ID, 0) as reading:
        reader = asyncio.create_task(read(reading))
        await asyncio.sleep(0.05)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
    assert holder.pool.open == {1, 2}, "somebody has asked a moment ago"
    await asyncio.sleep(0.4)
    assert not holder.pool.open


@pytest.mark.parametrize(
    ("lose", "type_"),
    [(lambda way: setattr(way, "service", None), "not_found"), (lambda way: setattr(way, "busy", 99), "not_ready")],
)
async def test_a_stream_whose_holder_is_lost_has_a_last_event(
    monkeypatch: pytest.MonkeyPatch, lose: Callable[[Neighbours], None], type_: str
) -> None:
    monkeypatch.setattr("serve_app.fanout.relay._PAUSE_S", 0.01)
    monkeypatch.setattr("serve_app.fanout.relay._WAIT_S", 0.1)
    holder, other, way = two_ingress_replicas()
    async with holder.left_after_the_first_picture("finish") as got:
        rest = asyncio.create_task(rest_of(other, last_number(got)))
        await asyncio.sleep(0.05)
        lose(way)
        (*_, last) = await rest
    assert last.number is None
    assert isinstance(last.event, ErrorEvent)
    assert last.event.error.type == type_


async def test_what_nobody_holds_is_not_found() -> None:
    _, other, _ = two_ingress_replicas()
    with pytest.raises(NotFound):
        await other.find(ID)
    with pytest.raises(NotFound):
        await rest_of(other, 0)
