"""What the exporter and its probes share. Both import it; it imports neither."""
