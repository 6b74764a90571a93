"""Data: where labelled text comes from, how it is split, and how it becomes batches of token ids."""
