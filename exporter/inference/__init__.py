"""Inference engines: one module per engine, and a shared scraper."""
