import pytest
import torch

from serve_app.replica.device import DeviceError, prepare_device


@pytest.mark.parametrize(("cpus", "expected"), [(0, 1), (0.5, 1), (1, 1), (2, 2)])
def test_a_cpu_replica_has_a_thread_for_each_core(cpus: float, expected: int) -> None:
    try:
        assert prepare_device(num_gpus=0, num_cpus=cpus).type == "cpu"
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(1)


def test_a_gpu_that_is_not_there_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="num_gpus: 0"):
        prepare_device(num_gpus=1, num_cpus=1)
