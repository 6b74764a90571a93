"""Runtimes: what runs a model file, behind one protocol; each is one module, found through an entry point."""
