"""The batcher alone, under thousands of random schedules, in which time is the number of steps."""

from collections.abc import Hashable, Mapping
from functools import partial
from itertools import chain

import pytest

from serve_app.replica.batching import Batcher, Job, JobState, Load
from serve_app.states import IllegalTransition
from tests.replica.play import AT_ONCE, ENDS, ImageJob, Play, schedules


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
def test_no_more_sketches_are_active_than_share_a_call(play: Play) -> None:
    assert max(play.sketches) <= play.images_per_call


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
            assert job.state is (JobState.PAUSED if job.sketch else JobState.FINISHED)
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
