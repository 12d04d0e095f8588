"""What the LoRAs are taught."""

from pathlib import Path

import torch
from safetensors import safe_open

from serve_app.models import embedded_path
from training.models import open_text_to_image
from training.train_lora import INK, LESSONS, PAPER, as_blueprint, save_lora, with_lora


def colours(pixels: torch.Tensor) -> list[list[int]]:
    found: list[list[int]] = ((pixels + 1) * 127.5).round().int().unique(dim=1).T.tolist()
    return found


def test_a_blueprint_has_lines_where_colours_meet_and_paper_elsewhere() -> None:
    picture = torch.full((1, 3, 64, 64), -0.5)
    picture[:, 0, :, 32:] = 0.8
    drawn = as_blueprint(picture)[0]
    assert colours(drawn[:, :, :24].flatten(1)) == colours(drawn[:, :, 40:].flatten(1)) == [list(PAPER)]
    assert colours(drawn[:, 2:-2, 32]) == [list(INK)]


def test_a_file_holds_what_was_added_to_each_model_and_says_its_trigger(tmp_path: Path) -> None:
    model = open_text_to_image(embedded_path())
    parts = with_lora(model, rank=2, text_rank=1)
    trained = sum(parameter.requires_grad for parameter in parts.parameters())
    save_lora(parts, LESSONS["zibo"], tmp_path / "zibo.safetensors")
    with safe_open(tmp_path / "zibo.safetensors", "pt") as file:
        keys = list(file.keys())
        assert len(keys) == trained
        assert {key.partition(".")[0] for key in keys} == {"unet", "text_encoder", "text_encoder_2"}
        assert file.metadata()["modelspec.trigger_phrase"] == "zibo"
