"""Tests of `edgekit.runtimes`."""
