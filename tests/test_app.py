"""What the builder does before anything of a running service stops."""

from pathlib import Path

import pytest

from serve_app.app import build, check_keys
from serve_app.config import AppArgs, AuthConfig


def test_a_file_without_a_key_is_refused_before_anything_stops(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("\n")
    with pytest.raises(ValueError, match=r"auth\.keys_file.*holds no key"):
        build(AppArgs(auth=AuthConfig(keys_file=str(keys))))


def test_a_variable_without_a_key_is_refused() -> None:
    with pytest.raises(ValueError, match=r"auth\.keys_env.*KEYS"):
        check_keys(AuthConfig(keys_env="KEYS"), {"KEYS": " "})


def test_keys_that_are_elsewhere_are_left_to_the_ingress(tmp_path: Path) -> None:
    check_keys(AuthConfig(keys_file=str(tmp_path / "missing"), keys_env="KEYS"), {})
    check_keys(AuthConfig())
