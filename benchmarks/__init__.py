"""Measurements of the service. Each prints ratios from one run; none is a test."""
