"""Inference engines: one file each, and the scraper that they share."""
