"""Calls to what the engine was given by others: what they raise goes to the log and does not reach the engine."""

import logging
from collections.abc import Callable
from typing import ParamSpec

from serve_app.replica.observer import Observer

logger = logging.getLogger("ray.serve")

P = ParamSpec("P")


def guarded(tell: Callable[P, None]) -> Callable[P, None]:
    """Return a function that calls `tell` and raises nothing."""

    def safely(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            tell(*args, **kwargs)
        except Exception:
            logger.exception("the engine goes on without an answer to what it told")

    return safely


class GuardedObserver:
    """An observer that raises nothing."""

    def __init__(self, observer: Observer) -> None:
        self.stage = guarded(observer.stage)
        self.step = guarded(observer.step)
        self.begun = guarded(observer.begun)
        self.ended = guarded(observer.ended)
        self.wasted = guarded(observer.wasted)
