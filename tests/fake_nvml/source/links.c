// PCIe and NVLink.
#include "fake.h"

enum { PCIE_SAMPLE_NS = 20 * 1000 * 1000 };  // how long the real driver blocks to measure throughput

#define PCIE(name, value)                                        \
    API(name, nvmlDevice_t device, unsigned int *out) {          \
        ENTER(name, device, WHOLE_GPU_ONLY);                     \
        REQUIRE(out != NULL);                                    \
        *out = (unsigned int)(value);                            \
        return NVML_SUCCESS;                                     \
    }

static unsigned int lane_mbps(unsigned int generation) {
    static const unsigned int speeds[] = {0, 2500, 5000, 8000, 16000, 32000, 64000};
    return generation < sizeof speeds / sizeof *speeds ? speeds[generation] : 0;
}

PCIE(nvmlDeviceGetCurrPcieLinkGeneration, target.gpu->pcie_generation)
PCIE(nvmlDeviceGetMaxPcieLinkGeneration, target.gpu->pcie_generation_max)
PCIE(nvmlDeviceGetGpuMaxPcieLinkGeneration, target.gpu->pcie_generation_max)
PCIE(nvmlDeviceGetCurrPcieLinkWidth, target.gpu->pcie_width)
PCIE(nvmlDeviceGetMaxPcieLinkWidth, target.gpu->pcie_width_max)
PCIE(nvmlDeviceGetPcieReplayCounter, target.gpu->pcie_replays)
PCIE(nvmlDeviceGetPcieSpeed, lane_mbps(target.gpu->pcie_generation))

API(nvmlDeviceGetPcieLinkMaxSpeed, nvmlDevice_t device, unsigned int *speed) {
    ENTER(nvmlDeviceGetPcieLinkMaxSpeed, device, WHOLE_GPU_ONLY);
    REQUIRE(speed != NULL);
    static const unsigned int speeds[] = {
        NVML_PCIE_LINK_MAX_SPEED_INVALID,  NVML_PCIE_LINK_MAX_SPEED_2500MBPS,  NVML_PCIE_LINK_MAX_SPEED_5000MBPS,
        NVML_PCIE_LINK_MAX_SPEED_8000MBPS, NVML_PCIE_LINK_MAX_SPEED_16000MBPS, NVML_PCIE_LINK_MAX_SPEED_32000MBPS,
        NVML_PCIE_LINK_MAX_SPEED_64000MBPS,
    };
    *speed = speeds[target.gpu->pcie_generation_max % 7];
    return NVML_SUCCESS;
}

API(nvmlDeviceGetPcieThroughput, nvmlDevice_t device, nvmlPcieUtilCounter_t counter, unsigned int *kilobytes) {
    ENTER(nvmlDeviceGetPcieThroughput, device, WHOLE_GPU_ONLY);
    REQUIRE(kilobytes != NULL && counter < NVML_PCIE_UTIL_COUNT);
    enum value value =
        counter == NVML_PCIE_UTIL_TX_BYTES ? VALUE_pcie_tx_bytes_per_second : VALUE_pcie_rx_bytes_per_second;
    struct totals before, after;
    fake_totals(&target, &before);
    fake_sleep_ns(PCIE_SAMPLE_NS);
    fake_totals(&target, &after);
    double seconds = (double)(after.time_ns - before.time_ns) * 1e-9;
    *kilobytes = (unsigned int)((after.integrals[value] - before.integrals[value]) / seconds / 1e3 + 0.5);
    return fake_state(target.slot);
}

// The link with this number, or NULL: boards without NVLink answer NOT_SUPPORTED, wrong numbers INVALID_ARGUMENT.
static nvmlReturn_t link_of(const struct target *target, unsigned int number, const struct link **link) {
    if (!target->gpu->nvlink_count) return NVML_ERROR_NOT_SUPPORTED;
    REQUIRE(number < NVML_NVLINK_MAX_LINKS);
    if (number >= target->gpu->nvlink_count) return NVML_ERROR_NOT_SUPPORTED;
    *link = &target->gpu->links[number];
    return NVML_SUCCESS;
}

API(nvmlDeviceGetNvLinkState, nvmlDevice_t device, unsigned int number, nvmlEnableState_t *active) {
    ENTER(nvmlDeviceGetNvLinkState, device, WHOLE_GPU_ONLY);
    REQUIRE(active != NULL);
    const struct link *link;
    nvmlReturn_t found = link_of(&target, number, &link);
    if (found == NVML_SUCCESS && link->state_code) return (nvmlReturn_t)link->state_code;
    if (found == NVML_SUCCESS) *active = link->up ? NVML_FEATURE_ENABLED : NVML_FEATURE_DISABLED;
    return found;
}

API(nvmlDeviceGetNvLinkVersion, nvmlDevice_t device, unsigned int number, unsigned int *version) {
    ENTER(nvmlDeviceGetNvLinkVersion, device, WHOLE_GPU_ONLY);
    REQUIRE(version != NULL);
    const struct link *link;
    nvmlReturn_t found = link_of(&target, number, &link);
    if (found == NVML_SUCCESS) *version = target.gpu->nvlink_version;
    return found;
}

API(nvmlDeviceGetNvLinkCapability, nvmlDevice_t device, unsigned int number, nvmlNvLinkCapability_t capability,
    unsigned int *result) {
    ENTER(nvmlDeviceGetNvLinkCapability, device, WHOLE_GPU_ONLY);
    REQUIRE(result != NULL && capability < NVML_NVLINK_CAP_COUNT);
    const struct link *link;
    nvmlReturn_t found = link_of(&target, number, &link);
    if (found == NVML_SUCCESS) *result = capability == NVML_NVLINK_CAP_P2P_SUPPORTED;
    return found;
}

API(nvmlDeviceGetNvLinkRemoteDeviceType, nvmlDevice_t device, unsigned int number, nvmlIntNvLinkDeviceType_t *type) {
    ENTER(nvmlDeviceGetNvLinkRemoteDeviceType, device, WHOLE_GPU_ONLY);
    REQUIRE(type != NULL);
    const struct link *link;
    nvmlReturn_t found = link_of(&target, number, &link);
    if (found == NVML_SUCCESS) *type = NVML_NVLINK_DEVICE_TYPE_SWITCH;
    return found;
}

API(nvmlDeviceGetNvLinkErrorCounter, nvmlDevice_t device, unsigned int number, nvmlNvLinkErrorCounter_t counter,
    unsigned long long *value) {
    ENTER(nvmlDeviceGetNvLinkErrorCounter, device, WHOLE_GPU_ONLY);
    REQUIRE(value != NULL && counter < NVML_NVLINK_ERROR_COUNT);
    const struct link *link;
    nvmlReturn_t found = link_of(&target, number, &link);
    if (found != NVML_SUCCESS) return found;
    if (!link->up) return NVML_ERROR_NOT_SUPPORTED;
    const uint64_t counters[] = {link->replay_errors, link->recovery_errors, link->crc_flit_errors,
                                 link->crc_data_errors, link->ecc_errors};
    *value = counters[counter];
    return NVML_SUCCESS;
}
