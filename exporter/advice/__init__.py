"""Levers: which change would raise a workload's throughput or lower its cost, and by how much."""
