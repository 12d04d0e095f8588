"""The start command leaves alone what runs on a Ray that it is told to join."""

import subprocess
import sys

import ray

from tests.integration.conftest import APP, Running


def test_what_runs_there_is_not_replaced(app: Running) -> None:
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "serve_app.serve", "--address", address, "configs/local.yaml"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
    told = refused.stderr.splitlines()[-1]
    assert refused.returncode == 1
    assert told.startswith(f"The Ray at {address} runs ")
    assert APP in told
    assert app.generate(num_images=1)["images"][0]["status"] == "succeeded"
