"""Inference engines: discovery, scraping, and the FLOPs and bytes of what they served."""
