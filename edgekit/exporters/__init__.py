"""Writes models in the formats that runtimes read, code for code, and proves that what was written is right."""
