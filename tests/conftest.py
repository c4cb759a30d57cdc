"""What all tests share."""

from hypothesis import HealthCheck, settings


# Timings are for benchmarks: a machine that is busy elsewhere must not fail a property.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
