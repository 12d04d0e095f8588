"""Which lines the log is spared."""

import logging
from collections.abc import Iterator

import pytest
import torch
from diffusers import AutoencoderTiny

from serve_app.quiet import drop_access_log, drop_harmless_warnings


class Kept(logging.Handler):
    """Keeps what reaches it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What reaches the handlers of the libraries and of Serve."""
    kept = Kept()
    names = (
        "ray.serve",
        "transformers.utils.import_utils",
        "diffusers.configuration_utils",
        "diffusers.models.modeling_utils",
    )
    loggers = [logging.getLogger(name) for name in names]
    filters = [list(one.filters) for one in loggers]
    for one in loggers:
        one.addHandler(kept)
        one.filters.clear()  # an earlier test of this process may have loaded a model
    yield kept.lines
    for one, before in zip(loggers, filters, strict=True):
        one.removeHandler(kept)
        one.filters[:] = before


def noisy() -> None:
    """Do what makes diffusers warn at a start, and something else."""
    tiny = {"encoder_block_out_channels": (8,), "decoder_block_out_channels": (8,), "num_encoder_blocks": (1,)}
    vae = AutoencoderTiny.from_config({**tiny, "num_decoder_blocks": (1,), "block_out_channels": [8]})
    vae.to(torch.bfloat16)
    logging.getLogger("transformers.utils.import_utils").warning("`CLIPImageProcessor` requires torchvision")
    logging.getLogger("diffusers.configuration_utils").warning("something else")


def test_libraries_warn_of_nothing_at_a_start(logged: list[str]) -> None:
    noisy()
    assert len(logged) == 4
    logged.clear()
    drop_harmless_warnings()
    noisy()
    assert logged == ["something else"]


def test_calls_are_not_logged_but_errors_are(logged: list[str]) -> None:
    drop_access_log()
    logger = logging.getLogger("ray.serve")
    logger.warning("CALL poll OK 1.0ms", extra={"serve_access_log": True})
    logger.warning("the device has failed")
    assert logged == ["the device has failed"]
