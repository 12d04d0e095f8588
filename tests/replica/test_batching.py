"""The batcher alone, under thousands of random schedules, in which time is the number of steps."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.replica.batching import Batcher, Job, JobState, Load
from serve_app.states import IllegalTransition

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
        self.jobs.append(self.batcher.submit(Image(len(self.jobs), 1 + steps), group, weights))

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
        """Return whether there is a reason to admit nobody: the batch is full, or the next job has no weight set."""
        active, waiting = self.of(JobState.ACTIVE), self.of(JobState.WAITING)
        used = {job.weights for job in active} - {None}
        return (
            not waiting
            or len(active) == self.max_batch_size
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


@schedules
def test_jobs_are_admitted_in_the_order_of_their_arrival(play: Play) -> None:
    assert play.admitted == sorted(play.admitted)
    left = {job.payload.number for job in play.jobs} - set(play.admitted)
    assert all(play.jobs[number].payload.cancelled_in is JobState.WAITING for number in left)


@schedules
def test_the_batch_never_exceeds_its_limit_and_is_full_while_jobs_wait(play: Play) -> None:
    assert all(load.active <= play.max_batch_size for load in play.loads)
    assert all(play.kept_out)


@schedules
def test_no_more_weights_are_in_use_than_there_are_sets(play: Play) -> None:
    assert all(len(weights) <= play.weight_sets for weights in play.weights)


@schedules
def test_in_its_turn_every_job_of_a_group_takes_one_step_in_full_calls(play: Play) -> None:
    for turn in chain(*play.turns):
        assert [job for call in turn.calls for job in call] == [job for job in turn.batch if job.group == turn.group]
        *full, last = map(len, turn.calls)
        assert all(size == play.images_per_call for size in full)
        assert 0 < last <= play.images_per_call


@schedules
def test_no_job_waits_for_more_than_one_turn_of_each_other_group_of_its_lane(play: Play) -> None:
    for turns in play.turns:
        waited: dict[ImageJob, list[Hashable]] = {}
        for turn in turns:
            waited = {job: waited.get(job, []) for job in turn.batch}
            for job, groups in waited.items():
                assert turn.group not in groups
                if job.group == turn.group:
                    groups.clear()
                else:
                    groups.append(turn.group)


@schedules
def test_in_each_step_the_lanes_with_jobs_are_served_in_turns(play: Play) -> None:
    for lanes in play.rounds:
        most = max(map(lanes.count, lanes), default=0)
        assert lanes == [lane for turn in range(most) for lane in play.lanes if lanes.count(lane) > turn]
    for step, lanes in enumerate(play.rounds, start=1):
        assert {*lanes} == {own for own in play.lanes for turn in play.turns[own] if turn.step == step}


@schedules
def test_a_job_that_shares_no_call_is_admitted_to_the_lane_with_the_fewest(play: Play) -> None:
    for before, chosen in play.chosen:
        assert play.images_per_call > 1 or before[chosen] == min(before)


@schedules
def test_a_cancelled_job_ends_before_the_next_step(play: Play) -> None:
    for job in play.jobs:
        image = job.payload
        match image.cancelled_in:
            case JobState.WAITING:
                assert image.states == [JobState.WAITING, JobState.CANCELLED]
            case JobState.ACTIVE:
                assert job.state is JobState.CANCELLED or (image.doomed and job.state is JobState.FAILED)
                # Its next step may already have been chosen when it was cancelled.
                assert not any(
                    job in call
                    for turn in chain(*play.turns)
                    if turn.step > image.turns_before_cancel + 1
                    for call in turn.calls
                )
            case JobState.DENOISED:
                assert image.states[-2:] == [JobState.DENOISED, JobState.CANCELLED]
            case _:
                assert job.state is not JobState.CANCELLED


@schedules
def test_a_failure_does_not_affect_other_jobs(play: Play) -> None:
    for job in play.jobs:
        image = job.payload
        if not image.doomed and image.cancelled_in not in (JobState.WAITING, JobState.ACTIVE, JobState.DENOISED):
            assert job.state is JobState.FINISHED
            assert image.taken == image.steps


@schedules
def test_no_job_is_lost_and_each_ends_once(play: Play) -> None:
    for job in play.jobs:
        assert [state for state in job.payload.states if state in ENDS] == job.payload.states[-1:]
    assert play.batcher.load == Load(active=0, waiting=0, finished=len(play.of(JobState.FINISHED)))


@schedules
def test_a_batcher_without_jobs_is_idle(play: Play) -> None:
    assert play.batcher.idle
    assert (play.batcher.drop_cancelled(), play.batcher.admit(), play.batcher.next_calls()) == ([], None, [])
    idle = play.idle_rounds
    next(play._loop)
    next(play._loop)
    assert play.idle_rounds > idle


@partial(schedules, patience=0)
def test_all_jobs_that_have_not_ended_are_returned_at_any_moment(play: Play) -> None:
    unfinished, ends = play.unfinished, {job: job.state for job in play.of(*ENDS)}
    assert set(play.batcher.return_all()) == set(unfinished)
    assert {job.state for job in unfinished} <= {JobState.RETURNED}
    assert {job: job.state for job in ends} == ends
    assert play.batcher.idle
    assert (play.batcher.drop_cancelled(), play.batcher.admit(), play.batcher.next_calls()) == ([], None, [])
    assert (play.batcher.load.active, play.batcher.load.waiting) == (0, 0)
    assert play.batcher.return_all() == []


MARKS: Mapping[str, set[JobState]] = {
    "denoised": {JobState.ACTIVE},
    "finished": {JobState.DENOISED},
    "paused": {JobState.DENOISED},
    "failed": {JobState.ACTIVE, JobState.DENOISED},
}


def job_in(state: JobState, batcher: Batcher[None]) -> Job[None]:
    job = batcher.submit(None, group="a")
    if state is JobState.CANCELLED:
        batcher.cancel(job)
    elif state is JobState.RETURNED:
        batcher.return_all()
    elif state is not JobState.WAITING:
        batcher.admit()
        before = {
            JobState.DENOISED: ["denoised"],
            JobState.FINISHED: ["denoised", "finished"],
            JobState.PAUSED: ["denoised", "paused"],
            JobState.FAILED: ["failed"],
        }
        for mark in before.get(state, []):
            getattr(batcher, f"mark_{mark}")(job)
    assert job.state is state
    return job


def test_a_job_changes_its_group_between_two_steps() -> None:
    batcher = Batcher[str](max_batch_size=2, images_per_call=2)
    first, second = batcher.submit("first", "long"), batcher.submit("second", "short")
    assert [batcher.admit(), batcher.admit()] == [first, second]
    assert batcher.next_calls() == [[first]]
    batcher.regroup(first, "short")
    assert [batcher.next_calls(), batcher.next_calls()] == [[[second, first]]] * 2
    batcher.cancel(first)
    assert batcher.drop_cancelled() == [first]
    batcher.regroup(first, "long")
    assert batcher.next_calls() == [[second]], "what has ended stays out"


@pytest.mark.parametrize("state", JobState)
@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_that_does_not_fit_a_jobs_state_is_refused_and_changes_nothing(mark: str, state: JobState) -> None:
    batcher = Batcher[None](max_batch_size=1, images_per_call=1)
    job = job_in(state, batcher)
    load = batcher.load
    if state in MARKS[mark]:
        getattr(batcher, f"mark_{mark}")(job)
        assert job.state is JobState(mark)
    else:
        with pytest.raises(IllegalTransition, match=f"JobState: what is {state.value} cannot become {mark}"):
            getattr(batcher, f"mark_{mark}")(job)
        assert (job.state, batcher.load) == (state, load)


@pytest.mark.parametrize("state", JobState)
def test_cancelling_twice_or_too_late_changes_nothing(state: JobState) -> None:
    batcher = Batcher[None](max_batch_size=1, images_per_call=1)
    job = job_in(state, batcher)
    assert batcher.cancel(job) == (state in AT_ONCE)
    ended = JobState.CANCELLED if state in (JobState.WAITING, JobState.ACTIVE, JobState.DENOISED) else state
    assert list(batcher.drop_cancelled()) == ([job] if state is JobState.ACTIVE else [])
    assert job.state is ended
    assert not batcher.cancel(job)
    assert job.state is ended


def lanes(images_per_call: int, groups: str) -> list[int]:
    """Return the lanes that jobs of these groups are admitted to, one after another."""
    batcher = Batcher[None](max_batch_size=8, images_per_call=images_per_call, lanes=2)
    admitted = []
    for group in groups:
        batcher.submit(None, group)
        admitted.append(batcher.admit())
    return [job.lane for job in admitted if job]


def test_jobs_fill_a_call_before_they_take_another_lane() -> None:
    assert lanes(1, "aaaa") == [0, 1, 0, 1]
    assert lanes(2, "aaaaa") == [0, 0, 1, 1, 0]
    assert lanes(4, "abab") == [0, 1, 0, 1]
    assert lanes(1, "abab") == [0, 1, 0, 1]
