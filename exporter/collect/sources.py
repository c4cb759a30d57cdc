"""The sources of activities, the best first: one file each, and one line here.

If none opens, accounting falls back on NVML's utilization, which shows when kernels ran but not
what they did.
"""

from exporter.collect.dcgm.activity import DcgmActivity
from exporter.collect.gpm import Gpm
from exporter.collect.mig import MigParts
from exporter.collect.source import ActivitySource


SOURCES: tuple[type[ActivitySource], ...] = (
    Gpm,  # gpm_cycles, or gpm where the device counts no cycles
    MigParts,  # a GPU in MIG mode, from the GPM of its instances
    DcgmActivity,  # from a dcgm-exporter on the node
)
