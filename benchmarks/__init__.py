"""Measurements: `python -m uvd.benchmarks.NAME` compares ways of doing one thing in one run and stores a table."""
