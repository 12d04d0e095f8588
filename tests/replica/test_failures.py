"""What libraries raise, word for word, and what it has cost."""

import pytest
import torch

from serve_app.replica.failures import Failure, failure_of

HINT = """
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Device-side assertion tracking was not enabled by user."""

DEVICE: list[Exception] = [
    torch.AcceleratorError(f"CUDA error: an illegal memory access was encountered{HINT}"),
    torch.AcceleratorError(f"CUDA error: device-side assert triggered{HINT}"),
    RuntimeError(f"CUDA error: unspecified launch failure{HINT}"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa, opb, m, n, k)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA driver error: an illegal memory access was encountered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR\nYou can try to repro this exception using the following"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
]

MEMORY: list[Exception] = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    torch.AcceleratorError(f"CUDA error: out of memory{HINT}"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError("Unable to allocate 8.00 GiB for an array"),
]

SLOT: list[Exception] = [
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasLtMatmul( ltHandle, computeDesc)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous"),
    torch.AcceleratorError(f"CUDA error: invalid configuration argument{HINT}"),
    RuntimeError("Triton Error [CUDA]: invalid argument"),
    RuntimeError("The size of tensor a (8) must match the size of tensor b (9) at non-singleton dimension 3"),
    ValueError("a prompt on a CUDA error: out of memory"),
    OSError("no encoder"),
]


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        *[(error, Failure.DEVICE) for error in DEVICE],
        *[(error, Failure.MEMORY) for error in MEMORY],
        *[(error, Failure.SLOT) for error in SLOT],
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_an_error_has_cost(error: Exception, failure: Failure) -> None:
    assert failure_of(error) is failure
