// What a GPU does at this moment: clocks, power, temperature, utilization, memory.
#include <math.h>

#include "fake.h"

static nvmlReturn_t clock_of(const struct target *target, nvmlClockType_t type, unsigned int *clock) {
    static const enum value values[] = {VALUE_sm_clock_mhz, VALUE_sm_clock_mhz, VALUE_memory_clock_mhz,
                                        VALUE_video_clock_mhz};
    REQUIRE(clock != NULL && type < NVML_CLOCK_COUNT);
    *clock = (unsigned int)lround(fake_value(target, values[type]));
    return NVML_SUCCESS;
}

static nvmlReturn_t max_clock_of(const struct gpu *gpu, nvmlClockType_t type, unsigned int *clock) {
    REQUIRE(clock != NULL && type < NVML_CLOCK_COUNT);
    *clock = type == NVML_CLOCK_MEM     ? gpu->max_memory_clock_mhz
             : type == NVML_CLOCK_VIDEO ? gpu->max_video_clock_mhz
                                        : gpu->max_sm_clock_mhz;
    return NVML_SUCCESS;
}

API(nvmlDeviceGetClockInfo, nvmlDevice_t device, nvmlClockType_t type, unsigned int *clock) {
    ENTER(nvmlDeviceGetClockInfo, device, WHOLE_GPU_ONLY);
    return clock_of(&target, type, clock);
}

API(nvmlDeviceGetMaxClockInfo, nvmlDevice_t device, nvmlClockType_t type, unsigned int *clock) {
    ENTER(nvmlDeviceGetMaxClockInfo, device, WHOLE_GPU_ONLY);
    return max_clock_of(target.gpu, type, clock);
}

API(nvmlDeviceGetClock, nvmlDevice_t device, nvmlClockType_t type, nvmlClockId_t id, unsigned int *clock) {
    ENTER(nvmlDeviceGetClock, device, WHOLE_GPU_ONLY);
    if (id == NVML_CLOCK_ID_CURRENT) return clock_of(&target, type, clock);
    if (id == NVML_CLOCK_ID_CUSTOMER_BOOST_MAX) return max_clock_of(target.gpu, type, clock);
    return NVML_ERROR_NOT_SUPPORTED;
}

API(nvmlDeviceGetMaxCustomerBoostClock, nvmlDevice_t device, nvmlClockType_t type, unsigned int *clock) {
    ENTER(nvmlDeviceGetMaxCustomerBoostClock, device, WHOLE_GPU_ONLY);
    if (!target.gpu->max_customer_boost_mhz) return NVML_ERROR_NOT_SUPPORTED;
    if (type == NVML_CLOCK_MEM) return max_clock_of(target.gpu, type, clock);
    REQUIRE(clock != NULL);
    *clock = target.gpu->max_customer_boost_mhz;
    return NVML_SUCCESS;
}

API(nvmlDeviceGetAdaptiveClockInfoStatus, nvmlDevice_t device, unsigned int *status) {
    ENTER(nvmlDeviceGetAdaptiveClockInfoStatus, device, WHOLE_GPU_ONLY);
    REQUIRE(status != NULL);
    *status = NVML_ADAPTIVE_CLOCKING_INFO_STATUS_ENABLED;
    return NVML_SUCCESS;
}

static nvmlReturn_t performance_state(enum function_number function, nvmlDevice_t device, nvmlPstates_t *state) {
    struct target target;
    nvmlReturn_t entered = fake_enter_device(function, device, WHOLE_GPU_ONLY, &target);
    if (entered != NVML_SUCCESS) return entered;
    REQUIRE(state != NULL);
    *state = (nvmlPstates_t)fake_value(&target, VALUE_performance_state);
    return NVML_SUCCESS;
}

API(nvmlDeviceGetPerformanceState, nvmlDevice_t device, nvmlPstates_t *state) {
    return performance_state(FN_nvmlDeviceGetPerformanceState, device, state);
}

API(nvmlDeviceGetPowerState, nvmlDevice_t device, nvmlPstates_t *state) {
    return performance_state(FN_nvmlDeviceGetPowerState, device, state);
}

static nvmlReturn_t event_reasons(enum function_number function, nvmlDevice_t device, bool supported,
                                  unsigned long long *reasons) {
    struct target target;
    nvmlReturn_t entered = fake_enter_device(function, device, WHOLE_GPU_ONLY, &target);
    if (entered != NVML_SUCCESS) return entered;
    REQUIRE(reasons != NULL);
    *reasons = supported ? target.gpu->supported_event_reasons
                         : (unsigned long long)fake_value(&target, VALUE_event_reasons);
    return NVML_SUCCESS;
}

API(nvmlDeviceGetCurrentClocksEventReasons, nvmlDevice_t device, unsigned long long *reasons) {
    return event_reasons(FN_nvmlDeviceGetCurrentClocksEventReasons, device, false, reasons);
}

API(nvmlDeviceGetCurrentClocksThrottleReasons, nvmlDevice_t device, unsigned long long *reasons) {
    return event_reasons(FN_nvmlDeviceGetCurrentClocksThrottleReasons, device, false, reasons);
}

API(nvmlDeviceGetSupportedClocksEventReasons, nvmlDevice_t device, unsigned long long *reasons) {
    return event_reasons(FN_nvmlDeviceGetSupportedClocksEventReasons, device, true, reasons);
}

API(nvmlDeviceGetSupportedClocksThrottleReasons, nvmlDevice_t device, unsigned long long *reasons) {
    return event_reasons(FN_nvmlDeviceGetSupportedClocksThrottleReasons, device, true, reasons);
}

API(nvmlDeviceGetViolationStatus, nvmlDevice_t device, nvmlPerfPolicyType_t policy, nvmlViolationTime_t *violation) {
    ENTER(nvmlDeviceGetViolationStatus, device, WHOLE_GPU_ONLY);
    REQUIRE(violation != NULL && policy < NVML_PERF_POLICY_COUNT);
    nvmlFieldValue_t field = {.fieldId = NVML_FI_DEV_PERF_POLICY_POWER + (unsigned int)policy};
    if (policy > NVML_PERF_POLICY_RELIABILITY) field.fieldId -= NVML_PERF_POLICY_TOTAL_APP_CLOCKS - 6;
    fake_field(&target, &field);
    violation->referenceTime = fake_now_ns() / 1000;
    violation->violationTime = field.value.ullVal;
    return field.nvmlReturn;
}

// ---- power and energy ----

double fake_power_watts(const struct target *target) {
    struct totals now, before;
    fake_totals(target, &now);
    uint64_t window_ns = target->gpu->power_average_ns;
    if (!window_ns) return now.values[VALUE_power_watts];
    fake_totals_at(target, now.time_ns > window_ns ? now.time_ns - window_ns : 1, &before);
    return (now.integrals[VALUE_power_watts] - before.integrals[VALUE_power_watts]) / ((double)window_ns * 1e-9);
}

uint64_t fake_energy_mj(const struct target *target, const struct totals *totals) {
    double counted = target->gpu->energy_stands_still ? 0.0 : totals->integrals[VALUE_power_watts];
    double joules = target->gpu->energy_offset_joules + counted;
    return joules > 0 ? (uint64_t)(joules * 1e3) : 0;
}

uint64_t fake_total_energy_mj(const struct target *target, const struct totals *totals) {
    if (!target->gpu->total_energy_is_modules) return fake_energy_mj(target, totals);
    return (uint64_t)(totals->integrals[VALUE_module_power_watts] * 1e3);
}

API(nvmlDeviceGetPowerUsage, nvmlDevice_t device, unsigned int *power) {
    ENTER(nvmlDeviceGetPowerUsage, device, WHOLE_GPU_ONLY);
    REQUIRE(power != NULL);
    *power = (unsigned int)lround(fake_power_watts(&target) * 1e3);
    return NVML_SUCCESS;
}

API(nvmlDeviceGetTotalEnergyConsumption, nvmlDevice_t device, unsigned long long *energy) {
    ENTER(nvmlDeviceGetTotalEnergyConsumption, device, WHOLE_GPU_ONLY);
    REQUIRE(energy != NULL);
    struct totals totals;
    fake_totals(&target, &totals);
    *energy = fake_total_energy_mj(&target, &totals);
    return NVML_SUCCESS;
}

#define LIMIT(name, member)                                     \
    API(name, nvmlDevice_t device, unsigned int *limit) {       \
        ENTER(name, device, WHOLE_GPU_ONLY);                    \
        REQUIRE(limit != NULL);                                 \
        *limit = target.gpu->member;                            \
        return NVML_SUCCESS;                                    \
    }

LIMIT(nvmlDeviceGetEnforcedPowerLimit, power_limit_mw)
LIMIT(nvmlDeviceGetPowerManagementLimit, power_limit_mw)
LIMIT(nvmlDeviceGetPowerManagementDefaultLimit, power_limit_default_mw)

API(nvmlDeviceGetPowerManagementLimitConstraints, nvmlDevice_t device, unsigned int *low, unsigned int *high) {
    ENTER(nvmlDeviceGetPowerManagementLimitConstraints, device, WHOLE_GPU_ONLY);
    REQUIRE(low != NULL && high != NULL);
    *low = target.gpu->power_limit_min_mw;
    *high = target.gpu->power_limit_max_mw;
    return NVML_SUCCESS;
}

API(nvmlDeviceGetPowerManagementMode, nvmlDevice_t device, nvmlEnableState_t *mode) {
    ENTER(nvmlDeviceGetPowerManagementMode, device, WHOLE_GPU_ONLY);
    REQUIRE(mode != NULL);
    *mode = NVML_FEATURE_ENABLED;
    return NVML_SUCCESS;
}

// ---- temperature and fans ----

API(nvmlDeviceGetTemperature, nvmlDevice_t device, nvmlTemperatureSensors_t sensor, unsigned int *celsius) {
    ENTER(nvmlDeviceGetTemperature, device, WHOLE_GPU_ONLY);
    REQUIRE(celsius != NULL && sensor == NVML_TEMPERATURE_GPU);
    *celsius = (unsigned int)lround(fake_value(&target, VALUE_temperature_c));
    return NVML_SUCCESS;
}

API(nvmlDeviceGetTemperatureV, nvmlDevice_t device, nvmlTemperature_t *temperature) {
    ENTER(nvmlDeviceGetTemperatureV, device, WHOLE_GPU_ONLY);
    REQUIRE_VERSION(temperature, nvmlTemperature_v1);
    REQUIRE(temperature->sensorType == NVML_TEMPERATURE_GPU);
    temperature->temperature = (int)lround(fake_value(&target, VALUE_temperature_c));
    return NVML_SUCCESS;
}

API(nvmlDeviceGetTemperatureThreshold, nvmlDevice_t device, nvmlTemperatureThresholds_t threshold,
    unsigned int *celsius) {
    ENTER(nvmlDeviceGetTemperatureThreshold, device, WHOLE_GPU_ONLY);
    REQUIRE(celsius != NULL && threshold < NVML_TEMPERATURE_THRESHOLD_COUNT);
    const struct gpu *gpu = target.gpu;
    const uint32_t limits[] = {gpu->temperature_shutdown_c, gpu->temperature_slowdown_c,
                               gpu->temperature_memory_max_c, gpu->temperature_gpu_max_c};
    if (threshold > NVML_TEMPERATURE_THRESHOLD_GPU_MAX || !limits[threshold]) return NVML_ERROR_NOT_SUPPORTED;
    *celsius = limits[threshold];
    return NVML_SUCCESS;
}

API(nvmlDeviceGetMarginTemperature, nvmlDevice_t device, nvmlMarginTemperature_t *margin) {
    ENTER(nvmlDeviceGetMarginTemperature, device, WHOLE_GPU_ONLY);
    REQUIRE_VERSION(margin, nvmlMarginTemperature_v1);
    margin->marginTemperature =
        (int)target.gpu->temperature_gpu_max_c - (int)lround(fake_value(&target, VALUE_temperature_c));
    return NVML_SUCCESS;
}

API(nvmlDeviceGetNumFans, nvmlDevice_t device, unsigned int *fans) {
    ENTER(nvmlDeviceGetNumFans, device, WHOLE_GPU_ONLY);
    REQUIRE(fans != NULL);
    if (!target.gpu->fan_count) return NVML_ERROR_NOT_SUPPORTED;
    *fans = target.gpu->fan_count;
    return NVML_SUCCESS;
}

static nvmlReturn_t fan_speed(const struct target *target, unsigned int fan, unsigned int *speed) {
    REQUIRE(speed != NULL);
    if (!target->gpu->fan_count) return NVML_ERROR_NOT_SUPPORTED;
    REQUIRE(fan < target->gpu->fan_count);
    *speed = (unsigned int)lround(fake_value(target, VALUE_fan_speed) * 100.0);
    return NVML_SUCCESS;
}

API(nvmlDeviceGetFanSpeed, nvmlDevice_t device, unsigned int *speed) {
    ENTER(nvmlDeviceGetFanSpeed, device, WHOLE_GPU_ONLY);
    return fan_speed(&target, 0, speed);
}

API(nvmlDeviceGetFanSpeed_v2, nvmlDevice_t device, unsigned int fan, unsigned int *speed) {
    ENTER(nvmlDeviceGetFanSpeed_v2, device, WHOLE_GPU_ONLY);
    return fan_speed(&target, fan, speed);
}

// ---- utilization ----

API(nvmlDeviceGetUtilizationRates, nvmlDevice_t device, nvmlUtilization_t *utilization) {
    ENTER(nvmlDeviceGetUtilizationRates, device, WHOLE_GPU_ONLY);
    REQUIRE(utilization != NULL);
    if (target.gpu->mig_mode) return NVML_ERROR_NOT_SUPPORTED;
    struct totals totals;
    fake_totals(&target, &totals);
    utilization->gpu = (unsigned int)lround(totals.values[VALUE_gpu_utilization] * 100.0);
    utilization->memory = (unsigned int)lround(totals.values[VALUE_memory_utilization] * 100.0);
    return NVML_SUCCESS;
}

#define ENGINE(name, value, engines)                                                            \
    API(name, nvmlDevice_t device, unsigned int *utilization, unsigned int *period_us) {        \
        ENTER(name, device, WHOLE_GPU_ONLY);                                                    \
        REQUIRE(utilization != NULL && period_us != NULL);                                      \
        if (target.gpu->mig_mode || !(engines)) return NVML_ERROR_NOT_SUPPORTED;                \
        *utilization = (unsigned int)lround(fake_value(&target, value) * 100.0);                \
        *period_us = 167000;                                                                    \
        return NVML_SUCCESS;                                                                    \
    }

ENGINE(nvmlDeviceGetEncoderUtilization, VALUE_encoder_utilization, 1)  // 0 %, not an error, on boards without NVENC
ENGINE(nvmlDeviceGetDecoderUtilization, VALUE_decoder_utilization, target.gpu->decoder_count)
ENGINE(nvmlDeviceGetJpgUtilization, VALUE_jpeg_utilization, target.gpu->jpeg_count)
ENGINE(nvmlDeviceGetOfaUtilization, VALUE_ofa_utilization, target.gpu->ofa_count)

// ---- memory ----

struct memory { unsigned long long total, reserved, used; };

static struct memory memory_of(const struct target *target) {
    struct memory memory = {target->gpu->memory_total_bytes, target->gpu->memory_reserved_bytes, 0};
    if (target->instance) memory = (struct memory){target->instance->memory_mib << 20, 0, 0};
    memory.used = (unsigned long long)fake_value(target, VALUE_memory_used_bytes);
    return memory;
}

API(nvmlDeviceGetMemoryInfo, nvmlDevice_t device, nvmlMemory_t *memory) {
    ENTER(nvmlDeviceGetMemoryInfo, device, MIG_TOO);
    REQUIRE(memory != NULL);
    struct memory now = memory_of(&target);
    memory->total = now.total;
    memory->used = now.used + now.reserved;  // version 1 counts the reserved part as used
    memory->free = now.total - memory->used;
    return NVML_SUCCESS;
}

API(nvmlDeviceGetMemoryInfo_v2, nvmlDevice_t device, nvmlMemory_v2_t *memory) {
    ENTER(nvmlDeviceGetMemoryInfo_v2, device, MIG_TOO);
    REQUIRE_VERSION(memory, nvmlMemory_v2);
    struct memory now = memory_of(&target);
    memory->total = now.total;
    memory->reserved = now.reserved;
    memory->used = now.used;
    memory->free = now.total - now.used - now.reserved;
    return NVML_SUCCESS;
}

API(nvmlDeviceGetBAR1MemoryInfo, nvmlDevice_t device, nvmlBAR1Memory_t *memory) {
    ENTER(nvmlDeviceGetBAR1MemoryInfo, device, WHOLE_GPU_ONLY);
    REQUIRE(memory != NULL);
    memory->bar1Total = target.gpu->bar1_total_bytes;
    memory->bar1Used = target.gpu->bar1_used_bytes;
    memory->bar1Free = memory->bar1Total - memory->bar1Used;
    return NVML_SUCCESS;
}
