"""What cannot be applied is refused: nothing of a file is left out in silence."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from serve_app.errors import AdapterError
from serve_app.recipe import picture_hash
from serve_app.replica.lora import Shapes, read_lora
from serve_app.replica.lora.building import Unfit, build
from serve_app.replica.lora.keys import Part
from serve_app.replica.lora.names import spellings_of_unet
from serve_app.replica.lora.strength import Strength
from tests.lora_files import Tensors, kohya, noise, peft, per_layer, save
from tests.single_file import original_unet_names

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
KEY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def test_each_layer_has_both_names_alone(models: Mapping[str, nn.Module]) -> None:
    names = original_unet_names(models["unet"])
    spelled = spellings_of_unet(names)
    for own, original in names.items():
        assert spelled[own.replace(".", "_")] == spelled[original.replace(".", "_")] == own


Change = Callable[[Tensors], object]
FAULTS: dict[str, tuple[Change, str]] = {
    "unknown": (lambda t: t.update({f"{KEY}.surprise": noise(2, 2)}), "cannot be applied: .*surprise"),
    "another model's layer": (lambda t: t.update({"lora_unet_extra.lora_up.weight": noise(2, 2)}), "does not have"),
    "half": (lambda t: t.pop(f"{KEY}.lora_up.weight"), "lacks its part up"),
    "alpha alone": (lambda t: (t.pop(f"{KEY}.lora_up.weight"), t.pop(f"{KEY}.lora_down.weight")), "lacks its part up"),
    "mixed": (lambda t: t.update({f"{KEY}.lokr_t2": noise(2, 2)}), "do not belong together: lokr_t2"),
    "ranks": (lambda t: t.update({f"{KEY}.lora_up.weight": noise(64, 3)}), "different ranks"),
    "shape": (lambda t: t.update({f"{KEY}.lora_up.weight": noise(63, 4)}), "changes a weight of 63 x 64"),
    "twice": (lambda t: t.update({f"unet.{LAYER}.lora_A.weight": noise(4, 64)}), "twice, under two names"),
    "infinite": (lambda t: t[f"{KEY}.lora_up.weight"].view(-1)[0].fill_(torch.inf), "no finite numbers"),
    "not a number": (lambda t: t[f"{KEY}.lora_up.weight"].view(-1)[0].fill_(torch.nan), "no finite numbers"),
    "beyond 32 bits": (
        lambda t: t.update({f"{KEY}.alpha": torch.tensor(1e300, dtype=torch.float64)}),
        "no finite numbers",
    ),
    "quantized": (lambda t: t.update({f"{KEY}.lora_up.weight": torch.ones(64, 4, dtype=torch.int8)}), "int8"),
    "alphas": (lambda t: t.update({f"{KEY}.alpha": noise(2)}), "has a alpha of 2"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_with_a_fault_is_refused(
    models: Mapping[str, nn.Module], shapes: Shapes, tmp_path: Path, fault: str
) -> None:
    change, words = FAULTS[fault]
    tensors = kohya(models, original=False)
    assert f"{KEY}.lora_up.weight" in tensors
    change(tensors)
    with pytest.raises(AdapterError, match=words):
        read_lora(save(tmp_path / "faulty.safetensors", tensors), shapes, "faulty")


def test_a_file_that_has_changed_is_refused(models: Mapping[str, nn.Module], shapes: Shapes, tmp_path: Path) -> None:
    file = save(tmp_path / "a.safetensors", peft(models["unet"]))
    read_lora(file, shapes, "a", picture_hash(file.read_bytes()))
    with pytest.raises(AdapterError, match="another file by now"):
        read_lora(file, shapes, "a", picture_hash(b"another"))


def test_the_settings_beside_a_file_of_peft_count(
    models: Mapping[str, nn.Module], shapes: Shapes, tmp_path: Path
) -> None:
    file = save(tmp_path / "adapter_model.safetensors", peft(models["unet"], prefix="base_model.model."))
    plain = read_lora(file, shapes, "a").components["unet"][LAYER]
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 12}')
    assert (plain.strength, read_lora(file, shapes, "a").components["unet"][LAYER].strength) == (1, 3)


@pytest.mark.parametrize("along", [0, 1])
def test_dora_of_lycoris_counts_rows_or_columns(
    models: Mapping[str, nn.Module], shapes: Shapes, tmp_path: Path, along: int
) -> None:
    pristine: Tensor = models["unet"].get_submodule(LAYER).weight.detach()  # type: ignore[operator]  # may be a module
    up, down = noise(64, 4), noise(4, 64)
    lengths = pristine.norm(dim=along, keepdim=True) * 1.2
    parts = {"lora_up.weight": up, "lora_down.weight": down, "dora_scale": lengths}
    file = save(tmp_path / "a.safetensors", per_layer(models["unet"], f"^{LAYER}$", lambda _: parts))
    total = pristine.clone()
    read_lora(file, shapes, "a").components["unet"][LAYER].add_to(total, pristine, 1)
    changed = pristine + up @ down
    torch.testing.assert_close(total, lengths * changed / changed.norm(dim=along, keepdim=True))


def test_a_dora_that_is_stored_whole_changes_each_time_the_same() -> None:
    """Of its tensors one may be what is added: it is kept, and must stay as it was read."""
    delta = build({Part.DIFF: noise(4, 6), Part.MAGNITUDE: noise(4)}, torch.Size((4, 6)), Strength())
    pristine = noise(4, 6)
    first, second = pristine.clone(), pristine.clone()
    for total in (first, second):
        delta.add_to(total, pristine, 0.5)
    assert torch.equal(first, second)


def test_weights_of_a_type_that_torch_has_not_are_refused(
    models: Mapping[str, nn.Module], shapes: Shapes, tmp_path: Path
) -> None:
    file = save(tmp_path / "odd.safetensors", {name: t.to(torch.float8_e5m2) for name, t in kohya(models).items()})
    file.write_bytes(file.read_bytes().replace(b"F8_E5M2", b"F8_E8M0"))
    with pytest.raises(AdapterError, match="of the type F8_E8M0, which cannot be read"):
        read_lora(file, shapes, "odd")


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({Part.UP: (4, 2), Part.DOWN: (2, 6), Part.MID: (2, 2, 1)}, "mid of 2 x 2 x 1"),
        ({Part.UP: (4, 2), Part.DOWN: (2, 6), Part.MID: (2, 2, 1, 1, 1)}, "mid of 2 x 2 x 1 x 1 x 1"),
        (
            {Part.LOKR_W1: (2, 6), Part.LOKR_W2_A: (1, 1, 2), Part.LOKR_W2_B: (1, 1), Part.LOKR_T2: (1, 1, 1, 1)},
            "no matrices",
        ),
    ],
)
def test_what_is_accepted_can_be_merged(tensors: Mapping[Part, tuple[int, ...]], why: str) -> None:
    parts = {part: torch.ones(shape) for part, shape in tensors.items()}
    with pytest.raises(Unfit, match=why):
        build(parts, torch.Size((4, 6)), Strength())


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"unet.lora_alpha": float("nan"), "unet.r": 4}, "its alpha is nan"),
        ({"unet.lora_alpha": 10**400, "unet.r": 4}, "its alpha is 1000000"),
        ({"unet.lora_alpha": "8", "unet.r": 4}, "its alpha is 8"),
        ({"unet.lora_alpha": 8, "unet.r": -4}, "its rank is -4"),
        ({"unet.alpha_pattern": {"(.+)+x": 8}, "unet.r": 4}, "a pattern that is not read: "),
        ({"unet.alpha_pattern": {"[": 8}, "unet.r": 4}, "its patterns are none"),
    ],
)
def test_settings_that_are_no_numbers_are_refused(
    models: Mapping[str, nn.Module], shapes: Shapes, tmp_path: Path, settings: dict[str, object], why: str
) -> None:
    file = save(tmp_path / "set.safetensors", peft(models["unet"]), {"lora_adapter_metadata": json.dumps(settings)})
    with pytest.raises(AdapterError, match=why):
        read_lora(file, shapes, "set")


def test_settings_that_are_nested_without_end_are_refused(
    models: Mapping[str, nn.Module], shapes: Shapes, tmp_path: Path
) -> None:
    deep = '{"a":' * 100_000 + "1" + "}" * 100_000
    file = save(tmp_path / "deep.safetensors", peft(models["unet"]), {"lora_adapter_metadata": deep})
    with pytest.raises(AdapterError, match="broken metadata"):
        read_lora(file, shapes, "deep")


@pytest.mark.parametrize("fault", ["a gap", "another start", "another size", "negative", "beyond bounds", "cut off"])
def test_tensors_that_do_not_fill_their_file_are_refused(
    models: Mapping[str, nn.Module], shapes: Shapes, tmp_path: Path, fault: str
) -> None:
    file = save(tmp_path / "odd.safetensors", peft(models["unet"]))
    length = int.from_bytes(file.read_bytes()[:8], "little")
    header, weights = json.loads(file.read_bytes()[8 : 8 + length]), file.read_bytes()[8 + length :]
    first, *_, last = sorted(header, key=lambda key: header[key]["data_offsets"][1])
    if fault == "another size":
        header[first]["shape"][0] += 1
    elif fault == "negative":
        header[first]["shape"] = [-side for side in header[first]["shape"]]
    elif fault == "beyond bounds":
        header["none"] = {"dtype": "F32", "shape": [0, 10**30], "data_offsets": [0, 0]}
    elif fault == "another start":
        header[last]["data_offsets"][0] -= 8
    elif fault == "a gap":
        header[last]["data_offsets"] = [offset + 8 for offset in header[last]["data_offsets"]]
        weights += bytes(8)
    else:
        weights = weights[:-8]
    said = json.dumps(header).encode()
    file.write_bytes(len(said).to_bytes(8, "little") + said + weights)
    with pytest.raises(AdapterError, match="is not a complete"):
        read_lora(file, shapes, "odd")
