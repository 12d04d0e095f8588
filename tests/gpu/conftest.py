from pathlib import Path

import torch

# These tests need CUDA graphs, streams, waits or kernels, which a CPU does not have.
collect_ignore = [] if torch.cuda.is_available() else [path.name for path in Path(__file__).parent.glob("test_*.py")]
