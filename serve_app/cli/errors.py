"""The errors that end a command, each with its exit code."""

from enum import IntEnum
from typing import ClassVar


class Exit(IntEnum):
    """Exit codes, as documented in `--help` and the README."""

    OK = 0
    MISSING = 1
    UNUSABLE = 2
    UNAVAILABLE = 3
    UNFORESEEN = 4
    # As shells report SIGINT and SIGPIPE.
    INTERRUPTED = 130
    UNREAD = 141


class CommandError(Exception):
    """Ends a command. The message is for people and says what to do."""

    exit_code: ClassVar[Exit]


class NotGenerated(CommandError):
    """The service accepted the request, but images are missing."""

    exit_code = Exit.MISSING


class Unusable(CommandError):
    """The command cannot use its input, such as a file without parameters."""

    exit_code = Exit.UNUSABLE


class SettingRefused(Unusable):
    """The service refuses the field `param`, or the whole request if it is None."""

    def __init__(self, message: str, param: str | None) -> None:
        super().__init__(message, param)
        self.message = message
        self.param = param

    def __str__(self) -> str:
        return f"the service refuses this: {self.message}"


class Unavailable(CommandError):
    """The service cannot be reached, is busy, needs a key, or closed the connection."""

    exit_code = Exit.UNAVAILABLE


class Unwritten(Unusable):
    """The command's output cannot be written."""


class Unread(CommandError):
    """The reader of the command's output has gone, as with `| head`; there is no message."""

    exit_code = Exit.UNREAD
