"""Device ids of the device plugins, as the kubelet reports them.

| id | from |
| --- | --- |
| `GPU-<uuid>`, `MIG-<uuid>` | NVIDIA's device plugin |
| `GPU-<uuid>::3`, `MIG-<uuid>::0` | the same with time-slicing or MPS: a replica |
| `MIG-GPU-<uuid>/<instance>/<compute instance>` | the same with drivers before 470 |
| `nvidia0`, `nvidia0/gi1` | GKE's device plugin, whole GPU and MIG instance |
| `nvidia0/vgpu2`, `nvidia0/gi1/vgpu2` | the same with time-sharing: a replica |

GKE's number is that of the device node, which is the NVML index on its machines.
"""

import re

from exporter.attribution.snapshot import DeviceKey


NVIDIA_RESOURCES = "nvidia.com/"
_OLD_MIG = re.compile(r"MIG-(GPU-[^/]+)/(\d+)/\d+")
_GKE = re.compile(r"nvidia(\d+)(?:/gi(\d+))?(?:/vgpu\d+)?")


def parse_device_id(resource: str, device_id: str) -> DeviceKey | None:
    """The device behind an id, without the number of its replica; None where it is no GPU's.

    A UUID is taken whatever the resource is called (device plugins may rename `nvidia.com/gpu`),
    an index only of a resource of NVIDIA's, for it says nothing by itself.
    """
    base = device_id.partition("::")[0]
    old = _OLD_MIG.fullmatch(base)
    if old:
        return DeviceKey(uuid=old[1], mig=old[2])
    if base.startswith(("GPU-", "MIG-")):
        return DeviceKey(uuid=base)
    gke = _GKE.fullmatch(base)
    if gke and resource.startswith(NVIDIA_RESOURCES):
        return DeviceKey(index=gke[1], mig=gke[2])
    return None
