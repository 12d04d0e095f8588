"""Tensors of an adapter, in one block of the device's memory."""

import pytest
import torch

from serve_app.replica.lora.packing import Packer


@pytest.mark.parametrize("room", [0, 1024, 2**20])
def test_each_keeps_its_numbers_type_and_order_and_starts_as_one_of_its_own(room: int) -> None:
    packer = Packer(torch.device("cpu"))
    packer._pinned = torch.empty(room, dtype=torch.uint8)  # on a GPU, what is sent at once
    odd = torch.frombuffer(bytearray(9), dtype=torch.float32, offset=1, count=2)
    tensors = [
        odd,
        torch.randn(3, 5).half(),
        torch.randn(1),
        torch.randn(40, 30),
        torch.randn(1201).half(),
        torch.randn(7, 3).T,
        torch.empty(0, 4),
        torch.randn(2, 2, dtype=torch.float64),
    ]
    packed = packer.pack(tensors)
    for before, after in zip(tensors, packed, strict=True):
        assert torch.equal(before, after)
        assert (before.dtype, before.stride()) == (after.dtype, after.stride())
    starts = [tensor.storage_offset() * tensor.itemsize for tensor in packed]
    assert not any(start % 512 for start in starts)
    assert len({tensor.untyped_storage().data_ptr() for tensor in packed}) == 1
