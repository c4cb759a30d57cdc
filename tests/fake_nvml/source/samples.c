// nvmlDeviceGetSamples: the driver's own ring of the last seconds, one sample every 100 ms.
#include <math.h>

#include "fake.h"

enum { SAMPLE_NS = 100 * 1000 * 1000, RING = 120 };

static const struct { nvmlSamplingType_t type; enum value value; double scale; } SERIES[] = {
    {NVML_TOTAL_POWER_SAMPLES, VALUE_power_watts, 1e3},
    {NVML_GPU_UTILIZATION_SAMPLES, VALUE_gpu_utilization, 1e2},
    {NVML_MEMORY_UTILIZATION_SAMPLES, VALUE_memory_utilization, 1e2},
    {NVML_ENC_UTILIZATION_SAMPLES, VALUE_encoder_utilization, 1e2},
    {NVML_DEC_UTILIZATION_SAMPLES, VALUE_decoder_utilization, 1e2},
    {NVML_PROCESSOR_CLK_SAMPLES, VALUE_sm_clock_mhz, 1.0},
    {NVML_MEMORY_CLK_SAMPLES, VALUE_memory_clock_mhz, 1.0},
};

API(nvmlDeviceGetSamples, nvmlDevice_t device, nvmlSamplingType_t type, unsigned long long last_seen_us,
    nvmlValueType_t *value_type, unsigned int *count, nvmlSample_t *samples) {
    ENTER(nvmlDeviceGetSamples, device, WHOLE_GPU_ONLY);
    REQUIRE(value_type != NULL && count != NULL);
    size_t series = 0;
    while (series < sizeof SERIES / sizeof *SERIES && SERIES[series].type != type) series++;
    if (series == sizeof SERIES / sizeof *SERIES) return NVML_ERROR_NOT_SUPPORTED;
    *value_type = NVML_VALUE_TYPE_UNSIGNED_INT;
    if (!samples) {
        *count = RING;
        return NVML_SUCCESS;
    }
    uint64_t newest = fake_now_ns() / SAMPLE_NS;
    unsigned int room = *count;
    *count = 0;
    for (uint64_t tick = newest - RING + 1; tick <= newest && *count < room; tick++) {
        uint64_t time_ns = tick * SAMPLE_NS;
        if (time_ns / 1000 <= last_seen_us) continue;
        struct totals totals;
        fake_totals_at(&target, time_ns, &totals);
        nvmlSample_t *sample = &samples[(*count)++];
        memset(sample, 0, sizeof *sample);
        sample->timeStamp = time_ns / 1000;
        sample->sampleValue.uiVal = (unsigned int)lround(totals.values[SERIES[series].value] * SERIES[series].scale);
    }
    return *count ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}
