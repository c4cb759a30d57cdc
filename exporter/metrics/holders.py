"""Who holds the GPU."""

from exporter.metrics.family import Family, MetricType


GAUGE, COUNTER, HISTOGRAM = MetricType.GAUGE, MetricType.COUNTER, MetricType.HISTOGRAM

GPU_ALLOCATION_INFO = Family(
    name="flopwatch_gpu_allocation_info",
    type=GAUGE,
    unit="",
    labels=("namespace", "pod", "container"),
    help="Kubernetes container that holds the GPU, always 1 (kubelet pod-resources API).",
    interpretation="Join it to name the pod in a query.",
)
GPU_JOB_INFO = Family(
    name="flopwatch_gpu_job_info",
    type=GAUGE,
    unit="",
    labels=("job",),
    help="Batch job that holds the GPU, always 1 (job mapping directory, or the control groups of its processes).",
    interpretation="Join it to name the job in a query.",
)

FAMILIES = (
    GPU_ALLOCATION_INFO,
    GPU_JOB_INFO,
)
