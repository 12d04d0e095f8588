"""Words on the terminal."""

from rich.console import Console
from rich.text import Text


def printable(text: str) -> str:
    """Return text from elsewhere without the control characters by which it could command the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def say(console: Console, words: str, style: str = "") -> None:
    """Print prose, wrapped on a terminal alone."""
    console.print(Text(printable(words), style), soft_wrap=not console.file.isatty())
