"""Measures which way of writing a model's linears is fastest on a runtime."""
