"""Spans of a generation for OpenTelemetry: one for it, one for each image, one for each stage of an image.

They are written once it has ended, from the times that it keeps: its images are generated in turns in other processes,
where no span could stay open. Without tracing in Serve's config nobody takes them.
"""

import time
from collections.abc import Iterator

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Status, StatusCode

from serve_app import __version__
from serve_app.fanout.accounts import facts_of_plan
from serve_app.fanout.generation import Generation
from serve_app.fanout.plan import Plan
from serve_app.schemas import NoPicture, Timings

_tracer = trace.get_tracer("parallel-sdxl", __version__)

STAGES = ("queue", "encode_prompt", "denoise", "decode", "encode")
"""Fields of Timings, in the order in which an image goes through them."""


def write_spans(plan: Plan, generation: Generation, parent: Context) -> None:
    """Write the spans of a generation that has ended, below the span of its request."""
    ended = time.time_ns()
    began = ended - _nanoseconds(time.monotonic() - plan.started)
    span = _tracer.start_span("generation", parent, start_time=began, attributes=facts_of_plan(plan))
    below = trace.set_span_in_context(span, parent)
    for slot, image, replica in generation.ends():
        facts = {"index": slot.index, "seed": slot.seed, "status": image.status, "replica": replica or ""}
        one = _tracer.start_span("image", below, start_time=began, attributes=facts)
        timings = generation.finished.get(slot.index)
        if isinstance(image, NoPicture) and image.status == "failed":
            one.set_status(Status(StatusCode.ERROR, image.error.type))
        if timings is None:
            one.end(ended)
            continue
        one.set_attribute("gpu_seconds", timings.gpu)
        inside = trace.set_span_in_context(one, below)
        paused_s = generation.paused_seconds(slot.index)
        for name, start, end in _stages(timings, paused_s):
            _tracer.start_span(name, inside, start_time=began + start).end(began + end)
        one.end(began + _nanoseconds(timings.total + paused_s))
    span.end(ended)


def _stages(timings: Timings, paused_s: float) -> Iterator[tuple[str, int, int]]:
    """Yield each stage with its start and end, in nanoseconds after the request; one that was paused was so first."""
    seconds = [("paused", paused_s)] if paused_s else []
    seconds += [(name, getattr(timings, name)) for name in STAGES]
    start = 0
    for name, took in seconds:
        end = start + _nanoseconds(took)
        yield name, start, end
        start = end


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
