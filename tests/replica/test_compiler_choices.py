"""The overrides of compiler heuristics. `tests/gpu` tests the compiled kernels."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sympy import Integer
from torch._dynamo.utils import counters
from torch._inductor import config
from torch._inductor.choices import InductorChoices
from torch._inductor.codegen.triton import TritonKernel
from torch._inductor.runtime.hints import ReductionHint
from torch._inductor.virtualized import V
from torch.nn import functional as F  # noqa: N812, the usual name

from serve_app.replica.compiler_choices import our_choices
from tests.replica.layer import CHEAPLY

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own imports give them


def whole(numbers: int, hint: ReductionHint = ReductionHint.INNER, cooperative: bool = False) -> bool:
    """Return whether a kernel would hold a whole row of this many numbers."""
    features: Any = SimpleNamespace(
        get_reduction_hint=lambda: hint, reduction_numel=Integer(numbers), numel=Integer(1_000_000)
    )
    known: Any = SimpleNamespace(
        statically_known_leq=lambda one, other: one <= other, optimization_hint=lambda size, **_: int(size)
    )
    graph: Any = SimpleNamespace(sizevars=known)
    with V.set_graph_handler(graph):
        return bool(V.choices.should_use_persistent_reduction(features, cooperative))


def test_rows_as_wide_as_sdxls_are_held_as_a_whole() -> None:
    assert not whole(1280), "torch does by itself what we ask for: choices.py can go"
    with our_choices():
        assert [whole(numbers) for numbers in (640, 1280, 2048, 4096)] == [True, True, True, False]
        assert not whole(1280, ReductionHint.OUTER)
        assert not whole(1280, cooperative=True)
        with config.patch({"triton.persistent_reductions": False}):
            assert not whole(1280)
    assert not whole(1280)


def test_the_overrides_end_when_a_compilation_fails() -> None:
    waits = TritonKernel._handle_pdl_before_access

    def fail() -> None:
        with our_choices():
            assert config.triton.enable_pdl
            assert TritonKernel._handle_pdl_before_access is not waits
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert type(V.choices) is InductorChoices
    assert config.inductor_choices_class is None
    assert not config.triton.enable_pdl
    assert TritonKernel._handle_pdl_before_access is waits


def test_nothing_of_it_is_left_in_a_thread_that_compiles_for_the_first_time() -> None:
    def used() -> type[InductorChoices]:
        with our_choices():
            pass
        return type(V.choices)

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(used).result() is InductorChoices


@pytest.fixture
def compiled(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(kernels))
    with config.patch(CHEAPLY):
        yield
    torch._dynamo.reset()


def cached() -> bool:
    """Compile a norm and return whether it came from torch's cache."""
    torch._dynamo.reset()
    counters.clear()
    torch.compile(lambda rows: F.layer_norm(rows, (1280,)))(torch.zeros(4, 1280))
    return bool(counters["inductor"]["fxgraph_cache_hit"])


@torch.inference_mode()
def test_cached_kernels_compiled_without_the_overrides_are_not_used(compiled: None) -> None:
    assert not cached()
    assert cached()
    with our_choices():
        assert not cached()
        assert cached()
