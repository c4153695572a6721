"""Joins: a problem, an engine, the statistics, the verdicts."""
