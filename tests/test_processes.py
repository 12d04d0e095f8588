"""Which tests one process runs, where several run the suite."""

from pathlib import Path

from tests.conftest import TOGETHER, share_of

ROOT = Path(__file__).parent.parent


def test_what_takes_long_to_make_is_made_in_one_process() -> None:
    assert {
        share_of(f"tests/integration/{file}.py::test_it") for file in ("test_fal", "test_cli", "playground/test_page")
    } == {"shared service"}
    assert share_of("tests/integration/test_resume.py::test_it") == "own deployments"
    assert share_of("tests/replica/test_compilation.py::test_it[full]") == "compiler and peers"
    assert share_of("tests/test_png.py::test_it") == "tests/test_png.py::test_it"
    assert all((ROOT / path).exists() for path in TOGETHER)
