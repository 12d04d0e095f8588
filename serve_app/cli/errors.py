"""Why a command ends without what it was asked for, as types that know their exit code."""

from typing import ClassVar


class CommandError(Exception):
    """The message is a sentence for people, and says what to do."""

    exit_code: ClassVar[int]


class NotPainted(CommandError):
    """Images are missing, though the service took the request."""

    exit_code = 1


class Unusable(CommandError):
    """The command was given something that cannot be used, such as a file without parameters."""

    exit_code = 2


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

    exit_code = 3
