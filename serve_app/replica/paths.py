"""Paths that settings name. pathlib raises bare OSErrors for impossible names; these functions name the setting."""

import os
from pathlib import Path

from serve_app.errors import CheckpointError


def user_path(name: str) -> Path:
    """Return the path that a setting names, with `~` and `~user` expanded if that home folder exists."""
    return Path(os.path.expanduser(name))


def is_there(setting: str, path: Path) -> bool:
    """Return whether a path exists. Raises CheckpointError if that cannot be looked up."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise CheckpointError(f"model.{setting}: {path} cannot be looked up: {error.strerror}") from error
    return True
