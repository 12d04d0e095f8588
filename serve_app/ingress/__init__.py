"""The gateway process: HTTP only. Knows neither torch nor, but for its Serve deployment, Ray."""
