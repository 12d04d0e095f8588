"""Measurements of the service. They print results and are not tests."""
