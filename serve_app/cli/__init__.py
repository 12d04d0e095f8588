"""The command line: a client of any service over HTTP. Knows neither Ray nor torch."""
