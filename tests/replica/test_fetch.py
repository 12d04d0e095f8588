"""What a deployment runs before its replicas, which may not ask the hub."""

import huggingface_hub.constants
import pytest

from serve_app.models import embedded_path
from serve_app.replica.fetch import main


def test_it_names_the_files_that_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["path=embedded"]) is None
    files = capsys.readouterr().out.splitlines()
    assert str(embedded_path() / "unet" / "diffusion_pytorch_model.safetensors") in files


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["path"], "name=value"),
        (["paht=embedded"], "paht"),
        (["path=embedded", "variant=fp16"], "model.variant"),
        (["path=owner/name"], "could not be fetched"),
    ],
)
def test_it_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch, settings: list[str], words: str) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert words in str(main(settings))
