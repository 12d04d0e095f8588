import pickle
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from serve_app import errors

ALL = [
    errors.InvalidRequest("wrong", "width"),
    errors.TooManyWaiting("full", 7),
    errors.GenerationFailed("all failed"),
    errors.InternalError(),
    errors.NotReady("wait"),
    errors.DeadlineExceeded("late"),
    errors.SlotFailed("out_of_memory", "no room"),
    errors.ReplicaLost("gone"),
    errors.SlotReturned("broken", True),
]


@pytest.mark.parametrize("error", ALL, ids=lambda e: type(e).__name__)
def test_errors_cross_processes_whole(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)


def test_a_ray_call_raises_what_was_said_of_a_returned_slot() -> None:
    raised: Any = RayTaskError("stream", "a traceback", errors.SlotReturned("broken", True)).as_instanceof_cause()
    assert isinstance(raised, errors.SlotReturned)
    assert raised.begun


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    for error in ALL:
        line = next(line for line in (errors.__doc__ or "").splitlines() if type(error).__name__ in line)
        if isinstance(error, errors.ServiceError):
            assert f" {error.status} " in line
