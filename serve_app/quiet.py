"""What the log is spared: lines that say nothing, or would worry people for nothing."""

import logging
from collections.abc import Mapping

_HARMLESS: Mapping[str, str] = {
    "transformers.utils.import_utils": "requires torchvision",  # to read images, which this service does not
    "diffusers.configuration_utils": "were passed to AutoencoderTiny, but are not expected",  # TAESD's own config
    "diffusers.models.modeling_utils": "that should be kept in float32: []",  # it names none
}
"""A part of each library's warning at a start, by its logger."""


def drop_access_log() -> None:
    """Drop Serve's line of each call to this replica: a poll comes every second, and we log each request ourselves.

    Not by a deployment's `logging_config`: that would put aside the one in the user's config, JSON included.
    """
    logging.getLogger("ray.serve").addFilter(_is_no_access)


def drop_harmless_warnings() -> None:
    """Drop the warnings of libraries that say nothing about the service."""
    for name in _HARMLESS:
        logging.getLogger(name).addFilter(_is_no_harmless_warning)


def _is_no_access(record: logging.LogRecord) -> bool:
    return not getattr(record, "serve_access_log", False)


def _is_no_harmless_warning(record: logging.LogRecord) -> bool:
    return _HARMLESS[record.name] not in record.getMessage()
