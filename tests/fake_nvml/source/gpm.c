// GPM: samples hold exact integrals, metrics are their exact averages between two samples.
#include <math.h>
#include <pthread.h>
#include <stdlib.h>

#include "fake.h"

enum { SAMPLE_ALIVE = 0x6750, SAMPLE_FREED = 0xDEAD };

struct nvmlGpmSample_st {
    uint32_t state;
    bool taken;
    uint32_t epoch;       // of the nvmlInit it was allocated after: none outlives a shutdown
    uint32_t generation;  // of the MIG instance: a sample pair must not span a reconfiguration
    struct target target;
    struct totals totals;
    struct nvmlGpmSample_st *next;  // while freed
};

static pthread_mutex_t pool_lock = PTHREAD_MUTEX_INITIALIZER;
static nvmlGpmSample_t pool;     // freed samples are kept, so that a use after free is seen, not undefined
static unsigned int running;     // GPM calls inside the library now, in this process

// Parallel GPM calls crash in the field; here they are counted.
static void gpm_leave(const int *entered) {
    (void)entered;
    __atomic_sub_fetch(&running, 1, __ATOMIC_ACQ_REL);
}

static int gpm_begin(void) { return __atomic_add_fetch(&running, 1, __ATOMIC_ACQ_REL) > 1; }

#define GPM_CALL() __attribute__((cleanup(gpm_leave))) const int overlapping = gpm_begin()

static void gpm_account(int overlapping, uint64_t call_ns) {
    if (overlapping) __atomic_add_fetch(&fake_control->gpm_overlaps, 1, __ATOMIC_RELAXED);
    if (call_ns) fake_sleep_ns(call_ns);
}

static nvmlReturn_t misuse(void) {
    __atomic_add_fetch(&fake_control->gpm_misuses, 1, __ATOMIC_RELAXED);
    return NVML_ERROR_INVALID_ARGUMENT;
}

static bool alive(nvmlGpmSample_t sample) { return sample != NULL && sample->state == SAMPLE_ALIVE; }

static bool current(nvmlGpmSample_t sample) { return alive(sample) && sample->epoch == fake_epoch(); }

API(nvmlGpmSampleAlloc, nvmlGpmSample_t *sample) {
    GPM_CALL();
    ENTER_SYSTEM(nvmlGpmSampleAlloc);
    gpm_account(overlapping, 0);
    REQUIRE(sample != NULL);
    pthread_mutex_lock(&pool_lock);
    nvmlGpmSample_t fresh = pool;
    if (fresh) pool = fresh->next;
    pthread_mutex_unlock(&pool_lock);
    if (!fresh) fresh = malloc(sizeof *fresh);
    if (!fresh) return NVML_ERROR_MEMORY;
    *fresh = (struct nvmlGpmSample_st){.state = SAMPLE_ALIVE, .epoch = fake_epoch()};
    __atomic_add_fetch(&fake_control->gpm_samples_alive, 1, __ATOMIC_RELAXED);
    *sample = fresh;
    return NVML_SUCCESS;
}

API(nvmlGpmSampleFree, nvmlGpmSample_t sample) {
    GPM_CALL();
    ENTER_SYSTEM(nvmlGpmSampleFree);
    gpm_account(overlapping, 0);
    if (!alive(sample)) return misuse();
    sample->state = SAMPLE_FREED;
    pthread_mutex_lock(&pool_lock);
    sample->next = pool;
    pool = sample;
    pthread_mutex_unlock(&pool_lock);
    __atomic_sub_fetch(&fake_control->gpm_samples_alive, 1, __ATOMIC_RELAXED);
    return NVML_SUCCESS;
}

static nvmlReturn_t take(const struct target *target, nvmlGpmSample_t sample, int overlapping) {
    gpm_account(overlapping, target->gpu->gpm_call_ns);
    if (target->gpu->gpm_mode == GPM_NONE) return NVML_ERROR_NOT_SUPPORTED;
    if (!current(sample)) return misuse();
    sample->target = *target;
    sample->taken = true;
    sample->generation = target->instance ? target->instance->generation : 0;
    fake_totals(target, &sample->totals);
    return NVML_SUCCESS;
}

API(nvmlGpmSampleGet, nvmlDevice_t device, nvmlGpmSample_t sample) {
    GPM_CALL();
    ENTER(nvmlGpmSampleGet, device, MIG_TOO);
    return take(&target, sample, overlapping);
}

API(nvmlGpmMigSampleGet, nvmlDevice_t device, unsigned int gpu_instance_id, nvmlGpmSample_t sample) {
    GPM_CALL();
    ENTER(nvmlGpmMigSampleGet, device, WHOLE_GPU_ONLY);
    if (!target.gpu->mig_mode) return NVML_ERROR_NOT_SUPPORTED;
    for (int number = 0; number < MAX_INSTANCES; number++) {
        struct instance *instance = &target.gpu->instances[number];
        if (instance->in_use && instance->gpu_instance_id == gpu_instance_id) {
            target.number = number;
            target.instance = instance;
            return take(&target, sample, overlapping);
        }
    }
    return NVML_ERROR_NOT_FOUND;
}

// What one call of nvmlGpmMetricsGet works on.
struct window {
    const struct target *target;
    const struct totals *first, *second;
    double seconds, cycles;  // elapsed, per SM
};

static double integral(const struct window *window, enum value value) {
    return window->second->integrals[value] - window->first->integrals[value];
}

static double percent(const struct window *window, enum value value) {
    return 100.0 * integral(window, value) / (CYCLE_WEIGHTED[value] ? window->cycles : window->seconds);
}

static double mebibytes_per_second(const struct window *window, enum value value) {
    return integral(window, value) / window->seconds / 1048576.0;
}

// A raw counter since boot, per SM or over all SMs as the profile says.
static double raw_cycles(const struct window *window, enum value value) {
    const struct gpu *gpu = window->target->gpu;
    double cycles = (double)gpu->cycles_at_boot * (value == VALUE_sm_clock_mhz ? 1.0 : 0.25);
    cycles += window->second->integrals[value] * (value == VALUE_sm_clock_mhz ? 1e6 : 1.0);
    double sms = window->target->instance ? window->target->instance->multiprocessor_count : gpu->multiprocessor_count;
    return floor(gpu->gpm_sum_over_sms ? cycles * sms : cycles);
}

static double raw_bytes(const struct window *window, enum value value) {
    return floor((double)window->target->gpu->bytes_at_boot + window->second->integrals[value]);
}

struct row { unsigned int id; enum value value; const char *name; };

static const struct row SIMPLE[] = {
    {NVML_GPM_METRIC_GRAPHICS_UTIL, VALUE_graphics, "Graphics Utilization"},
    {NVML_GPM_METRIC_SM_UTIL, VALUE_sm, "SM Utilization"},
    {NVML_GPM_METRIC_SM_OCCUPANCY, VALUE_occupancy, "SM Occupancy"},
    {NVML_GPM_METRIC_INTEGER_UTIL, VALUE_integer, "Integer Utilization"},
    {NVML_GPM_METRIC_ANY_TENSOR_UTIL, VALUE_any_tensor, "Any Tensor Utilization"},
    {NVML_GPM_METRIC_DFMA_TENSOR_UTIL, VALUE_dfma_tensor, "DFMA Tensor Utilization"},
    {NVML_GPM_METRIC_HMMA_TENSOR_UTIL, VALUE_hmma_tensor, "HMMA Tensor Utilization"},
    {NVML_GPM_METRIC_DMMA_TENSOR_UTIL, VALUE_dmma_tensor, "DMMA Tensor Utilization"},
    {NVML_GPM_METRIC_IMMA_TENSOR_UTIL, VALUE_imma_tensor, "IMMA Tensor Utilization"},
    {NVML_GPM_METRIC_DRAM_BW_UTIL, VALUE_dram, "DRAM Bandwidth Utilization"},
    {NVML_GPM_METRIC_FP64_UTIL, VALUE_fp64, "FP64 Utilization"},
    {NVML_GPM_METRIC_FP32_UTIL, VALUE_fp32, "FP32 Utilization"},
    {NVML_GPM_METRIC_FP16_UTIL, VALUE_fp16, "FP16 Utilization"},
};

static const struct row RAW[] = {
    {NVML_GPM_METRIC_SM_CYCLES_ELAPSED, VALUE_sm_clock_mhz, NULL},
    {NVML_GPM_METRIC_SM_CYCLES_ACTIVE, VALUE_sm, NULL},
    {NVML_GPM_METRIC_MMA_CYCLES_ACTIVE, VALUE_any_tensor, NULL},
    {NVML_GPM_METRIC_DMMA_CYCLES_ACTIVE, VALUE_dmma_tensor, NULL},
    {NVML_GPM_METRIC_HMMA_CYCLES_ACTIVE, VALUE_hmma_tensor, NULL},
    {NVML_GPM_METRIC_IMMA_CYCLES_ACTIVE, VALUE_imma_tensor, NULL},
    {NVML_GPM_METRIC_DFMA_CYCLES_ACTIVE, VALUE_dfma_tensor, NULL},
    {NVML_GPM_METRIC_INTEGER_CYCLES_ACTIVE, VALUE_integer, NULL},
    {NVML_GPM_METRIC_FP64_CYCLES_ACTIVE, VALUE_fp64, NULL},
    {NVML_GPM_METRIC_FP32_CYCLES_ACTIVE, VALUE_fp32, NULL},
    {NVML_GPM_METRIC_FP16_CYCLES_ACTIVE, VALUE_fp16, NULL},
};

#define FIND(table, id) find_row(table, sizeof table / sizeof *table, id)

static const struct row *find_row(const struct row *table, size_t length, unsigned int id) {
    for (const struct row *row = table; row < table + length; row++)
        if (row->id == id) return row;
    return NULL;
}

// Links 0-17, 18-35 have their ids in two blocks, receive before transmit; false if the id is no link's.
static bool link_metric(unsigned int id, unsigned int *link, bool *receives) {
    unsigned int offset;
    if (id >= 62 && id <= 97) offset = id - 62;
    else if (id >= 212 && id <= 247) offset = id - 212 + 36;
    else return false;
    *link = offset / 2;
    *receives = offset % 2 == 0;
    return true;
}

static unsigned int links_up(const struct gpu *gpu) {
    unsigned int up = 0;
    for (unsigned int link = 0; link < gpu->nvlink_count; link++) up += gpu->links[link].up != 0;
    return up;
}

static nvmlReturn_t engine_metric(const struct window *window, unsigned int id, double *value) {
    const struct gpu *gpu = window->target->gpu;
    const struct { unsigned int first, last, count; enum value value; } engines[] = {
        {30, 37, gpu->decoder_count, VALUE_decoder_utilization},
        {40, 47, gpu->jpeg_count, VALUE_jpeg_utilization},
        {50, 51, gpu->ofa_count, VALUE_ofa_utilization},
        {166, 169, gpu->encoder_count, VALUE_encoder_utilization},
    };
    for (size_t kind = 0; kind < sizeof engines / sizeof *engines; kind++) {
        if (id < engines[kind].first || id > engines[kind].last) continue;
        if (id - engines[kind].first >= engines[kind].count) return NVML_ERROR_NOT_SUPPORTED;
        *value = percent(window, engines[kind].value);
        return NVML_SUCCESS;
    }
    return NVML_ERROR_NOT_SUPPORTED;
}

static nvmlReturn_t evaluate(const struct window *window, unsigned int id, double *value) {
    const struct gpu *gpu = window->target->gpu;
    bool cycles = gpu->gpm_mode == GPM_CYCLES, receives;
    unsigned int link;
    const struct row *simple = FIND(SIMPLE, id), *raw = FIND(RAW, id);
    if (simple) *value = percent(window, simple->value);
    else if (raw && cycles) *value = raw_cycles(window, raw->value);
    else if (id == NVML_GPM_METRIC_PCIE_TX && cycles) *value = raw_bytes(window, VALUE_pcie_tx_bytes_per_second);
    else if (id == NVML_GPM_METRIC_PCIE_RX && cycles) *value = raw_bytes(window, VALUE_pcie_rx_bytes_per_second);
    else if (id == NVML_GPM_METRIC_PCIE_TX_PER_SEC) *value = mebibytes_per_second(window, VALUE_pcie_tx_bytes_per_second);
    else if (id == NVML_GPM_METRIC_PCIE_RX_PER_SEC) *value = mebibytes_per_second(window, VALUE_pcie_rx_bytes_per_second);
    else if (id == NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC && gpu->nvlink_count)
        *value = mebibytes_per_second(window, VALUE_nvlink_rx_bytes_per_second);
    else if (id == NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC && gpu->nvlink_count)
        *value = mebibytes_per_second(window, VALUE_nvlink_tx_bytes_per_second);
    else if ((id == NVML_GPM_METRIC_C2C_TOTAL_TX_PER_SEC || id == NVML_GPM_METRIC_C2C_DATA_TX_PER_SEC) && gpu->c2c_link_count)
        *value = mebibytes_per_second(window, VALUE_c2c_tx_bytes_per_second);
    else if ((id == NVML_GPM_METRIC_C2C_TOTAL_RX_PER_SEC || id == NVML_GPM_METRIC_C2C_DATA_RX_PER_SEC) && gpu->c2c_link_count)
        *value = mebibytes_per_second(window, VALUE_c2c_rx_bytes_per_second);
    else if (link_metric(id, &link, &receives)) {
        if (link >= gpu->nvlink_count) return NVML_ERROR_NOT_SUPPORTED;
        enum value total = receives ? VALUE_nvlink_rx_bytes_per_second : VALUE_nvlink_tx_bytes_per_second;
        *value = gpu->links[link].up ? mebibytes_per_second(window, total) / links_up(gpu) : 0.0;
    } else return engine_metric(window, id, value);
    return NVML_SUCCESS;
}

static void answer(const struct window *window, nvmlGpmMetric_t *metric) {
    const struct gpu *gpu = window->target->gpu;
    const struct row *named = FIND(SIMPLE, metric->metricId);  // the others' names are NULL, as NVML allows
    metric->metricInfo.shortName = metric->metricInfo.longName = named ? (char *)named->name : NULL;
    metric->metricInfo.unit = named ? (char *)"%" : NULL;
    if (metric->metricId >= MAX_METRICS) {
        metric->nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
        return;
    }
    int32_t fault = gpu->metric_fault[metric->metricId];
    int32_t fixed = gpu->metric_profile_code[metric->metricId];
    metric->nvmlReturn = (nvmlReturn_t)(fault ? fault : fixed);
    if (metric->nvmlReturn != NVML_SUCCESS) return;
    metric->nvmlReturn = evaluate(window, metric->metricId, &metric->value);
    if (metric->nvmlReturn != NVML_SUCCESS) return;
    if (gpu->gpm_zero) metric->value = 0.0;
    if (gpu->gpm_blank) metric->value = 140737488355328.0;  // DCGM's blank, seen in the field on H100
    if (gpu->gpm_nan) metric->value = (double)NAN;
}

API(nvmlGpmMetricsGet, nvmlGpmMetricsGet_t *request) {
    GPM_CALL();
    nvmlGpmSample_t first = request ? request->sample1 : NULL, second = request ? request->sample2 : NULL;
    bool usable = fake_control && current(first) && current(second) && first->taken && second->taken &&
                  first->target.slot == second->target.slot && first->target.number == second->target.number &&
                  first->generation == second->generation;
    nvmlReturn_t entered = usable ? fake_enter_slot(FN_nvmlGpmMetricsGet, second->target.slot)
                                  : fake_enter_system(FN_nvmlGpmMetricsGet);
    if (entered != NVML_SUCCESS) return entered;
    REQUIRE_VERSION(request, NVML_GPM_METRICS_GET_VERSION);
    REQUIRE(request->numMetrics > 0 && request->numMetrics <= NVML_GPM_METRIC_MAX);
    if (!usable || first->totals.time_ns > second->totals.time_ns) return misuse();
    gpm_account(overlapping, second->target.gpu->gpm_call_ns);

    struct window window = {.target = &second->target, .first = &first->totals, .second = &second->totals};
    uint64_t elapsed_ns = second->totals.time_ns - first->totals.time_ns;
    window.seconds = (double)elapsed_ns * 1e-9;
    window.cycles = integral(&window, VALUE_sm_clock_mhz) * 1e6;
    if (elapsed_ns < second->target.gpu->gpm_minimum_interval_ns) return NVML_ERROR_NO_DATA;
    for (unsigned int index = 0; index < request->numMetrics; index++) {
        answer(&window, &request->metrics[index]);
        if (second->target.gpu->gpm_collapse) request->metrics[index].value = request->metrics[0].value;
    }
    return NVML_SUCCESS;
}

API(nvmlGpmQueryDeviceSupport, nvmlDevice_t device, nvmlGpmSupport_t *support) {
    GPM_CALL();
    ENTER(nvmlGpmQueryDeviceSupport, device, MIG_TOO);
    gpm_account(overlapping, 0);
    REQUIRE_VERSION(support, NVML_GPM_SUPPORT_VERSION);
    support->isSupportedDevice = target.gpu->gpm_mode != GPM_NONE;
    return NVML_SUCCESS;
}

API(nvmlGpmQueryIfStreamingEnabled, nvmlDevice_t device, unsigned int *state) {
    GPM_CALL();
    ENTER(nvmlGpmQueryIfStreamingEnabled, device, WHOLE_GPU_ONLY);
    gpm_account(overlapping, 0);
    REQUIRE(state != NULL);
    *state = NVML_FEATURE_DISABLED;
    return NVML_SUCCESS;
}
