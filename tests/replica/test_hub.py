"""A hub that cannot be reached, for a while or for longer."""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import huggingface_hub.constants
import pytest
from huggingface_hub.errors import HfHubHTTPError

from benchmarks.ports import free_port
from serve_app.errors import CheckpointError
from serve_app.replica import hub

REQUEST = httpx2.Request("GET", "https://hub.example")


def answered(status: int) -> HfHubHTTPError:
    return HfHubHTTPError("the hub says no", response=httpx2.Response(status, request=REQUEST))


def wrapped() -> OSError:
    """As diffusers tells that it could not connect."""
    error = OSError("not fully cached locally")
    error.__cause__ = httpx2.ConnectError("refused")
    return error


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_PAUSES_S", (0.0, 0.0))


def failing(errors: Iterator[Exception]) -> Callable[[], str]:
    def download() -> str:
        for error in errors:
            raise error
        return "/folder"

    return download


@pytest.mark.parametrize("error", [wrapped(), httpx2.ReadTimeout("slow"), answered(503), answered(429)])
def test_what_may_pass_is_asked_for_again(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    assert hub._fetched("path", "owner/name", failing(iter([error, error]))) == Path("/folder")
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "asking again" in caplog.text


@pytest.mark.parametrize("error", [answered(404), answered(401), ValueError("no such revision"), OSError("disk full")])
def test_what_will_not_pass_is_refused_at_once(error: Exception) -> None:
    with pytest.raises(CheckpointError):
        hub._fetched("path", "owner/name", failing(iter([error])))


def test_a_hub_that_stays_away_ends_the_start_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"owner/name .* could not be fetched from the hub .*ConnectError"):
        hub.fetch_configs("owner/name")
    assert len([record for record in caplog.records if record.name == "ray.serve"]) == 2
