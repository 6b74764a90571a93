"""Tests of `edgekit.exporters`."""
