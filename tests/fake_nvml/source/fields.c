// nvmlDeviceGetFieldValues: each entry with a return code and a value type of its own.
#include <math.h>
#include <time.h>

#include "fake.h"

enum { ALL_LINKS = 0xffffffff };

static void give_uint(nvmlFieldValue_t *field, unsigned int value) {
    field->valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
    field->value.ullVal = 0;
    field->value.uiVal = value;
}

static void give_int(nvmlFieldValue_t *field, int value) {
    field->valueType = NVML_VALUE_TYPE_SIGNED_INT;
    field->value.ullVal = 0;
    field->value.siVal = value;
}

static void give_ull(nvmlFieldValue_t *field, uint64_t value) {
    field->valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
    field->value.ullVal = value;
}

static void give_double(nvmlFieldValue_t *field, double value) {
    field->valueType = NVML_VALUE_TYPE_DOUBLE;
    field->value.dVal = value;
}

static void give_milliwatts(nvmlFieldValue_t *field, double watts) {
    give_uint(field, (unsigned int)lround(watts * 1e3));
}

// Nanoseconds in an event reason, by its bit number.
static bool event_reason_field(nvmlFieldValue_t *field, const struct totals *totals) {
    static const struct { unsigned int id; int bit; } reasons[] = {
        {NVML_FI_DEV_PERF_POLICY_POWER, 2},
        {NVML_FI_DEV_PERF_POLICY_SYNC_BOOST, 4},
        {NVML_FI_DEV_PERF_POLICY_BOARD_LIMIT, 9},
        {NVML_FI_DEV_PERF_POLICY_LOW_UTILIZATION, 0},
        {NVML_FI_DEV_PERF_POLICY_RELIABILITY, 10},
        {NVML_FI_DEV_PERF_POLICY_TOTAL_APP_CLOCKS, 1},
        {NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN, 5},
        {NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN, 6},
        {NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN, 7},
    };
    double seconds;
    for (size_t row = 0; row < sizeof reasons / sizeof *reasons; row++) {
        if (reasons[row].id != field->fieldId) continue;
        give_ull(field, (uint64_t)(totals->reason_seconds[reasons[row].bit] * 1e9));
        return true;
    }
    if (field->fieldId == NVML_FI_DEV_PERF_POLICY_THERMAL)
        seconds = totals->reason_seconds[5] + totals->reason_seconds[6];
    else if (field->fieldId == NVML_FI_DEV_PERF_POLICY_TOTAL_BASE_CLOCKS)
        seconds = 0.0;
    else
        return false;
    give_ull(field, (uint64_t)(seconds * 1e9));
    return true;
}

// Scope 1: the module that a Grace processor and its GPUs share.
static bool module_power_field(const struct gpu *gpu, nvmlFieldValue_t *field, const struct totals *totals) {
    if (!gpu->module_power_limit_mw) return false;
    switch (field->fieldId) {
        case NVML_FI_DEV_POWER_AVERAGE:
        case NVML_FI_DEV_POWER_INSTANT: give_milliwatts(field, totals->values[VALUE_module_power_watts]); return true;
        case NVML_FI_DEV_POWER_MAX_LIMIT:
        case NVML_FI_DEV_POWER_DEFAULT_LIMIT:
        case NVML_FI_DEV_POWER_CURRENT_LIMIT:
        case NVML_FI_DEV_POWER_REQUESTED_LIMIT: give_uint(field, gpu->module_power_limit_mw); return true;
        case NVML_FI_DEV_ENERGY: give_ull(field, (uint64_t)(totals->integrals[VALUE_module_power_watts] * 1e3)); return true;
        default: return false;
    }
}

static bool power_field(const struct target *target, nvmlFieldValue_t *field, const struct totals *totals) {
    const struct gpu *gpu = target->gpu;
    bool power = field->fieldId >= NVML_FI_DEV_POWER_AVERAGE && field->fieldId <= NVML_FI_DEV_POWER_REQUESTED_LIMIT;
    if (power && field->scopeId == NVML_POWER_SCOPE_MODULE) return module_power_field(gpu, field, totals);
    if (power && field->scopeId != NVML_POWER_SCOPE_GPU) return false;
    switch (field->fieldId) {
        case NVML_FI_DEV_POWER_AVERAGE: give_milliwatts(field, fake_power_watts(target)); return true;
        case NVML_FI_DEV_POWER_INSTANT: give_milliwatts(field, totals->values[VALUE_power_watts]); return true;
        case NVML_FI_DEV_POWER_MIN_LIMIT: give_uint(field, gpu->power_limit_min_mw); return true;
        case NVML_FI_DEV_POWER_MAX_LIMIT: give_uint(field, gpu->power_limit_max_mw); return true;
        case NVML_FI_DEV_POWER_DEFAULT_LIMIT: give_uint(field, gpu->power_limit_default_mw); return true;
        case NVML_FI_DEV_POWER_CURRENT_LIMIT:
        case NVML_FI_DEV_POWER_REQUESTED_LIMIT: give_uint(field, gpu->power_limit_mw); return true;
        case NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION: give_ull(field, fake_total_energy_mj(target, totals)); return true;
        case NVML_FI_DEV_ENERGY: give_ull(field, fake_energy_mj(target, totals)); return true;
        default: return false;
    }
}

static bool temperature_field(const struct gpu *gpu, nvmlFieldValue_t *field, const struct totals *totals) {
    switch (field->fieldId) {
        case NVML_FI_DEV_MEMORY_TEMP:
            give_uint(field, (unsigned int)lround(totals->values[VALUE_memory_temperature_c]));
            return true;
        case NVML_FI_DEV_GPU_TEMP: give_double(field, totals->values[VALUE_temperature_c]); return true;
        case NVML_FI_DEV_TEMPERATURE_SHUTDOWN_TLIMIT:
            give_int(field, (int)gpu->temperature_gpu_max_c - (int)gpu->temperature_shutdown_c);
            return true;
        case NVML_FI_DEV_TEMPERATURE_SLOWDOWN_TLIMIT:
            give_int(field, (int)gpu->temperature_gpu_max_c - (int)gpu->temperature_slowdown_c);
            return true;
        case NVML_FI_DEV_TEMPERATURE_MEM_MAX_TLIMIT:
        case NVML_FI_DEV_TEMPERATURE_GPU_MAX_TLIMIT: give_int(field, 0); return true;
        default: return false;
    }
}

static bool memory_health_field(const struct gpu *gpu, nvmlFieldValue_t *field) {
    unsigned int id = field->fieldId;
    bool ampere = gpu->architecture >= NVML_DEVICE_ARCH_AMPERE;  // pages retire before it, rows are remapped from it on
    if (id == NVML_FI_DEV_GET_GPU_RECOVERY_ACTION) {
        give_uint(field, gpu->recovery_action);
        return true;
    }
    if (!gpu->ecc_supported) return false;
    if (ampere && id >= NVML_FI_DEV_RETIRED_SBE && id <= NVML_FI_DEV_RETIRED_PENDING) return false;
    if (!ampere && id >= NVML_FI_DEV_REMAPPED_COR && id <= NVML_FI_DEV_REMAPPED_FAILURE) return false;
    switch (id) {
        case NVML_FI_DEV_ECC_CURRENT: give_uint(field, gpu->ecc_mode); return true;
        case NVML_FI_DEV_ECC_PENDING: give_uint(field, gpu->ecc_mode_pending); return true;
        case NVML_FI_DEV_ECC_SBE_VOL_TOTAL: give_ull(field, gpu->ecc_errors[0][0]); return true;
        case NVML_FI_DEV_ECC_SBE_AGG_TOTAL: give_ull(field, gpu->ecc_errors[0][1]); return true;
        case NVML_FI_DEV_ECC_DBE_VOL_TOTAL: give_ull(field, gpu->ecc_errors[1][0]); return true;
        case NVML_FI_DEV_ECC_DBE_AGG_TOTAL: give_ull(field, gpu->ecc_errors[1][1]); return true;
        case NVML_FI_DEV_RETIRED_SBE: give_ull(field, gpu->retired_single_bit); return true;
        case NVML_FI_DEV_RETIRED_DBE: give_ull(field, gpu->retired_double_bit); return true;
        case NVML_FI_DEV_RETIRED_PENDING: give_uint(field, gpu->retired_pending); return true;
        case NVML_FI_DEV_REMAPPED_COR: give_uint(field, gpu->remapped_correctable); return true;
        case NVML_FI_DEV_REMAPPED_UNC: give_uint(field, gpu->remapped_uncorrectable); return true;
        case NVML_FI_DEV_REMAPPED_ROWS_COR_INACTIVE:
        case NVML_FI_DEV_REMAPPED_ROWS_UNC_INACTIVE: give_uint(field, 0); return true;
        case NVML_FI_DEV_REMAPPED_PENDING: give_uint(field, gpu->remap_pending); return true;
        case NVML_FI_DEV_REMAPPED_FAILURE: give_uint(field, gpu->remap_failed); return true;
        default: return false;
    }
}

static bool pcie_field(const struct gpu *gpu, nvmlFieldValue_t *field, const struct totals *totals) {
    uint64_t boot = gpu->bytes_at_boot;
    switch (field->fieldId) {
        case NVML_FI_DEV_PCIE_REPLAY_COUNTER: give_ull(field, gpu->pcie_replays); return true;
        case NVML_FI_DEV_PCIE_REPLAY_ROLLOVER_COUNTER:
        case NVML_FI_DEV_PCIE_L0_TO_RECOVERY_COUNTER: give_ull(field, 0); return true;
        case NVML_FI_DEV_PCIE_COUNT_TX_BYTES:
            give_ull(field, boot + (uint64_t)totals->integrals[VALUE_pcie_tx_bytes_per_second]);
            return true;
        case NVML_FI_DEV_PCIE_COUNT_RX_BYTES:
            give_ull(field, boot + (uint64_t)totals->integrals[VALUE_pcie_rx_bytes_per_second]);
            return true;
        default: break;
    }
    if (field->fieldId < NVML_FI_DEV_PCIE_COUNT_CORRECTABLE_ERRORS) return false;
    if (field->fieldId > NVML_FI_DEV_PCIE_COUNT_LANE_ERROR) return false;
    give_ull(field, gpu->pcie_errors[field->fieldId - NVML_FI_DEV_PCIE_COUNT_CORRECTABLE_ERRORS]);
    return true;
}

static unsigned int count_links_up(const struct gpu *gpu) {
    unsigned int up = 0;
    for (unsigned int link = 0; link < gpu->nvlink_count; link++) up += gpu->links[link].up != 0;
    return up;
}

// Traffic of one link, or of all: the running links share it evenly.
static uint64_t link_bytes(const struct gpu *gpu, unsigned int scope, double bytes) {
    if (scope == ALL_LINKS) return (uint64_t)bytes;
    unsigned int up = count_links_up(gpu);
    return gpu->links[scope].up && up ? (uint64_t)(bytes / up) : 0;
}

static uint64_t link_errors(const struct gpu *gpu, unsigned int scope, size_t member) {
    uint64_t sum = 0;
    for (unsigned int link = 0; link < gpu->nvlink_count; link++)
        if (scope == ALL_LINKS || scope == link)
            sum += *(const uint64_t *)(const void *)((const char *)&gpu->links[link] + member);
    return sum;
}

static bool nvlink_field(const struct gpu *gpu, nvmlFieldValue_t *field, const struct totals *totals) {
    unsigned int id = field->fieldId, scope = field->scopeId;
    double transmitted = totals->integrals[VALUE_nvlink_tx_bytes_per_second];
    double received = totals->integrals[VALUE_nvlink_rx_bytes_per_second];
    if (id == NVML_FI_DEV_NVLINK_LINK_COUNT) {
        give_uint(field, gpu->nvlink_count);
        return true;
    }
    if (!gpu->nvlink_count) return false;
    if (id == NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON) {
        give_uint(field, gpu->nvlink_speed_mbps);
        return true;
    }
    if (scope != ALL_LINKS && scope >= gpu->nvlink_count) return false;
    bool blackwell = gpu->architecture >= NVML_DEVICE_ARCH_BLACKWELL;
    const struct link *link = scope == ALL_LINKS ? NULL : &gpu->links[scope];
    switch (id) {
        case NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX: give_ull(field, link_bytes(gpu, scope, transmitted) / 1024); return true;
        case NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX: give_ull(field, link_bytes(gpu, scope, received) / 1024); return true;
        case NVML_FI_DEV_NVLINK_THROUGHPUT_RAW_TX: give_ull(field, link_bytes(gpu, scope, transmitted * 1.25) / 1024); return true;
        case NVML_FI_DEV_NVLINK_THROUGHPUT_RAW_RX: give_ull(field, link_bytes(gpu, scope, received * 1.25) / 1024); return true;
        case NVML_FI_DEV_NVLINK_ECC_DATA_ERROR_COUNT_TOTAL: give_ull(field, link_errors(gpu, ALL_LINKS, offsetof(struct link, ecc_errors))); return true;
        case NVML_FI_DEV_NVLINK_GET_SPEED: give_uint(field, link && !link->up ? 0 : gpu->nvlink_speed_mbps); return true;
        case NVML_FI_DEV_NVLINK_GET_VERSION: give_uint(field, gpu->nvlink_version); return true;
        default: break;
    }
    if (id == NVML_FI_DEV_NVLINK_GET_STATE && link) {
        give_uint(field, link->up);
        return true;
    }
    size_t replay = offsetof(struct link, replay_errors), recovery = offsetof(struct link, recovery_errors);
    size_t crc = offsetof(struct link, crc_flit_errors);
    if (blackwell) {  // NVLink 5 counts anew and answers the old ids no more
        switch (id) {
            case NVML_FI_DEV_NVLINK_COUNT_XMIT_BYTES: give_ull(field, link_bytes(gpu, scope, transmitted)); return true;
            case NVML_FI_DEV_NVLINK_COUNT_RCV_BYTES: give_ull(field, link_bytes(gpu, scope, received)); return true;
            case NVML_FI_DEV_NVLINK_COUNT_RCV_ERRORS: give_ull(field, link_errors(gpu, scope, crc)); return true;
            case NVML_FI_DEV_NVLINK_COUNT_EFFECTIVE_ERRORS:
            case NVML_FI_DEV_NVLINK_COUNT_SYMBOL_ERRORS: give_ull(field, link_errors(gpu, scope, replay)); return true;
            case NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_SUCCESSFUL_EVENTS:
            case NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_EVENTS: give_ull(field, link_errors(gpu, scope, recovery)); return true;
            case NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_FAILED_EVENTS: give_ull(field, 0); return true;
            default: return false;
        }
    }
    switch (id) {
        case NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY: give_ull(field, link_errors(gpu, scope, replay)); return true;
        case NVML_FI_DEV_NVLINK_ERROR_DL_RECOVERY: give_ull(field, link_errors(gpu, scope, recovery)); return true;
        case NVML_FI_DEV_NVLINK_ERROR_DL_CRC: give_ull(field, link_errors(gpu, scope, crc)); return true;
        default: return false;
    }
}

static bool other_field(const struct gpu *gpu, nvmlFieldValue_t *field, const struct totals *totals) {
    switch (field->fieldId) {
        case NVML_FI_DEV_MMA_STALL_PERCENT:
            give_uint(field, (unsigned int)lround(totals->values[VALUE_mma_stall] * 100.0));
            return true;
        case NVML_FI_DEV_C2C_LINK_COUNT: give_uint(field, gpu->c2c_link_count); return true;
        case NVML_FI_DEV_IS_RESETLESS_MIG_SUPPORTED:
        case NVML_FI_DEV_IS_MIG_MODE_INDEPENDENT_MIG_QUERY_CAPABLE: give_uint(field, gpu->mig_supported); return true;
        default: return false;
    }
}

// C2C, the link between GPU and Grace; the scope is the number of the link.
static bool c2c_field(const struct gpu *gpu, nvmlFieldValue_t *field) {
    unsigned int id = field->fieldId, link = field->scopeId;
    if (link >= gpu->c2c_link_count) return false;
    bool up = !(gpu->c2c_down >> link & 1);
    switch (id) {
        case NVML_FI_DEV_C2C_LINK_GET_STATUS: give_uint(field, up); return true;
        case NVML_FI_DEV_C2C_LINK_GET_MAX_BW: give_uint(field, up ? gpu->c2c_link_mbps : 0); return true;
        case NVML_FI_DEV_C2C_LINK_ERROR_INTR:
        case NVML_FI_DEV_C2C_LINK_ERROR_REPLAY:
        case NVML_FI_DEV_C2C_LINK_ERROR_REPLAY_B2B:
            give_ull(field, link ? 0 : gpu->c2c_errors[id - NVML_FI_DEV_C2C_LINK_ERROR_INTR]);
            return true;
        case NVML_FI_DEV_C2C_LINK_POWER_STATE: give_uint(field, gpu->c2c_low_power >> link & 1); return true;
        default: return false;
    }
}

void fake_field(const struct target *target, nvmlFieldValue_t *field) {
    const struct gpu *gpu = target->gpu;
    uint64_t began_ns = fake_now_ns();
    struct timespec wall;
    clock_gettime(CLOCK_REALTIME, &wall);  // microseconds since 1970, unlike the other timestamps of NVML
    field->timestamp = (long long)wall.tv_sec * 1000000 + wall.tv_nsec / 1000;
    field->nvmlReturn = NVML_SUCCESS;
    if (field->fieldId >= MAX_FIELDS) {
        field->nvmlReturn = NVML_ERROR_INVALID_ARGUMENT;
        return;
    }
    int32_t fault = gpu->field_fault[field->fieldId], fixed = gpu->field_profile_code[field->fieldId];
    field->nvmlReturn = (nvmlReturn_t)(fault ? fault : fixed);
    if (field->nvmlReturn == NVML_SUCCESS) {
        struct totals totals;
        fake_totals(target, &totals);
        bool known = event_reason_field(field, &totals) || power_field(target, field, &totals) ||
                     temperature_field(gpu, field, &totals) || memory_health_field(gpu, field) ||
                     pcie_field(gpu, field, &totals) || nvlink_field(gpu, field, &totals) ||
                     other_field(gpu, field, &totals) || c2c_field(gpu, field);
        if (gpu->field_override[field->fieldId]) give_ull(field, gpu->field_value[field->fieldId]);
        else if (!known) field->nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
    }
    field->latencyUsec = (long long)((fake_now_ns() - began_ns) / 1000);
}

API(nvmlDeviceGetFieldValues, nvmlDevice_t device, int count, nvmlFieldValue_t *values) {
    ENTER(nvmlDeviceGetFieldValues, device, WHOLE_GPU_ONLY);
    REQUIRE(values != NULL && count > 0);
    for (int index = 0; index < count; index++) fake_field(&target, &values[index]);
    return NVML_SUCCESS;
}
