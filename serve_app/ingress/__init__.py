"""The gateway process: HTTP only. Never imports torch; only `deployment.py` imports Ray."""
