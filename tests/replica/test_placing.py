"""Weights come to the device as they are, whatever group they are copied in."""

import copy

import pytest
import torch
from torch import nn

from serve_app.replica.placing import begin


class Model(nn.Module):
    """Weights of several types and layouts, two of which are one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3, dtype=torch.float16)
        self.second = nn.Linear(7, 9)
        self.same = self.second.weight
        self.turned = nn.Parameter(torch.randn(6, 4, dtype=torch.float16).t())
        self.scale = nn.Parameter(torch.tensor(0.1))
        self.register_buffer("places", torch.arange(77))
        self.register_buffer("nothing", torch.empty(0, 3))


def assert_placed(device: torch.device, at_once: int) -> None:
    torch.manual_seed(0)
    model = Model()
    expected = copy.deepcopy(model).to(device).to(torch.bfloat16)
    for fill in list(begin(model, device, torch.bfloat16, at_once)):
        fill()
    assert model.same is model.second.weight
    for name, tensor in expected.state_dict().items():
        ours = model.state_dict()[name]
        assert (ours.dtype, ours.device, ours.stride()) == (tensor.dtype, tensor.device, tensor.stride()), name
        assert torch.equal(ours, tensor), name


@pytest.mark.parametrize("at_once", [1, 600, 2**20])
def test_a_placed_model_has_the_bits_types_and_layouts_that_torch_gives_it(at_once: int) -> None:
    assert_placed(torch.device("cpu"), at_once)
