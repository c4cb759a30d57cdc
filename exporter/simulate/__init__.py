"""A simulated fleet for dashboards, alerts and tests: only the readings are simulated.

Accounting, catalogue and exposition are the daemon's own. The names and UUIDs of simulated devices
mark them as simulated.
"""
