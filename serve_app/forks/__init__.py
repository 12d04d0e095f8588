"""Ray's workers as forks of one process that has imported what they need. Nothing else here knows of it but `serve`."""
