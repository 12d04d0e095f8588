"""Spans of a generation, taken by OpenTelemetry's own exporter in memory."""

import asyncio
import time
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from serve_app.config import AppArgs
from serve_app.errors import SlotFailed
from serve_app.fanout import spans
from serve_app.messages import Slot
from serve_app.schemas import BatchResult, GenerateRequest
from tests.fakes import FakePool, Metrics, OneModel
from tests.fanout.studio import Studio

REQUEST = GenerateRequest(prompt="a cat", num_images=2, seed=7, preview_steps=[], width=64, height=64)


class Broken(SpanProcessor):
    def on_start(self, span: object, parent_context: object = None) -> None:
        raise OSError("no room")


async def no_memory_for_the_second(slot: Slot) -> None:
    if slot.index == 1:
        raise SlotFailed("out_of_memory", "no")


def trace(processor: SpanProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = TracerProvider()
    provider.add_span_processor(processor)
    monkeypatch.setattr(spans, "_tracer", provider.get_tracer("test"))


async def answered(processor: SpanProcessor, monkeypatch: pytest.MonkeyPatch) -> BatchResult:
    trace(processor, monkeypatch)
    return await OneModel(FakePool(before=no_memory_for_the_second), AppArgs(), Metrics()).generate(REQUEST)


def facts(found: Sequence[ReadableSpan], name: str) -> list[tuple[object, ...]]:
    wanted = ("index", "seed", "status")
    return [tuple((span.attributes or {}).get(fact) for fact in wanted) for span in found if span.name == name]


async def test_each_image_says_how_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = InMemorySpanExporter()
    answer = await answered(SimpleSpanProcessor(exporter), monkeypatch)
    found = exporter.get_finished_spans()
    assert sorted(facts(found, "image"), key=str) == [(0, 7, "succeeded"), (1, 8, "failed")]
    (failed,) = [span for span in found if span.status.description]
    assert (failed.name, failed.status.description) == ("image", "out_of_memory")
    (generation,) = [span for span in found if span.name == "generation"]
    assert (generation.attributes or {})["generation"] == answer.id
    assert "a cat" not in str([span.to_json() for span in found]), "no prompts, as in the log"


async def test_an_image_that_was_paused_ends_when_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = InMemorySpanExporter()
    trace(SimpleSpanProcessor(exporter), monkeypatch)
    async with Studio().sketching(num_images=1) as studio:
        await asyncio.sleep(0.2)
        resumed = time.time_ns()
        await studio.resume()
    ends = {span.name: span.end_time or 0 for span in exporter.get_finished_spans()}
    assert ends["image"] >= resumed
    assert ends["encode"] >= resumed
    assert ends["paused"] > 0


async def test_tracing_that_fails_costs_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await answered(Broken(), monkeypatch)
    assert "the spans of a generation could not be written" in caplog.text
    assert [image.status for image in answer.images] == ["succeeded", "failed"]
