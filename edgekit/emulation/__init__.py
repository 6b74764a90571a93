"""Runs a runtime's own kernels of another processor on this machine, for parity. Its time and memory mean nothing."""
