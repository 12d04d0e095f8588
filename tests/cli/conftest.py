import base64
from pathlib import Path

import numpy as np
import pytest

from serve_app.imaging import encode_picture
from serve_app.schemas import ModelInfo
from tests.conftest import make_slot

MODEL = ModelInfo(
    name="sdxl",
    revision="abc123",
    hash="0123456789",
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture of ours."""
    path = tmp_path / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path.write_bytes(base64.b64decode(encode_picture(pixels, make_slot(), MODEL)))
    return path
