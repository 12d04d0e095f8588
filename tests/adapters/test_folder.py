"""The folder of adapters: names, what each file says, and which are refused before their weights are read."""

import json
from pathlib import Path

import pytest

from serve_app.adapters import AdapterFolder
from serve_app.errors import AdapterError
from serve_app.recipe import picture_hash


def write(path: Path, shapes: dict[str, list[int]], **metadata: str) -> Path:
    """Write a file of zeros with tensors of these shapes."""
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for key, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    said = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(said).to_bytes(8, "little") + said + bytes(end))
    return path


def attention(width: int) -> dict[str, list[int]]:
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    return {f"{key}.lora_down.weight": [4, width], f"{key}.lora_up.weight": [8, 4]}


def test_adapters_are_listed_with_what_their_files_say(tmp_path: Path) -> None:
    tags = json.dumps({"10_pxl": {"pxlart": 20, "cat": 12, "tree": 3}})
    write(tmp_path / "styles/pixel-art.safetensors", attention(2048), ss_tag_frequency=tags)
    write(tmp_path / "told.safetensors", attention(2048), **{"modelspec.trigger_phrase": "in my style, sks"})
    write(tmp_path / ".hidden.safetensors", attention(2048))
    (tmp_path / "notes.txt").write_text("no adapter")
    told, pixel = sorted(AdapterFolder(tmp_path).loras(), key=lambda adapter: adapter.name, reverse=True)
    assert (told.name, told.trigger_words) == ("told", ("in my style", "sks"))
    assert (pixel.name, pixel.trigger_words) == ("styles/pixel-art", ("pxlart", "cat"))
    assert (pixel.base_model, pixel.rank, pixel.unusable) == ("SDXL", 4, None)


def test_a_new_file_and_a_new_version_count_at_once(tmp_path: Path) -> None:
    folder = AdapterFolder(tmp_path)
    with pytest.raises(AdapterError, match="which is empty"):
        folder.find("new")
    file = write(tmp_path / "new.safetensors", attention(2048))
    adapter = folder.find("new")
    assert folder.hash_if_known(adapter) is None
    assert folder.hash_of(adapter) == picture_hash(file.read_bytes()) == folder.hash_if_known(adapter)
    write(file, attention(2048), another="version")
    assert folder.hash_of(folder.find("new")) == picture_hash(file.read_bytes())


@pytest.mark.parametrize("name", ["../out", "in/../../out", "/etc/out", "link", "", ".", "in//out", "a\0b", "..\\out"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    out = write(tmp_path / "out.safetensors", attention(2048))
    inside = tmp_path / "adapters"
    (inside / "in").mkdir(parents=True)
    (inside / "link.safetensors").symlink_to(out)
    folder = AdapterFolder(inside)
    with pytest.raises(AdapterError, match=r"adapters\.path"):
        folder.find(name)
    assert folder.loras() == []


def test_a_name_that_is_nearly_right_is_told(tmp_path: Path) -> None:
    write(tmp_path / "styles/Pixel-Art.safetensors", attention(2048))
    with pytest.raises(AdapterError, match="similar names: styles/Pixel-Art"):
        AdapterFolder(tmp_path).find("pixel-art")
    (tmp_path / "old.pt").write_bytes(b"")
    with pytest.raises(AdapterError, match="convert it"):
        AdapterFolder(tmp_path).find("old")


WRONG = {
    "Stable Diffusion 1.5": attention(768),
    "Stable Diffusion 2": attention(1024),
    "Flux": {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": [4, 8]},
    "Stable Diffusion 3": {"lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight": [4, 8]},
    "whole model": {"model.diffusion_model.input_blocks.0.0.weight": [4, 4]},
    "VAE": {"first_stage_model.encoder.conv_in.weight": [4, 4]},
    "textual inversion": {"clip_g": [1, 8], "clip_l": [1, 4]},
    "kind that is not supported": {"lora_unet_mid_block.oft_blocks": [2, 2]},
    "no weights": {},
    "is not a LoRA": {"some.weight": [2, 2]},
}


@pytest.mark.parametrize("words", WRONG)
def test_a_file_of_another_kind_is_refused_by_its_header(tmp_path: Path, words: str) -> None:
    write(tmp_path / "wrong.safetensors", WRONG[words])
    with pytest.raises(AdapterError, match=words) as refusal:
        AdapterFolder(tmp_path).find("wrong")
    assert refusal.value.message.startswith('the LoRA "wrong" ')


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04", "pickled"),
        (b"<html>", "web page"),
        (b"version https://git-lfs", "git-lfs"),
        ((9**9).to_bytes(8, "little"), "cut off"),
        ((2).to_bytes(8, "little") + b"[]", "cut off"),
    ],
)
def test_a_broken_file_is_refused_by_its_start(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "broken.safetensors").write_bytes(content)
    with pytest.raises(AdapterError, match=words):
        AdapterFolder(tmp_path).find("broken")


def test_a_file_that_is_still_being_copied_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "half.safetensors", attention(2048))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(AdapterError, match="cut off"):
        AdapterFolder(tmp_path).find("half")
