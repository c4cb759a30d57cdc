// Who uses the GPU.
#include "fake.h"

enum { NO_INSTANCE = 0xffffffff };

// A consistent copy of the list while the test rewrites it; the number of entries.
static unsigned int snapshot(const struct gpu *gpu, struct process *processes) {
    for (int attempt = 0;; attempt++) {
        uint32_t before = __atomic_load_n(&gpu->process_sequence, __ATOMIC_ACQUIRE);
        unsigned int count = gpu->process_count % (MAX_PROCESSES + 1);
        memcpy(processes, gpu->processes, sizeof gpu->processes);
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        bool steady = before % 2 == 0 && __atomic_load_n(&gpu->process_sequence, __ATOMIC_RELAXED) == before;
        if (steady || attempt > 10000) return count;
        fake_sleep_ns(20 * 1000);
    }
}

static bool listed(const struct target *target, const struct process *process, uint32_t kind) {
    if (process->kind != kind) return false;
    return target->number < 0 || process->instance == target->number;
}

static void describe(const struct target *target, const struct process *process, nvmlProcessInfo_t *info) {
    const struct instance *instance = process->instance >= 0 ? &target->gpu->instances[process->instance] : NULL;
    info->pid = process->pid;
    info->usedGpuMemory = process->used_bytes;
    info->gpuInstanceId = instance ? instance->gpu_instance_id : NO_INSTANCE;
    info->computeInstanceId = instance ? instance->compute_instance_id : NO_INSTANCE;
}

// Asking with too little room is the way to learn the number: it comes back with INSUFFICIENT_SIZE.
static nvmlReturn_t list(enum function_number function, nvmlDevice_t device, uint32_t kind, bool old_layout, unsigned int *count,
                         void *infos) {
    struct target target;
    nvmlReturn_t entered = fake_enter_device(function, device, MIG_TOO, &target);
    if (entered != NVML_SUCCESS) return entered;
    REQUIRE(count != NULL);
    struct process processes[MAX_PROCESSES];
    unsigned int room = *count, found = 0, total = snapshot(target.gpu, processes);
    for (unsigned int index = 0; index < total; index++) {
        const struct process *process = &processes[index];
        if (!listed(&target, process, kind)) continue;
        if (infos && found < room) {
            nvmlProcessInfo_t info;
            describe(&target, process, &info);
            if (old_layout)
                ((nvmlProcessInfo_v1_t *)infos)[found] = (nvmlProcessInfo_v1_t){info.pid, info.usedGpuMemory};
            else
                ((nvmlProcessInfo_t *)infos)[found] = info;
        }
        found++;
    }
    *count = found;
    return found > room || (found && !infos) ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

#define LIST(name, kind, old_layout, type)                                        \
    API(name, nvmlDevice_t device, unsigned int *count, type *infos) {            \
        return list(FN_##name, device, kind, old_layout, count, infos);           \
    }

LIST(nvmlDeviceGetComputeRunningProcesses, PROCESS_COMPUTE, true, nvmlProcessInfo_v1_t)
LIST(nvmlDeviceGetComputeRunningProcesses_v2, PROCESS_COMPUTE, false, nvmlProcessInfo_v2_t)
LIST(nvmlDeviceGetComputeRunningProcesses_v3, PROCESS_COMPUTE, false, nvmlProcessInfo_t)
LIST(nvmlDeviceGetGraphicsRunningProcesses, PROCESS_GRAPHICS, true, nvmlProcessInfo_v1_t)
LIST(nvmlDeviceGetGraphicsRunningProcesses_v2, PROCESS_GRAPHICS, false, nvmlProcessInfo_v2_t)
LIST(nvmlDeviceGetGraphicsRunningProcesses_v3, PROCESS_GRAPHICS, false, nvmlProcessInfo_t)
LIST(nvmlDeviceGetMPSComputeRunningProcesses, PROCESS_MPS, true, nvmlProcessInfo_v1_t)
LIST(nvmlDeviceGetMPSComputeRunningProcesses_v2, PROCESS_MPS, false, nvmlProcessInfo_v2_t)
LIST(nvmlDeviceGetMPSComputeRunningProcesses_v3, PROCESS_MPS, false, nvmlProcessInfo_t)

// Shares of the SMs by process: one sample each, as of now.
API(nvmlDeviceGetProcessUtilization, nvmlDevice_t device, nvmlProcessUtilizationSample_t *samples,
    unsigned int *count, unsigned long long last_seen) {
    ENTER(nvmlDeviceGetProcessUtilization, device, WHOLE_GPU_ONLY);
    REQUIRE(count != NULL);
    uint64_t now_us = fake_now_ns() / 1000;
    struct process processes[MAX_PROCESSES];
    unsigned int room = *count, found = snapshot(target.gpu, processes);
    *count = found;
    if (!found || last_seen >= now_us) return NVML_ERROR_NOT_FOUND;
    if (!samples || room < found) return NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned int index = 0; index < found; index++)
        samples[index] = (nvmlProcessUtilizationSample_t){
            .pid = processes[index].pid,
            .timeStamp = now_us,
            .smUtil = processes[index].sm_percent,
        };
    return NVML_SUCCESS;
}

API(nvmlDeviceGetProcessesUtilizationInfo, nvmlDevice_t device, nvmlProcessesUtilizationInfo_t *info) {
    ENTER(nvmlDeviceGetProcessesUtilizationInfo, device, WHOLE_GPU_ONLY);
    REQUIRE_VERSION(info, nvmlProcessesUtilizationInfo_v1);
    uint64_t now_us = fake_now_ns() / 1000;
    struct process processes[MAX_PROCESSES];
    unsigned int room = info->processSamplesCount, found = snapshot(target.gpu, processes);
    info->processSamplesCount = found;
    if (!found) return NVML_ERROR_NOT_FOUND;
    if (!info->procUtilArray || room < found) return NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned int index = 0; index < found; index++)
        info->procUtilArray[index] = (nvmlProcessUtilizationInfo_v1_t){
            .timeStamp = now_us,
            .pid = processes[index].pid,
            .smUtil = processes[index].sm_percent,
        };
    info->lastSeenTimeStamp = now_us;
    return NVML_SUCCESS;
}
