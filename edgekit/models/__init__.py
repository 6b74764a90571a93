"""Models: where they come from, what they are for, their tokenizers, and the modules that hold integer codes."""
