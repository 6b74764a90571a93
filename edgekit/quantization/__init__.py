"""Chooses the integer codes of a model's weights, once, for every format that the model will be deployed in."""
