"""Continuous batching: decides which jobs take part in the next UNet calls.

It only decides: the engine asks what to do next and reports what happened. No threads, clock or torch here.
"""

from collections import OrderedDict, deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from serve_app.states import State


class JobState(State):
    """The state of a job. Every job ends once, in one of the last four states; see `_NEXT`."""

    WAITING = "waiting"
    """Waiting for a place in the batch."""
    ACTIVE = "active"
    """In the batch: takes a step whenever it is its group's turn."""
    DENOISED = "denoised"
    """All steps done and out of the batch; its file is being encoded."""
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    RETURNED = "returned"
    """Not generated here, but elsewhere: the engine can generate nothing any more."""

    @property
    def following(self) -> frozenset["JobState"]:
        return _NEXT[self]


_NEXT: Mapping[JobState, frozenset[JobState]] = {
    JobState.WAITING: frozenset({JobState.ACTIVE, JobState.CANCELLED, JobState.RETURNED}),
    JobState.ACTIVE: frozenset({JobState.DENOISED, JobState.FAILED, JobState.CANCELLED, JobState.RETURNED}),
    JobState.DENOISED: frozenset({JobState.FINISHED, JobState.FAILED, JobState.CANCELLED, JobState.RETURNED}),
    JobState.FINISHED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
    JobState.RETURNED: frozenset(),
}


Payload = TypeVar("Payload")


@dataclass(eq=False, slots=True)
class Job(Generic[Payload]):
    """A submitted payload and its state. Only the batcher changes it. `begun`: it has been active.

    `weights` tells the adapters' weights that it needs from others; None: the model's own, which are always there.
    """

    payload: Payload
    group: Hashable
    weights: Hashable = None
    state: JobState = JobState.WAITING
    begun: bool = False
    cancel_requested: bool = False


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a batcher is, in jobs. `finished` counts all since the start."""

    active: int
    waiting: int
    finished: int


class Batcher(Generic[Payload]):
    """Decides which jobs are admitted to the batch, and which of them take the next step together.

    Jobs are admitted in the order of their arrival, up to `max_batch_size`, and only as many as `weight_sets` can
    serve: the first in the queue waits for a set, and all behind it wait too. Jobs that can share a UNet call form a
    group. Groups take turns; in its turn a group takes one step, in calls of at most `images_per_call` jobs.

    Between two steps call `drop_cancelled`, then `admit` until it returns None, then `next_calls`. Mark each job that
    is denoised, finished or failed. Not thread-safe: callers hold a lock.
    """

    def __init__(self, max_batch_size: int, images_per_call: int, weight_sets: int = 0) -> None:
        self._max_batch_size = max_batch_size
        self._images_per_call = images_per_call
        self._weight_sets = weight_sets
        self._waiting: deque[Job[Payload]] = deque()
        self._groups: OrderedDict[Hashable, list[Job[Payload]]] = OrderedDict()  # in the order of their turns
        self._denoised: set[Job[Payload]] = set()
        self._finished = 0

    @property
    def load(self) -> Load:
        return Load(active=self._active, waiting=len(self._waiting), finished=self._finished)

    @property
    def idle(self) -> bool:
        """Whether no job is waiting or active."""
        return not self._waiting and not self._groups

    def submit(self, payload: Payload, group: Hashable, weights: Hashable = None) -> Job[Payload]:
        """Add a job at the end of the queue and return it. Jobs of equal `group` can share a UNet call.

        Raises ValueError if there is no set for its weights.
        """
        if weights is not None and not self._weight_sets:
            raise ValueError("there is no weight set for adapters")
        job = Job(payload, group, weights)
        self._waiting.append(job)
        return job

    def cancel(self, job: Job[Payload]) -> bool:
        """Cancel a job; return whether that ended it at once. An active job ends at the next `drop_cancelled`.

        A job that has ended is not affected.
        """
        job.cancel_requested = True
        if job.state not in (JobState.WAITING, JobState.DENOISED):
            return False
        self._move(job, JobState.CANCELLED)
        return True

    def drop_cancelled(self) -> Sequence[Job[Payload]]:
        """Remove the cancelled jobs from the batch and return them."""
        dropped = [job for jobs in self._groups.values() for job in jobs if job.cancel_requested]
        for job in dropped:
            self._move(job, JobState.CANCELLED)
        return dropped

    def admit(self) -> Job[Payload] | None:
        """Admit the job that has waited longest and return it; None if none waits, or there is no room for it."""
        if not self._waiting or self._active >= self._max_batch_size or not self._has_weights(self._waiting[0]):
            return None
        job = self._waiting[0]
        self._move(job, JobState.ACTIVE)
        return job

    def next_calls(self) -> Sequence[Sequence[Job[Payload]]]:
        """Return the UNet calls of the next step, none without active jobs. The next group gets the next turn."""
        if not self._groups:
            return []
        group, jobs = next(iter(self._groups.items()))
        self._groups.move_to_end(group)
        most = self._images_per_call
        return [jobs[first : first + most] for first in range(0, len(jobs), most)]

    def mark_denoised(self, job: Job[Payload]) -> None:
        """Remove an active job that has done its last step from the batch. Raises IllegalTransition."""
        self._move(job, JobState.DENOISED)

    def mark_finished(self, job: Job[Payload]) -> None:
        """End a denoised job whose file is encoded. Raises IllegalTransition."""
        self._move(job, JobState.FINISHED)
        self._finished += 1

    def mark_failed(self, job: Job[Payload]) -> None:
        """End an active or denoised job that has failed. Raises IllegalTransition."""
        self._move(job, JobState.FAILED)

    def return_all(self) -> Sequence[Job[Payload]]:
        """End all jobs that have not ended, because none can be generated any more, and return them."""
        active = (job for jobs in self._groups.values() for job in jobs)
        unfinished = [*self._waiting, *active, *self._denoised]
        for job in unfinished:
            self._move(job, JobState.RETURNED)
        return unfinished

    @property
    def _active(self) -> int:
        return sum(map(len, self._groups.values()))

    def _has_weights(self, job: Job[Payload]) -> bool:
        """Return whether there is a weight set for a job: one that another uses as well, or an idle one."""
        used = {active.weights for jobs in self._groups.values() for active in jobs} - {None}
        return job.weights is None or job.weights in used or len(used) < self._weight_sets

    def _move(self, job: Job[Payload], state: JobState) -> None:
        """Change a job's state, and update the queue and the groups accordingly."""
        job.state.to(state)
        if job.state is JobState.WAITING:
            self._waiting.remove(job)
        elif job.state is JobState.ACTIVE:
            self._leave_group(job)
        self._denoised.discard(job)
        if state is JobState.ACTIVE:
            job.begun = True
            self._groups.setdefault(job.group, []).append(job)
        elif state is JobState.DENOISED:
            self._denoised.add(job)
        job.state = state

    def _leave_group(self, job: Job[Payload]) -> None:
        jobs = self._groups[job.group]
        jobs.remove(job)
        if not jobs:
            del self._groups[job.group]
