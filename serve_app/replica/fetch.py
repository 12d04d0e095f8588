"""`python -m serve_app.replica.fetch path=owner/name variant=fp16`: download what settings of `model` name.

So that replicas can run offline (`HF_HUB_OFFLINE=1`). What is on this machine already is not downloaded again.
"""

import sys
from collections.abc import Sequence

from pydantic import ValidationError

from serve_app.config import ModelConfig
from serve_app.errors import CheckpointError
from serve_app.replica.loading import check_used
from serve_app.replica.sources import find_sources


def main(settings: Sequence[str]) -> str | None:
    """Fetch everything and print where it is. Return what is wrong, for `sys.exit`."""
    try:
        model = ModelConfig.model_validate(dict(setting.split("=", 1) for setting in settings))
        check_used(model)
        sources = find_sources(model)
    except (ValidationError, CheckpointError) as error:
        return str(error)
    except ValueError:
        return "each setting must have the form name=value, such as path=owner/name"
    for part in sources.models:
        for file in part.files:
            print(file)
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
