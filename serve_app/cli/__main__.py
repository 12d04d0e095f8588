"""The command `parallel-sdxl`."""

from typing import NoReturn

from serve_app.cli.ending import run


def main() -> NoReturn:
    """Run the command that the arguments name."""
    run(_app)


def _app() -> None:
    # Imported here, so that Ctrl-C during imports shows no traceback either.
    from serve_app.cli.main import app

    app(prog_name="parallel-sdxl")


if __name__ == "__main__":
    main()
