"""What torch's compiler decides otherwise than by default."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch._inductor import config
from torch._inductor.choices import InductorChoices
from torch._inductor.runtime.hints import ReductionHint
from torch._inductor.virtualized import V

_WIDEST_ROW = 2048


class WholeRows(InductorChoices):
    """Lets a norm hold a row of up to 2048 numbers, and read it once; by default those above 1024 are read twice.

    SDXL's layer norms are 1280 wide: 12.6 µs each on an H100 read twice, 8.5 read once, 168 of them in a step.
    """

    @staticmethod
    def should_use_persistent_reduction(features: Any, cooperative_reduction: bool) -> bool:
        if InductorChoices.should_use_persistent_reduction(features, cooperative_reduction):
            return True
        if cooperative_reduction or not config.triton.persistent_reductions:
            return False
        in_a_row = features.get_reduction_hint() == ReductionHint.INNER
        return in_a_row and V.graph.sizevars.statically_known_leq(features.reduction_numel, _WIDEST_ROW)

    def uuid(self) -> str:
        """Part of the name of what torch's caches keep."""
        return f"rows up to {_WIDEST_ROW}"


@contextmanager
def our_choices() -> Iterator[None]:
    """Make this thread's compilations follow `WholeRows`."""
    # The thread follows the handler; the class in the settings tells torch's caches that it does. The handler is set
    # first: a thread that has none yet makes one of the class in the settings, and falls back to it afterwards.
    with V.set_choices_handler(WholeRows()), config.patch(inductor_choices_class=WholeRows):
        yield
