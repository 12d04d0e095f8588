"""Overrides of torch's compiler heuristics."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch._inductor import config
from torch._inductor.choices import InductorChoices
from torch._inductor.codegen.triton import TritonKernel
from torch._inductor.runtime.hints import ReductionHint
from torch._inductor.virtualized import V

_WIDEST_ROW = 2048
_BEFORE_ACCESS = "_handle_pdl_before_access"


class WholeRows(InductorChoices):
    """Compiles norms to read rows of up to 2048 numbers once. By default, rows of more than 1024 are read twice.

    SDXL's layer norms are 1280 wide. On an H100 each takes 12.6 µs read twice, 8.5 µs read once; a step has 168.
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
        """Return this class's part of the key in torch's caches."""
        return f"rows up to {_WIDEST_ROW}, early launches wait first"


def _wait_first(kernel: Any, buffer: Any, *_: object, consider_reads: bool = False) -> None:
    """Make a kernel that is launched early wait before its first access to memory; replaces a method of torch's."""
    if kernel._enable_pdl_codegen():
        in_a_loop = kernel.inside_reduction and kernel.range_trees[-1].is_loop
        (kernel.body if in_a_loop else buffer).writeline(kernel.GDC_WAIT)


@contextmanager
def _early_launches() -> Iterator[None]:
    """Let the compiler's kernels be launched while the one before them ends (CUDA's programmatic dependent launch).

    Each waits for the one before it before it reads or writes anything; only its launch is early. By itself torch lets
    a kernel read before it has waited where the node before it, by name, wrote something else. That a kernel waits for
    all before it, not only for the last, follows from each having waited.
    """
    if not hasattr(TritonKernel, _BEFORE_ACCESS):  # another torch: without
        yield
        return
    torchs = getattr(TritonKernel, _BEFORE_ACCESS)
    setattr(TritonKernel, _BEFORE_ACCESS, _wait_first)
    try:
        with config.patch({"triton.enable_pdl": True}):
            yield
    finally:
        setattr(TritonKernel, _BEFORE_ACCESS, torchs)


@contextmanager
def our_choices() -> Iterator[None]:
    """Make this thread's compilations follow `WholeRows`, and all meanwhile launch kernels early."""
    # The handler applies to this thread; the class in the config becomes part of the key in torch's caches. The handler
    # is set first: a thread without one makes one of the config's class, and would keep it afterwards.
    with V.set_choices_handler(WholeRows()), config.patch(inductor_choices_class=WholeRows), _early_launches():
        yield
