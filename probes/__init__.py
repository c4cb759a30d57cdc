"""Micro-probes: short kernels in a worker process that measure what a GPU can deliver now.

Only the worker process (`probes.worker` and what it imports) loads torch. Everything that the
daemon imports from here (`service`, `scheduler`, `supervisor`, `protocol`, `config`, …) is
torch-free.
"""
