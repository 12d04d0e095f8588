"""`python -m serve_app.serve`, but the Ray that it starts has its workers forked, as that of the other tests has."""

from ray._private import ray_constants

from serve_app.serve import main
from tests.integration.forks import FORKS

if __name__ == "__main__":
    ray_constants.SETUP_WORKER_FILENAME = FORKS  # a whole path: Ray joins it to that of its own folder
    main()
