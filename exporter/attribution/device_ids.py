"""Device ids of the device plugins and DRA drivers, as the kubelet reports them.

| id | from |
| --- | --- |
| `GPU-<uuid>`, `MIG-<uuid>` | NVIDIA's device plugin |
| `GPU-<uuid>::3`, `MIG-<uuid>::0` | the same with time-slicing or MPS: a replica |
| `GPU-<uuid>-17` | device plugins that share GPUs (HAMi and others): a replica, whatever its suffix |
| `MIG-GPU-<uuid>/<instance>/<compute instance>` | the same with drivers before 470 |
| `nvidia0`, `nvidia0/gi1` | GKE's device plugin, whole GPU and MIG instance |
| `nvidia0/vgpu2`, `nvidia0/gi1/vgpu2` | the same with time-sharing: a replica |

NVIDIA's DRA driver names devices by the number of the device node, and MIG instances by parent,
profile and placement:

| device | from |
| --- | --- |
| `gpu-0` | a whole GPU |
| `gpu-0-mig-9-4-4` | profile 9 at memory slice 4, size 4 (until 25.8) |
| `gpu-0-mig-3g-40gb-9-4` | profile 3g.40gb, which is 9, at memory slice 4 |
"""

import re

from exporter.attribution.snapshot import DeviceKey


NVIDIA_RESOURCES = "nvidia.com/"
GPU_DRIVER = "gpu.nvidia.com"
_UUID = re.compile(
    r"((?:GPU|MIG)-[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})(?![0-9a-zA-Z])"
)
_OLD_MIG = re.compile(r"MIG-(GPU-[^/]+)/(\d+)/\d+")
_GKE = re.compile(r"nvidia(\d+)(?:/gi(\d+))?(?:/vgpu\d+)?")
_DRA = re.compile(r"gpu-(\d{1,4})(?:-mig-(\d+)-(\d+)-\d+|-mig-\d*[a-z].*-(\d+)-(\d+))?")


def parse_device_id(resource: str, device_id: str) -> DeviceKey | None:
    """The device behind an id, without the number of its replica; None if it is not a GPU's.

    A UUID is accepted for any resource name (device plugins may rename `nvidia.com/gpu`), a number
    only for a resource of NVIDIA, because it is ambiguous on its own.
    """
    base = device_id.partition("::")[0]
    old = _OLD_MIG.fullmatch(base)
    if old:
        return DeviceKey(uuid=old[1], mig=old[2])
    uuid = _UUID.match(base)
    if uuid:
        return DeviceKey(uuid=uuid[1])
    if base.startswith(("GPU-", "MIG-")):
        return DeviceKey(uuid=base)
    gke = _GKE.fullmatch(base)
    if gke and resource.startswith(NVIDIA_RESOURCES):
        return DeviceKey(minor=gke[1], mig=gke[2])
    return None


def parse_dra_device(device: str) -> DeviceKey | None:
    """The device of NVIDIA's DRA driver by its name; None if it is not a GPU for computing."""
    found = _DRA.fullmatch(device)
    if not found:
        return parse_device_id("", device)
    profile, start = found[2] or found[4], found[3] or found[5]
    placement = None if profile is None else (int(profile), int(start))
    return DeviceKey(minor=found[1], placement=placement)


def parse_cdi_device(name: str) -> DeviceKey | None:
    """The device behind a CDI name of that driver: `k8s.gpu.nvidia.com/claim=<claim>-gpu-0`.

    Kubelets before 1.31 report nothing else about a dynamic resource.
    """
    kind, _separator, device = name.partition("=")
    if not kind.partition("/")[0].endswith(GPU_DRIVER):
        return None
    position = device.rfind("gpu-")
    return parse_dra_device(device[position:]) if position >= 0 else parse_dra_device(device)
