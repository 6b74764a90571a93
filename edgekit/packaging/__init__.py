"""Bundles: a verified export with its evidence, ready for an app."""
