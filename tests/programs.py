"""Programs that some tests need and pip does not install."""

import os
import shutil

import pytest


def program(package: str, *names: str) -> str:
    """Return the path of the first of these programs that is here. In CI there must be one; elsewhere tests skip."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        complain = pytest.fail if "CI" in os.environ else pytest.skip
        complain(f"no {' or '.join(names)} found; on Debian: apt-get install {package}")
    return found
