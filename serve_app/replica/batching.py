"""Continuous batching: decides which jobs take part in the next UNet calls.

It only decides: the engine asks what to do next and reports what happened. No threads, clock or torch here.
"""

from collections import OrderedDict, deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import ceil
from typing import Generic, TypeVar

from serve_app.states import State


class JobState(State):
    """The state of a job. Every job ends once, in one of the last five states; see `_NEXT`."""

    WAITING = "waiting"
    """Waiting for a place in the batch."""
    ACTIVE = "active"
    """In the batch: takes a step whenever it is its group's turn."""
    DENOISED = "denoised"
    """All its steps done and out of the batch; its file, or its sketch, is being encoded."""
    FINISHED = "finished"
    PAUSED = "paused"
    """Its sketch is done. It goes on as another job, if at all."""
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
    JobState.DENOISED: frozenset(
        {JobState.FINISHED, JobState.PAUSED, JobState.FAILED, JobState.CANCELLED, JobState.RETURNED}
    ),
    JobState.FINISHED: frozenset(),
    JobState.PAUSED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
    JobState.RETURNED: frozenset(),
}


Payload = TypeVar("Payload")


@dataclass(eq=False, slots=True)
class Job(Generic[Payload]):
    """A submitted payload and its state. Only the batcher changes it. `begun`: it has been active.

    `weights` tells the adapters' weights that it needs from others; None: the model's own, which are always there.
    `lane` is the number of the lane on which it takes its steps, chosen when it is admitted. `sketch`: it ends early,
    for somebody who waits for it.
    """

    payload: Payload
    group: Hashable
    weights: Hashable = None
    sketch: bool = False
    lane: int = 0
    state: JobState = JobState.WAITING
    begun: bool = False
    cancel_requested: bool = False


Groups = OrderedDict[Hashable, list[Job[Payload]]]
"""Active jobs by group, in the order of the groups' turns."""


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a batcher is, in jobs. `finished` counts all since the start."""

    active: int
    waiting: int
    finished: int


class Batcher(Generic[Payload]):
    """Decides which jobs are admitted to the batch, and which of them take the next step together.

    Jobs are admitted in the order of their arrival, up to `max_batch_size`, and only as many as `weight_sets` can
    serve: the first in the queue waits for a set, and all behind it wait too. So it is with sketches, of which only as
    many are active as share a UNet call: in turns, the first would be done hardly sooner than the last. Each job is
    admitted to one of `lanes` lanes, on which UNet calls run side by side. Jobs of a lane that can share a UNet call
    form a group. A lane's groups take turns; in its turn a group takes one step, in calls of at most `images_per_call`
    jobs.

    Between two steps call `drop_cancelled`, then `admit` until it returns None, then `next_calls`. Mark each job that
    is denoised, finished, paused or failed. Not thread-safe: callers hold a lock.
    """

    def __init__(self, max_batch_size: int, images_per_call: int, weight_sets: int = 0, lanes: int = 1) -> None:
        self._max_batch_size = max_batch_size
        self._images_per_call = images_per_call
        self._weight_sets = weight_sets
        self._waiting: deque[Job[Payload]] = deque()
        self._lanes: Sequence[Groups[Payload]] = [OrderedDict() for _ in range(lanes)]
        self._denoised: set[Job[Payload]] = set()
        self._finished = 0

    @property
    def load(self) -> Load:
        return Load(active=len(self._active), waiting=len(self._waiting), finished=self._finished)

    @property
    def idle(self) -> bool:
        """Whether no job is waiting or active."""
        return not self._waiting and not any(self._lanes)

    def submit(
        self, payload: Payload, group: Hashable, weights: Hashable = None, *, sketch: bool = False
    ) -> Job[Payload]:
        """Add a job at the end of the queue and return it. Jobs of equal `group` can share a UNet call.

        Raises ValueError if there is no set for its weights.
        """
        if weights is not None and not self._weight_sets:
            raise ValueError("there is no weight set for adapters")
        job = Job(payload, group, weights, sketch)
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
        dropped = [job for job in self._active if job.cancel_requested]
        for job in dropped:
            self._move(job, JobState.CANCELLED)
        return dropped

    def admit(self) -> Job[Payload] | None:
        """Admit the job that has waited longest and return it; None if none waits, or there is no room for it."""
        if not self._waiting or not self._has_room(job := self._waiting[0]):
            return None
        job.lane = min(range(len(self._lanes)), key=lambda lane: self._calls_with(job, lane))
        self._move(job, JobState.ACTIVE)
        return job

    def next_calls(self) -> Sequence[Sequence[Job[Payload]]]:
        """Return the UNet calls of the next step of each lane, none without active jobs, lanes in turns.

        Then the next group of each lane has its turn.
        """
        turns = zip_longest(*(self._turn(groups) for groups in self._lanes if groups))
        return [call for beside in turns for call in beside if call is not None]

    def regroup(self, job: Job[Payload], group: Hashable) -> None:
        """Let a job that is still active share UNet calls with those of a group from the next step on."""
        if job.state is JobState.ACTIVE and group != job.group:
            self._leave_group(job)
            job.group = group
            self._join_group(job)

    def mark_denoised(self, job: Job[Payload]) -> None:
        """Remove an active job that has done its last step from the batch. Raises IllegalTransition."""
        self._move(job, JobState.DENOISED)

    def mark_finished(self, job: Job[Payload]) -> None:
        """End a denoised job whose file is encoded. Raises IllegalTransition."""
        self._move(job, JobState.FINISHED)
        self._finished += 1

    def mark_paused(self, job: Job[Payload]) -> None:
        """End a denoised job whose sketch is encoded. Raises IllegalTransition."""
        self._move(job, JobState.PAUSED)

    def mark_failed(self, job: Job[Payload]) -> None:
        """End an active or denoised job that has failed. Raises IllegalTransition."""
        self._move(job, JobState.FAILED)

    def return_all(self) -> Sequence[Job[Payload]]:
        """End all jobs that have not ended, because none can be generated any more, and return them."""
        unfinished = [*self._waiting, *self._active, *self._denoised]
        for job in unfinished:
            self._move(job, JobState.RETURNED)
        return unfinished

    @property
    def _active(self) -> Sequence[Job[Payload]]:
        return [job for groups in self._lanes for jobs in groups.values() for job in jobs]

    def _turn(self, groups: Groups[Payload]) -> Sequence[Sequence[Job[Payload]]]:
        group, jobs = next(iter(groups.items()))
        groups.move_to_end(group)
        most = self._images_per_call
        return [jobs[first : first + most] for first in range(0, len(jobs), most)]

    def _calls_with(self, job: Job[Payload], lane: int) -> tuple[int, int]:
        """Return how many more UNet calls a lane would take with a job, and how many it takes without."""
        jobs = {group: len(own) for group, own in self._lanes[lane].items()}
        without = sum(ceil(own / self._images_per_call) for own in jobs.values())
        jobs[job.group] = jobs.get(job.group, 0) + 1
        return sum(ceil(own / self._images_per_call) for own in jobs.values()) - without, without

    def _has_room(self, job: Job[Payload]) -> bool:
        active = self._active
        sketches = sum(other.sketch for other in active)
        return (
            len(active) < self._max_batch_size
            and self._has_weights(job)
            and not (job.sketch and sketches >= self._images_per_call)
        )

    def _has_weights(self, job: Job[Payload]) -> bool:
        """Return whether there is a weight set for a job: one that another uses as well, or an idle one."""
        used = {active.weights for active in self._active} - {None}
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
            self._join_group(job)
        elif state is JobState.DENOISED:
            self._denoised.add(job)
        job.state = state

    def _join_group(self, job: Job[Payload]) -> None:
        self._lanes[job.lane].setdefault(job.group, []).append(job)

    def _leave_group(self, job: Job[Payload]) -> None:
        groups = self._lanes[job.lane]
        groups[job.group].remove(job)
        if not groups[job.group]:
            del groups[job.group]
