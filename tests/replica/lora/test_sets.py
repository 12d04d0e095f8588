"""Weight sets: adapters merged into copies of the UNet, in the engine."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.fp8 import Fp8Linear
from serve_app.replica.lora.merging import Addition, Layers
from serve_app.replica.lora.sets import Adapters, WeightSets
from serve_app.replica.prompt_reader import PromptReader
from serve_app.replica.prompts import PromptEncoder
from tests.conftest import MakeEngine, make_slot
from tests.replica.lora.crowds import require_a_crowd_is_as_alone


@dataclass(frozen=True)
class Noise:
    """A change of random numbers."""

    seed: int
    size: float = 0.02

    def add_to(self, total: torch.Tensor, pristine: torch.Tensor, scale: float) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        total.add_(torch.randn(total.shape, generator=generator), alpha=self.size * scale)


Changes = Mapping[str, Mapping[str, Noise]]
MakeAdapters = Callable[..., Adapters]


@pytest.fixture
def adapters(checkpoint: Checkpoint) -> MakeAdapters:
    """Make adapters such as adapters(a=1.0, b=0.5): each changes other layers in its own way."""

    def make(**scales: float) -> Adapters:
        return Adapters(tuple(scales.items()), tuple(layers(name) for name in scales))

    def layers(name: str) -> Changes:
        seed = ord(name)
        chosen = [
            layer
            for layer in Layers(checkpoint.unet).shapes
            if "attn1" in layer or "attn2.to_k" in layer or (name == "b" and "conv1" in layer)
        ]
        text = [layer for layer in Layers(checkpoint.pipe.text_encoder_2).shapes if "q_proj" in layer]
        return {
            "unet": {layer: Noise(seed + place) for place, layer in enumerate(chosen)},
            "text_encoder_2": {layer: Noise(seed) for layer in text} if name != "a" else {},
        }

    return make


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(before: Mapping[str, torch.Tensor], model: nn.Module) -> bool:
    return all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_crowd_of_adapters_generates_what_each_does_alone(
    make_engine: MakeEngine, adapters: MakeAdapters, checkpoint: Checkpoint
) -> None:
    mixes = [Adapters(), adapters(a=1.0), adapters(b=1.0), adapters(a=0.5), adapters(a=1.0, b=1.0)]
    before = bits(checkpoint.unet), bits(checkpoint.pipe.text_encoder_2)
    require_a_crowd_is_as_alone(make_engine, mixes * 2, num_inference_steps=3)
    assert same(before[0], checkpoint.unet)
    assert same(before[1], checkpoint.pipe.text_encoder_2)


def test_jobs_wait_for_a_set_where_there_are_few(make_engine: MakeEngine, adapters: MakeAdapters) -> None:
    few = make_engine(max_batch_size=4, weight_sets=1)
    mixes = [adapters(a=1.0), adapters(b=1.0), Adapters(), adapters(a=1.0)]
    slots = [make_slot(seed=seed, keep_pixels=True) for seed in range(4)]
    alone = [few.submit(slot, mix).result().b64_json for slot, mix in zip(slots, mixes, strict=True)]
    collectors = [few.submit(slot, mix) for slot, mix in zip(slots, mixes, strict=True)]
    assert [collector.result().b64_json for collector in collectors] == alone


def test_a_set_keeps_its_place_in_memory_and_forgets_what_it_held(
    checkpoint: Checkpoint, adapters: MakeAdapters
) -> None:
    sets = WeightSets(checkpoint.unet, resident=1)
    with torch.inference_mode():
        first = sets.of(adapters(b=1.0), ())
        places = [parameter.data_ptr() for parameter in first.unet.parameters()]
        sets.of(adapters(a=1.0), ())
        fresh = WeightSets(checkpoint.unet, resident=1).of(adapters(a=1.0), ())
    assert [parameter.data_ptr() for parameter in first.unet.parameters()] == places
    assert same(bits(fresh.unet), first.unet)
    assert not same(bits(checkpoint.unet), first.unet)


def test_a_set_in_use_is_not_given_away(checkpoint: Checkpoint, adapters: MakeAdapters) -> None:
    sets = WeightSets(checkpoint.unet, resident=2)
    with torch.inference_mode():
        a = sets.of(adapters(a=1.0), ())
        b = sets.of(adapters(b=1.0), {a})
        assert sets.of(adapters(a=1.0), {a, b}) is a, "its adapters are there"
        assert sets.of(Adapters(), {a, b}) is sets.own
        with pytest.raises(RuntimeError, match="in use"):
            sets.of(adapters(a=0.5), {a, b})
        assert sets.of(adapters(a=0.5), {a}) is b
        assert sets.of(adapters(b=0.5), ()) is a, "the least recently used"


@dataclass(frozen=True)
class Failing:
    """A change for which there is no memory."""

    def add_to(self, total: torch.Tensor, pristine: torch.Tensor, scale: float) -> None:
        raise MemoryError


def test_a_set_in_whose_midst_merging_failed_has_no_adapters(
    checkpoint: Checkpoint, adapters: MakeAdapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.replica.lora.merging._AT_ONCE", 1)  # one layer after the other
    sets = WeightSets(checkpoint.unet, resident=1)
    broken = adapters(b=1.0).deltas[0]["unet"]
    last = [*broken][-1]
    with torch.inference_mode():
        first = sets.of(adapters(a=1.0), ())
        expected = bits(first.unet)
        with pytest.raises(MemoryError):
            sets.of(Adapters((("c", 1.0),), ({"unet": {**broken, last: Failing()}},)), ())
        assert not same(expected, first.unet)
        again = sets.of(adapters(a=1.0), ())
    assert same(expected, again.unet)


def test_a_prompt_is_encoded_for_its_adapters_and_their_keys_are_those_of_the_set(
    checkpoint: Checkpoint, adapters: MakeAdapters
) -> None:
    encoder = PromptEncoder(checkpoint.pipe, checkpoint.device, 8)
    apple = PromptReader(checkpoint.pipe).read(make_slot().recipe).rows[-1]
    sets = WeightSets(checkpoint.unet, resident=2)
    with torch.inference_mode():
        plain = encoder.encode(apple)
        only_unet = encoder.encode(apple, sets.of(adapters(a=1.0), ()))
        both = encoder.encode(apple, sets.of(adapters(b=1.0), ()))
        again = PromptEncoder(checkpoint.pipe, checkpoint.device, 8).encode(apple)
    assert torch.equal(plain.pooled, only_unet.pooled)
    of_plain, of_unet, of_again = (each.context for each in (plain, only_unet, again))
    assert of_plain is not None
    assert of_unet is not None
    assert of_again is not None
    assert not torch.equal(of_plain, of_unet)
    assert not torch.equal(plain.pooled, both.pooled)
    assert torch.equal(of_plain, of_again)
    assert torch.equal(plain.pooled, again.pooled)


def test_a_model_has_its_own_bits_again_after_a_failure() -> None:
    layer = nn.Sequential(nn.Linear(4, 4, dtype=torch.bfloat16)).requires_grad_(requires_grad=False)
    before = bits(layer)
    changed = []

    def fail_once_changed() -> None:
        with Layers(layer).merged({"0": [Addition(slice(None), Noise(1, 1.0), 1.0)]}):
            changed.append(not same(before, layer))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_once_changed()
    assert changed == [True]
    assert same(before, layer)


def test_a_layer_in_8_bits_takes_changes_and_its_own_bits_again() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 32, dtype=torch.bfloat16)
    own = nn.Sequential(Fp8Linear(linear, torch.tensor(3.0), keep=True))
    target = copy.deepcopy(own)
    addition = Addition(slice(0, 16), Noise(1, 0.5), 1.0)
    with torch.inference_mode():
        Layers(target).write(Layers(own), {"0": [addition]})
        changed = bits(target)
        Layers(target).write(Layers(own), {}, restored=["0"])
    assert same(bits(own), target)
    assert not torch.equal(changed["0.weight"], target.state_dict()["0.weight"])
    expected = linear.weight.detach().float().clone()
    Noise(1, 0.5).add_to(expected[:16], expected[:16], 1.0)
    restored = changed["0.weight"].float() * changed["0.weight_scale"]
    assert np.corrcoef(restored.flatten(), expected.flatten())[0, 1] > 0.999
