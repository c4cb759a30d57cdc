"""A made-up fleet for dashboards, alerts and trials: only the readings are simulated.

Accounting, catalogue and exposition are the daemon's own. Simulated devices say so in name and UUID.
"""
