"""Why a command ends without what it was asked for, as types that know their exit code."""

from enum import IntEnum
from typing import ClassVar


class Exit(IntEnum):
    """Exit codes, as `--help` and the README tell them."""

    OK = 0
    MISSING = 1
    UNUSABLE = 2
    UNAVAILABLE = 3
    UNFORESEEN = 4
    # As shells tell of SIGINT and SIGPIPE.
    INTERRUPTED = 130
    UNREAD = 141


class CommandError(Exception):
    """The message is a sentence for people, and says what to do."""

    exit_code: ClassVar[Exit]


class NotGenerated(CommandError):
    """Images are missing, though the service took the request."""

    exit_code = Exit.MISSING


class Unusable(CommandError):
    """The command was given something that cannot be used, such as a file without parameters."""

    exit_code = Exit.UNUSABLE


class SettingRefused(Unusable):
    """The service refuses the field `param` of the request, or the request as a whole."""

    def __init__(self, message: str, param: str | None) -> None:
        super().__init__(message, param)
        self.message = message
        self.param = param

    def __str__(self) -> str:
        return f"the service refuses this: {self.message}"


class Unavailable(CommandError):
    """The service is not there, has no room, wants a key, or broke off."""

    exit_code = Exit.UNAVAILABLE


class Unwritten(Unusable):
    """What the command says cannot be written."""


class Unread(CommandError):
    """Nobody reads what the command says, so that there is nothing more to say."""

    exit_code = Exit.UNREAD
