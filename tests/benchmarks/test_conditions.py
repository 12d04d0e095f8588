from pathlib import Path

import pytest
from pydantic import ValidationError

from benchmarks.conditions import SDXL_CONFIG, Conditions
from serve_app.config import AppArgs

GIVEN = Conditions(checkpoint=Path("/weights"), devices=(0, 1))


def test_the_service_differs_from_its_config_only_in_the_machine_and_what_is_asked_for() -> None:
    before = GIVEN.config.read_text()
    ours = GIVEN.with_overrides("engine.compile=full", "num_cpus=4").args()
    theirs = Conditions(checkpoint=Path("/weights"), devices=(0, 1), config=SDXL_CONFIG).args()
    assert theirs.num_replicas == 2
    assert theirs.model.path == "/weights"
    assert ours == AppArgs.model_validate(
        {**theirs.model_dump(), "num_cpus": 4, "engine": {**theirs.engine.model_dump(), "compile": "full"}}
    )
    assert GIVEN.config.read_text() == before


def test_a_setting_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ValidationError, match="compiler"):
        GIVEN.with_overrides("engine.compiler=full").args()


def test_conditions_cross_to_another_process() -> None:
    assert Conditions.model_validate_json(GIVEN.model_dump_json()) == GIVEN
