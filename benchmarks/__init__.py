"""Benchmarks beside the peers, each in one run; never part of the tests."""
