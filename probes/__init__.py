"""Micro-probes: short kernels in a worker process that say what a GPU could do now.

Only the worker process (`probes.worker` and what it imports) loads torch. Everything that a
daemon imports from here (`service`, `scheduler`, `supervisor`, `protocol`, `config`, …) is torch-free.
"""
