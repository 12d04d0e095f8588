"""What the settings name on this machine. pathlib's own look-ups raise bare errors where there can be no such name."""

import os
from pathlib import Path

from serve_app.errors import CheckpointError


def user_path(name: str) -> Path:
    """Return the path that a setting names, `~` and `~user` as the home folder where there is one."""
    return Path(os.path.expanduser(name))


def is_there(setting: str, path: Path) -> bool:
    """Say whether a path leads to something. Raises CheckpointError where that cannot be looked up."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise CheckpointError(f"model.{setting}: {path} cannot be looked up: {error.strerror}") from error
    return True
