"""Talks with a language model in any runtime that generates."""
