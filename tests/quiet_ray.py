"""What tests put into the environment of the Ray that they start."""

QUIET = {
    "REPORTER_UPDATE_INTERVAL_MS": "600000",  # what the machine is doing, which nobody here asks for
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # 0.1 by default
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",  # 100 by default, in each replica and for each of their callers
    "RAY_worker_niceness": "0",  # 15 by default: beside other tests replicas would hardly run
}
"""Its own work beside the tests' would take as much of the processor as theirs."""
