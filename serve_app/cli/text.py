"""Text on the terminal."""

from rich.console import Console
from rich.text import Text


def printable(text: str) -> str:
    """Return untrusted text without control characters, which could command the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def say(console: Console, words: str, style: str = "") -> None:
    """Print prose, wrapped only on a terminal."""
    console.print(Text(printable(words), style), soft_wrap=not console.file.isatty())
