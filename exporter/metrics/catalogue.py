"""The catalogue: every metric family that the exporter can expose, from the subjects that declare them."""

from exporter.metrics import (
    device,
    exporter,
    findings,
    flops,
    holders,
    levers,
    models,
    probes,
    process,
)
from exporter.metrics.family import Family, Subject


# In the order in which they are documented and exposed. A new subject is added here.
SUBJECTS: tuple[Subject, ...] = (
    flops.SUBJECT,
    device.SUBJECT,
    probes.SUBJECT,
    models.SUBJECT,
    holders.SUBJECT,
    levers.SUBJECT,
    findings.SUBJECT,
    exporter.SUBJECT,
    process.SUBJECT,
)
CATALOGUE: tuple[Family, ...] = tuple(family for subject in SUBJECTS for family in subject.families)
BY_NAME: dict[str, Family] = {family.name: family for family in CATALOGUE}
