"""What tests put into the environment of the Ray that they start."""

QUIET = {
    "REPORTER_UPDATE_INTERVAL_MS": "600000",  # what the machine is doing, which nobody here asks for
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25",  # 0.1 by default
    "RAY_worker_niceness": "0",  # 15 by default: beside other tests replicas would hardly run
}
"""Its own work beside the tests' would take as much of the processor as theirs."""
