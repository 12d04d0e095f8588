"""What the log is spared: lines that say nothing, or would worry people for nothing."""

import logging


def _is_no_access(record: logging.LogRecord) -> bool:
    return not getattr(record, "serve_access_log", False)


def drop_access_log() -> None:
    """Drop Serve's line of each call to this replica: a poll comes every second, and we log each request ourselves.

    Not by a deployment's `logging_config`: that would put aside the one in the user's config, JSON included.
    """
    logging.getLogger("ray.serve").addFilter(_is_no_access)
