"""Benchmarking: latency and memory in fresh processes, quality on labelled text, budgets and estimates."""
