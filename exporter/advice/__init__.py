"""Levers: changes that would raise a workload's throughput or lower its cost, with predictions."""
