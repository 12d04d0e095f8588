"""The folder of adapters: names, what each file says, and which are refused before their weights are read."""

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import Mock

import pytest

from serve_app.adapters import AdapterFolder
from serve_app.adapters.header import read_header
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
    with pytest.raises(AdapterError, match="which holds no LoRA"):
        folder.find("new")
    file = write(tmp_path / "new.safetensors", attention(2048))
    adapter = folder.find("new")
    assert folder.hash_if_known(adapter) is None
    assert folder.hash_of(adapter) == picture_hash(file.read_bytes()) == folder.hash_if_known(adapter)
    write(file, attention(2048), another="version")
    assert folder.hash_of(folder.find("new")) == picture_hash(file.read_bytes())


@pytest.mark.parametrize(
    "name", ["../out", "in/../../out", "/etc/out", "link", "", ".", "in//out", "a\0b", "..\\out", "a\nb"]
)
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    out = write(tmp_path / "out.safetensors", attention(2048))
    inside = tmp_path / "adapters"
    (inside / "in").mkdir(parents=True)
    (inside / "link.safetensors").symlink_to(out)
    write(inside / "a\nb.safetensors", attention(2048))
    folder = AdapterFolder(inside)
    with pytest.raises(AdapterError, match=r"adapters\.path"):
        folder.find(name)
    (link,) = folder.loras()
    assert (link.name, link.unusable is not None and "leads out" in link.unusable) == ("link", True)


@pytest.mark.parametrize("target", ["nowhere", "link.safetensors"])
def test_a_link_that_leads_nowhere_says_so(tmp_path: Path, target: str) -> None:
    (tmp_path / "link.safetensors").symlink_to(tmp_path / target)
    with pytest.raises(AdapterError, match="or nowhere"):
        AdapterFolder(tmp_path).find("link")


def test_a_link_inside_the_folder_is_the_file(tmp_path: Path) -> None:
    write(tmp_path / "..data/real.safetensors", attention(2048))
    (tmp_path / "shown.safetensors").symlink_to(tmp_path / "..data/real.safetensors")
    assert [adapter.unusable for adapter in AdapterFolder(tmp_path).loras()] == [None]


def test_a_file_that_takes_the_place_of_another_of_its_size_and_time_is_another(tmp_path: Path) -> None:
    folder = AdapterFolder(tmp_path)
    for name in "ab":
        os.utime(write(tmp_path / f"{name}.safetensors", attention(2048), name=name), (0, 0))
    first, second = (folder.hash_of(folder.find(name)) for name in "ab")
    (tmp_path / "b.safetensors").replace(tmp_path / "a.safetensors")
    assert folder.hash_of(folder.find("a")) == second != first


def test_a_file_that_could_not_be_read_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.safetensors", attention(2048))
    folder = AdapterFolder(tmp_path)
    with monkeypatch.context() as hung:
        hung.setattr(Path, "open", Mock(side_effect=OSError(errno.EIO, "Input/output error")))
        with pytest.raises(AdapterError, match="cannot be read: Input/output error"):
            folder.find("a")
    assert folder.find("a").unusable is None


BROKEN_NUMBERS: Sequence[dict[str, object]] = (
    {"data_offsets": []},
    {"data_offsets": "x"},
    {"shape": [1e999, 2]},
    {"shape": [[]]},
    {"shape": None},
    {"dtype": "\ud83d"},
)


@pytest.mark.parametrize("wrong", BROKEN_NUMBERS)
def test_no_header_costs_the_others_their_place_in_the_list(tmp_path: Path, wrong: dict[str, object]) -> None:
    said = json.dumps({"a.lora_up.weight": {"dtype": "F16", "shape": [1, 2], "data_offsets": [0, 4], **wrong}}).encode()
    (tmp_path / "broken.safetensors").write_bytes(len(said).to_bytes(8, "little") + said + bytes(4))
    write(tmp_path / "good.safetensors", attention(2048), ss_tag_frequency=json.dumps({"tags": {"cat": 1e999}}))
    broken, good = AdapterFolder(tmp_path).loras()
    assert broken.unusable is not None
    assert "not a complete" in broken.unusable
    assert (good.unusable, good.trigger_words) == (None, ())


def test_a_tag_that_was_cut_off_within_a_character_can_be_told(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", attention(2048), ss_tag_frequency='{"tags": {"cat \\ud83d": 1}}')
    (adapter,) = AdapterFolder(tmp_path).loras()
    assert adapter.trigger_words == ("cat ?",)


EMBEDDING = {"clip_l": [2, 4], "clip_g": [2, 8]}


@pytest.mark.parametrize("name", ["bad(1)", "my style", "v1-", "näme, x"])
def test_an_embedding_that_no_prompt_can_name_says_so(tmp_path: Path, name: str) -> None:
    write(tmp_path / f"{name}.safetensors", EMBEDDING)
    write(tmp_path / "fine-näme+1.5.safetensors", EMBEDDING)
    told = {adapter.name: adapter.unusable for adapter in AdapterFolder(tmp_path).embeddings()}
    assert told.pop("fine-näme+1.5") is None
    assert "rename its file" in str(told[name])


def test_what_is_missing_is_looked_for_among_its_own_kind(tmp_path: Path) -> None:
    write(tmp_path / "ink.safetensors", attention(2048))
    folder = AdapterFolder(tmp_path)
    with pytest.raises(AdapterError, match="which holds no embedding"):
        folder.find_embedding("inc")
    with pytest.raises(AdapterError, match=r"adapters\.path is not a folder"):
        AdapterFolder(tmp_path / "none").find("ink")


def test_of_embeddings_by_name_no_other_file_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Neg", "other"):
        write(tmp_path / f"{name}.safetensors", EMBEDDING)
    looked = Mock(side_effect=read_header)
    monkeypatch.setattr("serve_app.adapters.folder.read_header", looked)
    assert [one.name for one in AdapterFolder(tmp_path).embeddings({"neg", "cat"})] == ["Neg"]
    assert [call.args[0].name for call in looked.mock_calls] == ["Neg.safetensors"]


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
