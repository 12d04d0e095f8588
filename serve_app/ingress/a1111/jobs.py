"""The requests of A1111's clients while they run: what progress tells and interrupt ends."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fastapi import Request

from serve_app.client import client
from serve_app.errors import InternalError, error_of
from serve_app.ingress.a1111.schemas import Progress, ProgressState
from serve_app.schemas import (
    CancelledEvent,
    CompletedEvent,
    ErrorEvent,
    Event,
    FailedEvent,
    ImageEvent,
    PreviewEvent,
    ProgressEvent,
    StartEvent,
)

Owner = tuple[str | None, str | None]
"""Who may see and interrupt a job: a key, and an address."""


def owner_of(http: Request) -> Owner:
    return client.get(), http.client.host if http.client else None


@dataclass
class Job:
    """One request: what its events have told so far."""

    owner: Owner
    start: StartEvent | None = None
    steps: dict[int, int] = field(default_factory=dict)
    images: dict[int, ImageEvent] = field(default_factory=dict)
    previews: dict[int, PreviewEvent] = field(default_factory=dict)
    missing: dict[int, FailedEvent | CancelledEvent] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    async def follow(self, events: AsyncIterator[Event]) -> StartEvent:
        """Hear all events and return the first. Raises the ServiceError they end with."""
        async for event in events:
            match event:
                case StartEvent():
                    self.start = event
                case ProgressEvent():
                    self.steps[event.index] = event.step
                case PreviewEvent():
                    self.previews[event.index] = event
                case ImageEvent():
                    self.images[event.index] = event
                case FailedEvent() | CancelledEvent():
                    self.missing[event.index] = event
                case CompletedEvent():
                    self.warnings = event.warnings
                case ErrorEvent():
                    raise error_of(event.error.type, event.error.message, event.error.param)
        if self.start is None:
            raise InternalError
        return self.start

    @property
    def ended(self) -> int:
        """How many images have ended."""
        return len(self.images) + len(self.missing)

    @property
    def total(self) -> int:
        """How many images were asked for; 0 before the start."""
        return len(self.start.seeds) if self.start else 0

    @property
    def steps_of_one(self) -> int:
        return self.start.parameters.num_inference_steps if self.start else 0

    @property
    def unfinished(self) -> dict[int, int]:
        """The steps of the images that have begun and not ended, by their indexes."""
        return {index: step for index, step in self.steps.items() if index not in {*self.images, *self.missing}}

    @property
    def furthest(self) -> int:
        """The steps of the unfinished image that has the most."""
        return max(self.unfinished.values(), default=0)

    @property
    def done(self) -> int:
        """The steps of all images that are done."""
        return self.ended * self.steps_of_one + sum(self.unfinished.values())

    @property
    def forming(self) -> str | None:
        """The newest preview of an unfinished image, as base64."""
        previews = [self.previews[index] for index in self.unfinished if index in self.previews]
        return max(previews, key=lambda preview: preview.step).b64_json if previews else None

    @property
    def pictures(self) -> list[ImageEvent | PreviewEvent]:
        """What there is, in order: finished images, and of those that were cancelled the last preview."""
        cancelled = [index for index, event in self.missing.items() if isinstance(event, CancelledEvent)]
        interrupted = {index: self.previews[index] for index in cancelled if index in self.previews}
        pictures: dict[int, ImageEvent | PreviewEvent] = {**self.images, **interrupted}
        return [pictures[index] for index in sorted(pictures)]


class Jobs:
    """All running jobs of this ingress replica."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []

    @contextmanager
    def one(self, owner: Owner) -> Iterator[Job]:
        """Count a job while the context is open."""
        job = Job(owner)
        self._jobs.append(job)
        try:
            yield job
        finally:
            self._jobs.remove(job)

    def ids_of(self, owner: Owner) -> list[str]:
        """Return the generations of an owner."""
        return [job.start.id for job in self._of(owner) if job.start]

    def progress_of(self, owner: Owner, *, with_picture: bool) -> Progress:
        """Return how far an owner's jobs are together, and the picture of the one that is furthest if wanted."""
        jobs = self._of(owner)
        steps = sum(job.total * job.steps_of_one for job in jobs)
        latest = max(jobs, key=lambda job: job.furthest, default=None)
        state = ProgressState(
            job=latest.start.id if latest and latest.start else "",
            job_count=sum(job.total for job in jobs),
            job_no=sum(job.ended for job in jobs),
            sampling_step=latest.furthest if latest else 0,
            sampling_steps=latest.steps_of_one if latest else 0,
        )
        return Progress(
            progress=round(sum(job.done for job in jobs) / steps, 4) if steps else 0.0,
            state=state,
            current_image=latest.forming if latest and with_picture else None,
        )

    def _of(self, owner: Owner) -> list[Job]:
        return [job for job in self._jobs if job.owner == owner]
