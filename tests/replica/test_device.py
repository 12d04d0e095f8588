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


def test_a_process_that_sees_gpus_of_others_is_no_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch._C, "_cuda_getDeviceCount", lambda: 1, raising=False)
    assert prepare_device(num_gpus=1, num_cpus=1) == torch.device("cuda", 0)
    monkeypatch.setattr(torch._C, "_cuda_getDeviceCount", lambda: 4)
    with pytest.raises(DeviceError, match="given 1 of 4 GPUs"):
        prepare_device(num_gpus=1, num_cpus=1)
