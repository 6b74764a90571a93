"""Tests of `edgekit.benchmarking`."""
