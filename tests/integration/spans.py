"""Writes the spans of every process of a service to a folder, by OpenTelemetry's own exporter, and reads them."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

FOLDER = "TEST_SPANS_FOLDER"
"""The environment variable that names the folder."""


def processors() -> list[SpanProcessor]:
    """Return what Serve's `tracing_config` asks for."""
    out = (Path(os.environ[FOLDER]) / f"spans-{os.getpid()}").open("a")
    exporter = ConsoleSpanExporter(out=out, formatter=lambda span: span.to_json(indent=None) + "\n")
    return [SimpleSpanProcessor(exporter)]


@dataclass(frozen=True)
class Span:
    name: str
    id: str
    parent: str | None
    start: datetime
    end: datetime
    attributes: dict[str, Any]

    def parent_name(self, spans: "Sequence[Span]") -> str | None:
        return next((span.name for span in spans if span.id == self.parent), None)

    def children(self, spans: "Sequence[Span]") -> "list[Span]":
        """Return the spans below this one, first that which began first."""
        return sorted((span for span in spans if span.parent == self.id), key=lambda span: span.start)


def read(folder: Path) -> list[Span]:
    lines = [line for file in folder.glob("spans-*") for line in file.read_text().splitlines()]
    return [_span(json.loads(line)) for line in lines]


def _span(fields: dict[str, Any]) -> Span:
    start, end = (datetime.fromisoformat(fields[name]) for name in ("start_time", "end_time"))
    return Span(fields["name"], fields["context"]["span_id"], fields["parent_id"], start, end, fields["attributes"])
