"""Continuous batching: which jobs take part in the next UNet calls.

Decisions only: the engine asks what to do next and says what happened. No threads, no clock and no torch here.
"""

from collections import OrderedDict, deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar


class State(Enum):
    """Where a job is. Every job ends once, in one of the last three; see `_NEXT`."""

    WAITING = "waiting"
    """For a place in the batch."""
    ACTIVE = "active"
    """In the batch: takes a step whenever its group has its turn."""
    DENOISED = "denoised"
    """Out of the batch, all steps done; its file is being made."""
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return not _NEXT[self]


_NEXT: Mapping[State, frozenset[State]] = {
    State.WAITING: frozenset({State.ACTIVE, State.CANCELLED}),
    State.ACTIVE: frozenset({State.DENOISED, State.FAILED, State.CANCELLED}),
    State.DENOISED: frozenset({State.FINISHED, State.FAILED}),
    State.FINISHED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}


class IllegalTransition(Exception):
    """A job cannot go from its state to the one it is marked with."""


Payload = TypeVar("Payload")


@dataclass(eq=False, slots=True)
class Job(Generic[Payload]):
    """What was submitted, and how far it has come. Only its scheduler changes it."""

    payload: Payload
    group: Hashable
    state: State = State.WAITING
    cancel_requested: bool = False


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a scheduler is, in jobs; `finished` counts since the start."""

    active: int
    waiting: int
    finished: int


class StepScheduler(Generic[Payload]):
    """Decides which jobs are admitted to the batch, and which of them take the next step together.

    Jobs are admitted in the order of their arrival, up to `max_batch_size`. Jobs that can share a UNet call form a
    group. Groups take turns; in its turn a group takes one step, in calls of at most `images_per_call` jobs.

    Between two steps call `drop_cancelled`, then `admit` until it returns None, then `next_calls`; mark what becomes of
    each job. Not thread-safe: callers hold a lock.
    """

    def __init__(self, max_batch_size: int, images_per_call: int) -> None:
        self._max_batch_size = max_batch_size
        self._images_per_call = images_per_call
        self._waiting: deque[Job[Payload]] = deque()
        self._groups: OrderedDict[Hashable, list[Job[Payload]]] = OrderedDict()  # the next one to have its turn first
        self._finished = 0

    @property
    def load(self) -> Load:
        return Load(active=self._active, waiting=len(self._waiting), finished=self._finished)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do between steps, nor a step to take."""
        return not self._waiting and not self._groups

    def submit(self, payload: Payload, group: Hashable) -> Job[Payload]:
        """Return a job that waits behind all others. Jobs of equal `group` can share a UNet call."""
        job = Job(payload, group)
        self._waiting.append(job)
        return job

    def cancel(self, job: Job[Payload]) -> bool:
        """Cancel a job; return whether that has ended it. An active job ends at the next `drop_cancelled`.

        A job that has done all its steps, or has ended, stays as it is.
        """
        job.cancel_requested = True
        if job.state is not State.WAITING:
            return False
        self._move(job, State.CANCELLED)
        return True

    def drop_cancelled(self) -> Sequence[Job[Payload]]:
        """Take the cancelled jobs out of the batch and return them."""
        dropped = [job for jobs in self._groups.values() for job in jobs if job.cancel_requested]
        for job in dropped:
            self._move(job, State.CANCELLED)
        return dropped

    def admit(self) -> Job[Payload] | None:
        """Admit the job that has waited longest and return it; None where none waits, or the batch is full."""
        if not self._waiting or self._active >= self._max_batch_size:
            return None
        job = self._waiting[0]
        self._move(job, State.ACTIVE)
        return job

    def next_calls(self) -> Sequence[Sequence[Job[Payload]]]:
        """Return the UNet calls of the next step, and pass the turn on. Without active jobs there are none."""
        if not self._groups:
            return []
        group, jobs = next(iter(self._groups.items()))
        self._groups.move_to_end(group)
        most = self._images_per_call
        return [jobs[first : first + most] for first in range(0, len(jobs), most)]

    def mark_denoised(self, job: Job[Payload]) -> None:
        """Take an active job that has done its last step out of the batch. Raises IllegalTransition."""
        self._move(job, State.DENOISED)

    def mark_finished(self, job: Job[Payload]) -> None:
        """End a denoised job whose file is made. Raises IllegalTransition."""
        self._move(job, State.FINISHED)
        self._finished += 1

    def mark_failed(self, job: Job[Payload]) -> None:
        """End an active or denoised job that has failed. Raises IllegalTransition."""
        self._move(job, State.FAILED)

    @property
    def _active(self) -> int:
        return sum(map(len, self._groups.values()))

    def _move(self, job: Job[Payload], state: State) -> None:
        """Change a job's state, and keep the queue and the groups in step with it."""
        if state not in _NEXT[job.state]:
            raise IllegalTransition(f"a job that is {job.state.value} cannot become {state.value}")
        if job.state is State.WAITING:
            self._waiting.remove(job)
        elif job.state is State.ACTIVE:
            self._leave_group(job)
        if state is State.ACTIVE:
            self._groups.setdefault(job.group, []).append(job)
        job.state = state

    def _leave_group(self, job: Job[Payload]) -> None:
        jobs = self._groups[job.group]
        jobs.remove(job)
        if not jobs:
            del self._groups[job.group]
