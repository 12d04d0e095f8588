"""An engine without models that plays random scripts, for tests of the batcher. It needs no torch."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil

from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.replica.batching import Batcher, Job, JobState, Load

ENDS = {JobState.FINISHED, JobState.PAUSED, JobState.FAILED, JobState.CANCELLED, JobState.RETURNED}
AT_ONCE = {JobState.WAITING, JobState.DENOISED}
"""The states in which a cancelled job ends at once."""

PATIENCE = 1000
"""After so many points of the loop every schedule has ended."""

ACTIONS = ("submit", "go_on", "make_file", "cancel", "go_on", "submit", "go_on", "doom", "go_on", "break_call", "go_on")
"""The action of a script's byte, chosen by remainder. The quotient selects the job, or the parameters of a new one."""


@dataclass(eq=False)
class Image:
    """A requested image and its history."""

    number: int
    steps: int
    taken: int = 0
    doomed: bool = False
    cancelled_in: JobState | None = None
    turns_before_cancel: int = 0
    states: list[JobState] = field(default_factory=list)


ImageJob = Job[Image]


@dataclass(frozen=True)
class Turn:
    """The UNet calls of one lane in one step, and all jobs of that lane when they were chosen."""

    calls: Sequence[Sequence[ImageJob]]
    batch: Sequence[ImageJob]
    step: int

    @property
    def group(self) -> Hashable:
        return self.calls[0][0].group


class Play:
    """An engine without models that plays a script. Its loop yields wherever another thread could run."""

    def __init__(
        self,
        max_batch_size: int,
        images_per_call: int,
        weight_sets: int,
        lanes: int,
        script: bytes,
        patience: int = PATIENCE,
    ) -> None:
        self.max_batch_size, self.images_per_call, self.weight_sets = max_batch_size, images_per_call, weight_sets
        self.lanes = range(lanes)
        self.batcher = Batcher[Image](max_batch_size, images_per_call, weight_sets, lanes)
        self.jobs: list[ImageJob] = []
        self.admitted: list[int] = []
        self.steps = 0
        self.turns: list[list[Turn]] = [[] for _ in self.lanes]
        self.rounds: list[list[int]] = []
        self.chosen: list[tuple[list[int], int]] = []
        self.loads: list[Load] = []
        self.kept_out: list[bool] = []
        self.weights: list[set[Hashable]] = []
        self.sketches: list[int] = []
        self.idle_rounds = 0
        self._broken = False
        self._loop = self._rounds()
        for byte in script:
            number, action = divmod(byte, len(ACTIONS))
            getattr(self, ACTIONS[action])(number)
            self._look()
        for _ in range(patience):
            if not self.unfinished:
                break
            for drain in (self.go_on, self.make_file):
                drain()
                self._look()

    @property
    def unfinished(self) -> list[ImageJob]:
        return self.of(*set(JobState) - ENDS)

    def of(self, *states: JobState) -> list[ImageJob]:
        return [job for job in self.jobs if job.state in states]

    def submit(self, number: int) -> None:
        group, steps = divmod(number, 6)
        weights = group or None if self.weight_sets else None
        image, sketch = Image(len(self.jobs), 1 + steps), steps % 2 == 1
        self.jobs.append(self.batcher.submit(image, group, weights, sketch=sketch))

    def cancel(self, number: int) -> None:
        for job in self._one(self.jobs, number):
            if job.payload.cancelled_in is None:
                job.payload.cancelled_in, job.payload.turns_before_cancel = job.state, self.steps
            was, ended = job.state, self.batcher.cancel(job)
            assert ended == (was in AT_ONCE)

    def doom(self, number: int) -> None:
        """Make the next operation on a job fail: its preparation, a step or its file."""
        for job in self._one(self.unfinished, number):
            job.payload.doomed = True

    def break_call(self, _: int) -> None:
        """Make the next UNet call fail."""
        self._broken = True

    def make_file(self, number: int = 0) -> None:
        for job in self._one(self.of(JobState.DENOISED), number):
            if job.payload.doomed:
                self.batcher.mark_failed(job)
            elif job.sketch:
                self.batcher.mark_paused(job)
            else:
                self.batcher.mark_finished(job)

    def go_on(self, _: int = 0) -> None:
        next(self._loop)

    def _rounds(self) -> Iterator[None]:
        while True:
            if self.batcher.idle:
                self.idle_rounds += 1
                yield
                continue
            done = len(self.batcher.drop_cancelled())
            yield
            while job := self.batcher.admit():
                done += 1
                self.chosen.append((self._calls(without=job), job.lane))
                self.admitted.append(job.payload.number)
                yield
                if job.payload.doomed:
                    self.batcher.mark_failed(job)
            self.kept_out.append(self._keeps_out())
            batch, calls = self.of(JobState.ACTIVE), self.batcher.next_calls()
            self.steps += 1
            self.rounds.append([call[0].lane for call in calls])
            for lane, turns in zip(self.lanes, self.turns, strict=True):
                if own := [call for call in calls if call[0].lane == lane]:
                    turns.append(Turn(own, [job for job in batch if job.lane == lane], self.steps))
            for call in calls:
                yield
                self._step(call)
            assert done or calls or self.batcher.idle, "the loop would spin"

    def _calls(self, without: ImageJob) -> list[int]:
        """Return how many UNet calls each lane takes for its jobs but one."""
        jobs = [Counter(job.group for job in self.of(JobState.ACTIVE) if job.lane == lane) for lane in self.lanes]
        jobs[without.lane][without.group] -= 1
        return [sum(ceil(own / self.images_per_call) for own in lane.values()) for lane in jobs]

    def _keeps_out(self) -> bool:
        """Return whether there is a reason to admit nobody: the batch is full, the next job has no weight set, or it is
        a sketch and others are active.
        """
        active, waiting = self.of(JobState.ACTIVE), self.of(JobState.WAITING)
        used = {job.weights for job in active} - {None}
        return (
            not waiting
            or len(active) == self.max_batch_size
            or (waiting[0].sketch and sum(job.sketch for job in active) == self.images_per_call)
            or (waiting[0].weights is not None and waiting[0].weights not in used and len(used) == self.weight_sets)
        )

    def _step(self, call: Sequence[ImageJob]) -> None:
        broken, self._broken = self._broken, False
        for job in call:
            job.payload.taken += 1
            if job.payload.doomed or broken:
                job.payload.doomed = True
                self.batcher.mark_failed(job)
            elif job.payload.taken == job.payload.steps and not job.cancel_requested:
                self.batcher.mark_denoised(job)

    def _look(self) -> None:
        self.loads.append(self.batcher.load)
        self.weights.append({job.weights for job in self.of(JobState.ACTIVE)} - {None})
        self.sketches.append(sum(job.sketch for job in self.of(JobState.ACTIVE)))
        for job in self.jobs:
            if job.payload.states[-1:] != [job.state]:
                job.payload.states.append(job.state)
        assert self.batcher.idle == (not self.of(JobState.WAITING, JobState.ACTIVE))

    @staticmethod
    def _one(jobs: Sequence[ImageJob], number: int) -> Sequence[ImageJob]:
        return [jobs[number % len(jobs)]] if jobs else []


def plays(patience: int) -> st.SearchStrategy[Play]:
    return st.builds(
        Play,
        max_batch_size=st.integers(1, 6),
        images_per_call=st.integers(1, 3),
        weight_sets=st.integers(0, 2),
        lanes=st.integers(1, 3),
        script=st.binary(min_size=20, max_size=80),
        patience=st.just(patience),
    )


def schedules(test: Callable[[Play], None], patience: int = PATIENCE) -> Callable[[], None]:
    """Run a test with hundreds of random schedules, the same ones each time."""
    return settings(max_examples=300, derandomize=True, database=None, deadline=None)(given(plays(patience))(test))
