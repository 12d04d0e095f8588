"""The command line: an HTTP client of any service. Imports neither Ray nor torch."""
