import torch

# These tests need CUDA graphs, streams and waits, which a CPU does not have.
collect_ignore = [] if torch.cuda.is_available() else ["test_gpu.py"]
