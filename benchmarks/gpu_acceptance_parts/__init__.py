"""The parts of the acceptance on a real GPU; `benchmarks/gpu_acceptance.py` runs them."""
