// Memory errors, row remapping, retired pages, repairs, the NVLink fabric.
#include "fake.h"

API(nvmlDeviceGetEccMode, nvmlDevice_t device, nvmlEnableState_t *current, nvmlEnableState_t *pending) {
    ENTER(nvmlDeviceGetEccMode, device, WHOLE_GPU_ONLY);
    REQUIRE(current != NULL && pending != NULL);
    if (!target.gpu->ecc_supported) return NVML_ERROR_NOT_SUPPORTED;
    *current = (nvmlEnableState_t)target.gpu->ecc_mode;
    *pending = (nvmlEnableState_t)target.gpu->ecc_mode_pending;
    return NVML_SUCCESS;
}

API(nvmlDeviceGetDefaultEccMode, nvmlDevice_t device, nvmlEnableState_t *mode) {
    ENTER(nvmlDeviceGetDefaultEccMode, device, WHOLE_GPU_ONLY);
    REQUIRE(mode != NULL);
    if (!target.gpu->ecc_supported) return NVML_ERROR_NOT_SUPPORTED;
    *mode = NVML_FEATURE_ENABLED;
    return NVML_SUCCESS;
}

static bool ecc_on(const struct gpu *gpu) { return gpu->ecc_supported && gpu->ecc_mode; }

API(nvmlDeviceGetTotalEccErrors, nvmlDevice_t device, nvmlMemoryErrorType_t type, nvmlEccCounterType_t counter,
    unsigned long long *count) {
    ENTER(nvmlDeviceGetTotalEccErrors, device, WHOLE_GPU_ONLY);
    REQUIRE(count != NULL && type < NVML_MEMORY_ERROR_TYPE_COUNT && counter < NVML_ECC_COUNTER_TYPE_COUNT);
    if (!ecc_on(target.gpu)) return NVML_ERROR_NOT_SUPPORTED;
    *count = target.gpu->ecc_errors[type][counter];
    return NVML_SUCCESS;
}

// All errors are taken to be in device memory.
API(nvmlDeviceGetMemoryErrorCounter, nvmlDevice_t device, nvmlMemoryErrorType_t type, nvmlEccCounterType_t counter,
    nvmlMemoryLocation_t location, unsigned long long *count) {
    ENTER(nvmlDeviceGetMemoryErrorCounter, device, WHOLE_GPU_ONLY);
    REQUIRE(count != NULL && type < NVML_MEMORY_ERROR_TYPE_COUNT && counter < NVML_ECC_COUNTER_TYPE_COUNT);
    if (!ecc_on(target.gpu)) return NVML_ERROR_NOT_SUPPORTED;
    if (location != NVML_MEMORY_LOCATION_DRAM && location != NVML_MEMORY_LOCATION_SRAM)
        return NVML_ERROR_NOT_SUPPORTED;
    *count = location == NVML_MEMORY_LOCATION_DRAM ? target.gpu->ecc_errors[type][counter] : 0;
    return NVML_SUCCESS;
}

API(nvmlDeviceGetSramEccErrorStatus, nvmlDevice_t device, nvmlEccSramErrorStatus_t *status) {
    ENTER(nvmlDeviceGetSramEccErrorStatus, device, WHOLE_GPU_ONLY);
    REQUIRE_VERSION(status, nvmlEccSramErrorStatus_v1);
    if (!ecc_on(target.gpu)) return NVML_ERROR_NOT_SUPPORTED;
    unsigned int version = status->version;
    memset(status, 0, sizeof *status);
    status->version = version;
    status->bThresholdExceeded = target.gpu->ecc_sram_threshold_exceeded;
    return NVML_SUCCESS;
}

static bool remaps_rows(const struct gpu *gpu) {
    bool busy_mig = false;
    for (int number = 0; number < MAX_INSTANCES; number++) busy_mig |= gpu->instances[number].in_use != 0;
    return gpu->architecture >= NVML_DEVICE_ARCH_AMPERE && gpu->ecc_supported && !(gpu->mig_mode && busy_mig);
}

API(nvmlDeviceGetRemappedRows, nvmlDevice_t device, unsigned int *correctable, unsigned int *uncorrectable,
    unsigned int *pending, unsigned int *failed) {
    ENTER(nvmlDeviceGetRemappedRows, device, WHOLE_GPU_ONLY);
    REQUIRE(correctable != NULL && uncorrectable != NULL && pending != NULL && failed != NULL);
    if (!remaps_rows(target.gpu)) return NVML_ERROR_NOT_SUPPORTED;
    *correctable = target.gpu->remapped_correctable;
    *uncorrectable = target.gpu->remapped_uncorrectable;
    *pending = target.gpu->remap_pending;
    *failed = target.gpu->remap_failed;
    return NVML_SUCCESS;
}

API(nvmlDeviceGetRemappedRows_v2, nvmlDevice_t device, nvmlRemappedRowsInfo_v2_t *info) {
    ENTER(nvmlDeviceGetRemappedRows_v2, device, WHOLE_GPU_ONLY);
    REQUIRE(info != NULL);
    if (!remaps_rows(target.gpu)) return NVML_ERROR_NOT_SUPPORTED;
    *info = (nvmlRemappedRowsInfo_v2_t){
        .corrActiveRemaps = target.gpu->remapped_correctable,
        .uncActiveRemaps = target.gpu->remapped_uncorrectable,
        .bPending = target.gpu->remap_pending,
        .bFailureOccurred = target.gpu->remap_failed,
    };
    return NVML_SUCCESS;
}

API(nvmlDeviceGetRowRemapperHistogram, nvmlDevice_t device, nvmlRowRemapperHistogramValues_t *values) {
    ENTER(nvmlDeviceGetRowRemapperHistogram, device, WHOLE_GPU_ONLY);
    REQUIRE(values != NULL);
    if (!remaps_rows(target.gpu)) return NVML_ERROR_NOT_SUPPORTED;
    const uint32_t *histogram = target.gpu->remap_histogram;
    *values = (nvmlRowRemapperHistogramValues_t){histogram[0], histogram[1], histogram[2], histogram[3], histogram[4]};
    return NVML_SUCCESS;
}

// Pages retire before Ampere only; later GPUs remap rows. Addresses and times are made up, their number is not.
static nvmlReturn_t retired_pages(const struct gpu *gpu, nvmlPageRetirementCause_t cause, unsigned int *count,
                                  unsigned long long *addresses, unsigned long long *timestamps) {
    REQUIRE(count != NULL && cause < NVML_PAGE_RETIREMENT_CAUSE_COUNT);
    if (gpu->architecture >= NVML_DEVICE_ARCH_AMPERE || !gpu->ecc_supported) return NVML_ERROR_NOT_SUPPORTED;
    unsigned int pages = cause == NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR ? gpu->retired_double_bit
                                                                                  : gpu->retired_single_bit;
    unsigned int room = *count;
    *count = pages;
    if (room == 0 && addresses == NULL) return pages ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
    if (room < pages) return NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned int page = 0; page < pages; page++) {
        addresses[page] = 0x1000ULL * (page + 1);
        if (timestamps) timestamps[page] = 1700000000ULL + page;
    }
    return NVML_SUCCESS;
}

API(nvmlDeviceGetRetiredPages, nvmlDevice_t device, nvmlPageRetirementCause_t cause, unsigned int *count,
    unsigned long long *addresses) {
    ENTER(nvmlDeviceGetRetiredPages, device, WHOLE_GPU_ONLY);
    return retired_pages(target.gpu, cause, count, addresses, NULL);
}

API(nvmlDeviceGetRetiredPages_v2, nvmlDevice_t device, nvmlPageRetirementCause_t cause, unsigned int *count,
    unsigned long long *addresses, unsigned long long *timestamps) {
    ENTER(nvmlDeviceGetRetiredPages_v2, device, WHOLE_GPU_ONLY);
    return retired_pages(target.gpu, cause, count, addresses, timestamps);
}

API(nvmlDeviceGetRetiredPagesPendingStatus, nvmlDevice_t device, nvmlEnableState_t *pending) {
    ENTER(nvmlDeviceGetRetiredPagesPendingStatus, device, WHOLE_GPU_ONLY);
    REQUIRE(pending != NULL);
    if (target.gpu->architecture >= NVML_DEVICE_ARCH_AMPERE) return NVML_ERROR_NOT_SUPPORTED;
    *pending = (nvmlEnableState_t)target.gpu->retired_pending;
    return NVML_SUCCESS;
}

API(nvmlDeviceGetRepairStatus, nvmlDevice_t device, nvmlRepairStatus_t *status) {
    ENTER(nvmlDeviceGetRepairStatus, device, WHOLE_GPU_ONLY);
    REQUIRE_VERSION(status, nvmlRepairStatus_v1);
    if (target.gpu->architecture < NVML_DEVICE_ARCH_AMPERE) return NVML_ERROR_NOT_SUPPORTED;
    status->bChannelRepairPending = target.gpu->channel_repair_pending;
    status->bTpcRepairPending = target.gpu->tpc_repair_pending;
    return NVML_SUCCESS;
}

API(nvmlDeviceGetUnrepairableMemoryFlag_v1, nvmlDevice_t device, nvmlUnrepairableMemoryStatus_v1_t *status) {
    ENTER(nvmlDeviceGetUnrepairableMemoryFlag_v1, device, WHOLE_GPU_ONLY);
    REQUIRE(status != NULL);
    if (target.gpu->architecture < NVML_DEVICE_ARCH_HOPPER) return NVML_ERROR_NOT_SUPPORTED;
    status->bUnrepairableMemory = target.gpu->unrepairable_memory;
    return NVML_SUCCESS;
}

API(nvmlDeviceGetConfComputeProtectedMemoryUsage, nvmlDevice_t device, nvmlMemory_t *memory) {
    ENTER(nvmlDeviceGetConfComputeProtectedMemoryUsage, device, WHOLE_GPU_ONLY);
    REQUIRE(memory != NULL);
    if (target.gpu->architecture < NVML_DEVICE_ARCH_HOPPER) return NVML_ERROR_NOT_SUPPORTED;
    memset(memory, 0, sizeof *memory);
    if (!fake_control->conf_compute_enabled) return NVML_SUCCESS;
    memory->total = target.gpu->memory_total_bytes;
    memory->used = (unsigned long long)fake_value(&target, VALUE_memory_used_bytes);
    memory->free = memory->total - memory->used;
    return NVML_SUCCESS;
}

API(nvmlDeviceGetGpuFabricInfo, nvmlDevice_t device, nvmlGpuFabricInfo_t *info) {
    ENTER(nvmlDeviceGetGpuFabricInfo, device, WHOLE_GPU_ONLY);
    REQUIRE(info != NULL);
    if (target.gpu->architecture < NVML_DEVICE_ARCH_HOPPER) return NVML_ERROR_NOT_SUPPORTED;
    memset(info, 0, sizeof *info);
    info->state = (nvmlGpuFabricState_t)target.gpu->fabric_state;
    info->cliqueId = target.gpu->fabric_clique;
    return NVML_SUCCESS;
}

// Versions 2 and 3 differ in the last member only.
API(nvmlDeviceGetGpuFabricInfoV, nvmlDevice_t device, nvmlGpuFabricInfoV_t *info) {
    ENTER(nvmlDeviceGetGpuFabricInfoV, device, WHOLE_GPU_ONLY);
    REQUIRE(info != NULL);
    if (info->version != nvmlGpuFabricInfo_v2 && info->version != nvmlGpuFabricInfo_v3)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (target.gpu->architecture < NVML_DEVICE_ARCH_HOPPER) return NVML_ERROR_NOT_SUPPORTED;
    memset(info->clusterUuid, 0, sizeof info->clusterUuid);
    info->status = NVML_SUCCESS;
    info->cliqueId = target.gpu->fabric_clique;
    info->state = (nvmlGpuFabricState_t)target.gpu->fabric_state;
    info->healthMask = target.gpu->fabric_health_mask;
    if (info->version == nvmlGpuFabricInfo_v3)
        info->healthSummary = target.gpu->fabric_health_mask ? NVML_GPU_FABRIC_HEALTH_SUMMARY_HEALTHY
                                                             : NVML_GPU_FABRIC_HEALTH_SUMMARY_NOT_SUPPORTED;
    return NVML_SUCCESS;
}
