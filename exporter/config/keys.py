"""Every key of the configuration: its default, what it may be, and what it is for."""

from exporter.accounting.flop import PRECISIONS
from exporter.config.schema import Key, Section, SectionList
from exporter.config.values import (
    boolean,
    choice,
    duration,
    http_url,
    integer,
    items,
    mapping,
    number,
    one_of,
    optional,
    size,
    text,
)
from exporter.metrics.catalogue import CATALOGUE
from probes.config import ProbeConfig
from probes.kernels import kernel_names


ENGINES = ("vllm", "sglang", "tensorrt_llm", "tgi")
_MODE = choice("auto", "on", "off")
_DEVICE_FAMILIES = tuple(family.name for family in CATALOGUE if family.per_device)
_PROBES = ProbeConfig()
_GPU_KEY = one_of(
    integer(at_least=0, at_most=10_000), text(), otherwise="a GPU index or a device UUID"
)

SCHEMA = Section(
    "flopwatch reads one YAML file; every key has a default, and an empty file is a good file.",
    {
        "sampling": Section(
            "How often the devices are read.",
            {
                "interval": Key(
                    duration(at_least=0.1, at_most=60), 1.0, "Time between ticks.", "1s"
                ),
                "slow_interval": Key(
                    duration(at_least=1, at_most=3600),
                    15.0,
                    "Time between readings of ECC, links, limits and processes.",
                    "15s",
                ),
                "deadline": Key(
                    duration(at_least=0.5, at_most=60),
                    2.0,
                    "A driver call that takes longer counts as hung: its device is shown as down and the time as a gap.",
                    "2s",
                ),
            },
        ),
        "sources": Section(
            "Where readings come from: auto (where it is there), on, off.",
            {
                "nvml": Key(_MODE, "auto", "The NVIDIA driver's management library.", "auto"),
                "gpm": Key(
                    _MODE, "auto", "Its performance monitoring, on Hopper and newer.", "auto"
                ),
                "dcgm": Key(
                    _MODE, "auto", "A dcgm-exporter on this host, for GPUs before Hopper.", "auto"
                ),
                "cpu": Key(
                    _MODE, "auto", "The host processor; auto: where there is no GPU.", "auto"
                ),
            },
        ),
        "dcgm": Section(
            "The dcgm-exporter of this host.",
            {
                "url": Key(
                    http_url(),
                    "http://127.0.0.1:9400/metrics",
                    "Its metrics address.",
                    "http://127.0.0.1:9400/metrics",
                )
            },
        ),
        "gpus": SectionList(
            "What is known of the GPUs of this host. The first match wins.",
            Section(
                "One rule.",
                {
                    "match": Section(
                        "Which GPUs: all that is given must fit; nothing given fits all.",
                        {
                            "uuid": Key(optional(text()), None, "Device UUID (glob).", "GPU-*"),
                            "index": Key(
                                optional(integer(at_least=0, at_most=10_000)),
                                None,
                                "NVML index.",
                                "0",
                            ),
                            "name": Key(
                                optional(text()), None, "Product name (glob).", '"NVIDIA H100*"'
                            ),
                        },
                    ),
                    "precision": Key(
                        choice(*PRECISIONS),
                        None,
                        "Precision at which the tensor pipe's work is valued.",
                        "fp8",
                    ),
                    "sm_count": Key(
                        optional(integer(at_least=1, at_most=1024)),
                        None,
                        "Number of SMs, instead of what the driver says.",
                        "152",
                    ),
                    "peaks": Key(
                        mapping(PRECISIONS, number(above=0, at_most=1e20)),
                        {},
                        "Dense peak in FLOP/s by precision, instead of the built-in table's.",
                        "{bf16: 2.5e15, fp8: 5e15}",
                    ),
                    "dram_bandwidth": Key(
                        optional(number(above=0, at_most=1e15)),
                        None,
                        "Bandwidth of the device memory in bytes per second, likewise.",
                        "8e12",
                    ),
                },
            ),
            '[{match: {name: "NVIDIA H100*"}, precision: fp8}]',
        ),
        "probes": Section(
            "The micro-probes. They need torch ([install.md](install.md)).",
            {
                "enabled": Key(boolean(), _PROBES.enabled, "Run probes.", "true"),
                "interval": Key(
                    duration(at_least=1), _PROBES.interval_seconds, "Time between cycles.", "60s"
                ),
                "budget": Key(
                    duration(at_least=0.001),
                    _PROBES.budget_seconds,
                    "Device time per GPU and interval; never exceeded over any hour.",
                    "20ms",
                ),
                "kernels": Key(
                    optional(items(choice(*kernel_names()))),
                    _PROBES.kernels,
                    "Which kernels to run; not given: all that the device has.",
                    "[gemm_bf16, gemm_fp8, copy_device]",
                ),
                "pause_file": Key(
                    optional(text()),
                    str(_PROBES.pause_file),
                    "Probes hold off while this file exists.",
                    "/run/flopwatch/pause",
                ),
                "together": Key(
                    boolean(),
                    _PROBES.together,
                    "Probe the GPUs of a host at the same moment instead of one after the other.",
                    "false",
                ),
                "mig": Key(
                    choice("skip", "run"),
                    _PROBES.mig,
                    "Partitioned GPUs: leave them alone, or probe each MIG instance (a worker each, "
                    "in turn).",
                    "skip",
                ),
                "hold_off": Key(
                    duration(),
                    _PROBES.hold_off_seconds,
                    "No probe for this long after a new process appears on a GPU.",
                    "5m",
                ),
                "min_free_memory": Key(
                    size(),
                    _PROBES.min_free_memory_bytes,
                    "No probe while less device memory is free.",
                    "2GiB",
                ),
                "memory_limit": Key(
                    size(),
                    _PROBES.memory_limit_bytes,
                    "Device memory that the worker may take, its context included.",
                    "600MB",
                ),
                "max_chunk": Key(
                    duration(at_least=0.0001, at_most=0.1),
                    _PROBES.max_chunk_seconds,
                    "Longest uninterrupted device time of a probe.",
                    "1ms",
                ),
                "gap": Key(
                    duration(at_most=10), _PROBES.gap_seconds, "Pause between two chunks.", "10ms"
                ),
                "cpu_threads": Key(
                    integer(at_least=1, at_most=1024),
                    _PROBES.cpu_threads,
                    "Threads of a probe on the host processor.",
                    "1",
                ),
            },
        ),
        "workloads": SectionList(
            "Inference engines of this host whose tokens are turned into model FLOPs.",
            Section(
                "One engine.",
                {
                    "name": Key(text(), "", "Name of the workload.", "chat", required=True),
                    "engine": Key(
                        choice(*ENGINES), "vllm", "Which engine it is.", "vllm", required=True
                    ),
                    "url": Key(
                        http_url(),
                        "",
                        "Its metrics address.",
                        "http://127.0.0.1:8000/metrics",
                        required=True,
                    ),
                    "model": Key(
                        optional(text()),
                        None,
                        "Path of the model's config.json or GGUF file; not given: what the engine reports.",
                        "/models/chat/config.json",
                    ),
                    "gpus": Key(
                        items(_GPU_KEY),
                        (),
                        "Its GPUs by index or UUID; not given: those of its processes.",
                        "[0, 1]",
                    ),
                    "gpus_total": Key(
                        optional(integer(at_least=1)),
                        None,
                        "GPUs of the whole engine, where some are on other hosts and like these.",
                        "16",
                    ),
                    "tensor_parallel": Key(
                        optional(integer(at_least=1)),
                        None,
                        "Tensor-parallel degree; not given: the number of GPUs over pipeline_parallel.",
                        "2",
                    ),
                    "pipeline_parallel": Key(
                        integer(at_least=1), 1, "Pipeline-parallel degree.", "1"
                    ),
                    "precision": Key(
                        optional(choice(*PRECISIONS)),
                        None,
                        "Precision it serves in; not given: what model or engine say.",
                        "fp8",
                    ),
                    "kv_cache_precision": Key(
                        optional(choice(*PRECISIONS)),
                        None,
                        "Precision of its KV cache; not given: what model or engine say.",
                        "fp8",
                    ),
                    "interval": Key(
                        duration(at_least=1), 15.0, "Time between scrapes of the engine.", "15s"
                    ),
                    "timeout": Key(
                        duration(at_least=0.1), 5.0, "Longest time for one scrape.", "5s"
                    ),
                },
            ),
            "[{name: chat, engine: vllm, url: 'http://127.0.0.1:8000/metrics'}]",
        ),
        "workload_discovery": Section(
            "Engines of this host that nobody named under `workloads`; off by default.",
            {
                "ports": Key(
                    items(integer(at_least=1, at_most=65535), at_most=64),
                    (),
                    "Local ports to ask for an engine's metrics.",
                    "[8000, 30000]",
                ),
                "interval": Key(duration(at_least=5), 60.0, "Time between looks.", "60s"),
            },
        ),
        "kubernetes": Section(
            "Which pods hold the GPUs.",
            {
                "pod_resources": Key(_MODE, "auto", "Ask the kubelet.", "auto"),
                "socket": Key(
                    text(),
                    "/var/lib/kubelet/pod-resources/kubelet.sock",
                    "The kubelet's pod-resources socket.",
                    "/var/lib/kubelet/pod-resources/kubelet.sock",
                ),
                "labels": Key(
                    items(choice(*_DEVICE_FAMILIES)),
                    (),
                    "Families whose series also carry namespace, pod, container and job of their "
                    "device, where it has one holder only.",
                    "[flopwatch_achieved_flops]",
                ),
            },
        ),
        "hpc": Section(
            "Which batch jobs hold the GPUs.",
            {
                "job_mapping_dir": Key(
                    optional(text()),
                    "/var/run/flopwatch/jobs",
                    "Directory with a file per GPU (its index, or index.instance), a job a line.",
                    "/var/run/flopwatch/jobs",
                ),
                "job_processes": Key(
                    boolean(),
                    True,
                    "Find Slurm jobs by the control groups of GPU processes.",
                    "true",
                ),
            },
        ),
        "processes": Section(
            "Per-process series.",
            {
                "memory": Key(
                    boolean(),
                    False,
                    "Export flopwatch_process_memory_bytes: a series per process.",
                    "false",
                )
            },
        ),
        "state_file": Key(
            text(),
            "/var/lib/flopwatch/state.json",
            "Baselines and calibration; falls back to the user's state folder.",
            "/var/lib/flopwatch/state.json",
        ),
        "limits": Section(
            "Bounds on what is exported.",
            {
                "series": Key(
                    integer(at_least=100, at_most=1_000_000),
                    20_000,
                    "Most series in one exposition; more are dropped and counted.",
                    "20000",
                )
            },
        ),
        "web": Section(
            "The web server. Read at start; a reload changes only the web configuration's content.",
            {
                "listen_address": Key(
                    items(text()), (":9907",), "Addresses to listen on: one, or a list.", '":9907"'
                ),
                "telemetry_path": Key(text(), "/metrics", "Path of the metrics.", "/metrics"),
                "config_file": Key(
                    optional(text()),
                    None,
                    "TLS and authentication, in the format of Prometheus' exporter-toolkit.",
                    "/etc/flopwatch/web.yml",
                ),
                "allowed_hosts": Key(
                    items(text()),
                    (),
                    "Names of this host, beside its own, that the Host header of a POST may carry "
                    "where requests need no password.",
                    "[gpu-node-7.example.com]",
                ),
                "enable_lifecycle": Key(
                    boolean(),
                    False,
                    "Allow POST /-/reload, /-/probes/pause and /-/probes/resume.",
                    "false",
                ),
            },
        ),
        "log": Section(
            "The log, on standard error. Read at start.",
            {
                "level": Key(
                    choice("debug", "info", "warning", "error"), "info", "Lowest level.", "info"
                ),
                "format": Key(
                    choice("auto", "console", "logfmt", "json"),
                    "auto",
                    "auto: console on a terminal, logfmt otherwise.",
                    "json",
                ),
            },
        ),
    },
)
