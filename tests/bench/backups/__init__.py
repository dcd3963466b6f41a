"""Benchmarks of backup and restore: one module for each engine."""
