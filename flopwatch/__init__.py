"""Code shared by the exporter and its probes. Both import it; it imports neither."""
