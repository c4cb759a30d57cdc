// The way into every function: the control block, counting, faults, driver state. Also init and shutdown.
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "fake.h"
#include "stub.h"

enum { HANG_POLL_NS = 5 * 1000 * 1000 };

struct control *fake_control;

static pthread_once_t mapped = PTHREAD_ONCE_INIT;
static pthread_mutex_t init_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned int references;       // nvmlInit minus nvmlShutdown in this process
static uint32_t initialized_with;     // the driver generation that nvmlInit met
static uint32_t epoch;                // how often this process has initialised from nothing

uint64_t fake_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

void fake_sleep_ns(uint64_t nanoseconds) {
    struct timespec duration = {(time_t)(nanoseconds / 1000000000), (long)(nanoseconds % 1000000000)};
    while (nanosleep(&duration, &duration) != 0) {
    }
}

uint32_t fake_epoch(void) { return __atomic_load_n(&epoch, __ATOMIC_ACQUIRE); }

static void map_control(void) {
    const char *path = getenv("FAKE_NVML_CONTROL");
    struct stat status;
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0 || fstat(file, &status) != 0) {
        fprintf(stderr, "fake libnvidia-ml: FAKE_NVML_CONTROL names no control file\n");
        return;
    }
    void *memory = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (memory == MAP_FAILED) return;
    struct control *control = memory;
    if (control->magic != CONTROL_MAGIC || control->layout != LAYOUT_STAMP) {
        fprintf(stderr, "fake libnvidia-ml: the control file is of another build\n");
        return;
    }
    fake_control = control;
}

static nvmlReturn_t apply_fault(struct function *function, int column) {
    struct fault *fault = &function->faults[column];
    if (__atomic_load_n(&fault->hang, __ATOMIC_ACQUIRE)) {
        __atomic_add_fetch(&function->hanging[column], 1, __ATOMIC_ACQ_REL);
        while (__atomic_load_n(&fault->hang, __ATOMIC_ACQUIRE)) fake_sleep_ns(HANG_POLL_NS);
        __atomic_sub_fetch(&function->hanging[column], 1, __ATOMIC_ACQ_REL);
    }
    if (fault->delay_ns) fake_sleep_ns(fault->delay_ns);
    if (fault->crash == CRASH_ABORT) abort();
    if (fault->crash == CRASH_SEGFAULT) raise(SIGSEGV);

    int32_t remaining = __atomic_load_n(&fault->remaining, __ATOMIC_ACQUIRE);
    while (remaining > 0) {
        if (__atomic_compare_exchange_n(&fault->remaining, &remaining, remaining - 1, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_ACQUIRE))
            return (nvmlReturn_t)fault->code;
    }
    return remaining == UNLIMITED ? (nvmlReturn_t)fault->code : NVML_SUCCESS;
}

// Counts the call and applies what the test set for this function, for all GPUs and for this one (slot -1: none).
static nvmlReturn_t begin(enum function_number number, int slot) {
    pthread_once(&mapped, map_control);
    if (!fake_control) return NVML_ERROR_LIBRARY_NOT_FOUND;
    struct function *function = &fake_control->functions[number];
    __atomic_add_fetch(&function->calls[ALL_GPUS], 1, __ATOMIC_RELAXED);
    if (slot >= 0) __atomic_add_fetch(&function->calls[slot + 1], 1, __ATOMIC_RELAXED);
    nvmlReturn_t fault = apply_fault(function, ALL_GPUS);
    if (fault == NVML_SUCCESS && slot >= 0) fault = apply_fault(function, slot + 1);
    return fault;
}

// With NVML_MPS_DEVICE_ENUMERATION=1 NVML shows MPS locality domains, and answers little else (nvml.h, 13.5).
static bool hidden_by_mps_view(enum function_number function) {
    static const enum function_number answered[] = {
        FN_nvmlSystemGetNVMLVersion,        FN_nvmlDeviceGetCount_v2,           FN_nvmlDeviceGetCount,
        FN_nvmlDeviceGetHandleByIndex_v2,   FN_nvmlDeviceGetHandleByIndex,      FN_nvmlDeviceGetIndex,
        FN_nvmlDeviceGetHandleByUUID,       FN_nvmlDeviceGetUUID,               FN_nvmlDeviceGetHandleByPciBusId_v2,
        FN_nvmlDeviceGetHandleByPciBusId,   FN_nvmlDeviceGetName,               FN_nvmlDeviceGetCudaComputeCapability,
        FN_nvmlDeviceGetPciInfo,            FN_nvmlDeviceGetPciInfo_v2,         FN_nvmlDeviceGetPciInfo_v3,
        FN_nvmlDeviceGetNumaNodeId,         FN_nvmlDeviceGetCpuAffinity,        FN_nvmlDeviceGetMemoryInfo,
        FN_nvmlDeviceGetMemoryInfo_v2,      FN_nvmlDeviceGetP2PStatus,          FN_nvmlDeviceGetAccountingMode,
    };
    const char *selected = getenv("NVML_MPS_DEVICE_ENUMERATION");
    if (!selected || strcmp(selected, "1") != 0) return false;
    for (size_t index = 0; index < sizeof answered / sizeof *answered; index++)
        if (answered[index] == function) return false;
    return true;
}

static nvmlReturn_t driver_state(void) {
    if (fake_control->driver_mismatch) return NVML_ERROR_LIB_RM_VERSION_MISMATCH;
    if (!fake_control->driver_loaded) return NVML_ERROR_DRIVER_NOT_LOADED;
    return NVML_SUCCESS;
}

static nvmlReturn_t library_state(void) {
    nvmlReturn_t driver = driver_state();
    if (driver == NVML_ERROR_LIB_RM_VERSION_MISMATCH) return driver;
    bool usable = __atomic_load_n(&references, __ATOMIC_ACQUIRE) > 0 && driver == NVML_SUCCESS &&
                  __atomic_load_n(&initialized_with, __ATOMIC_ACQUIRE) == fake_control->driver_generation;
    return usable ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
}

nvmlReturn_t fake_state(int slot) {
    nvmlReturn_t state = library_state();
    if (state != NVML_SUCCESS) return state;
    const struct gpu *gpu = &fake_control->gpus[slot];
    return gpu->lost || !gpu->is_present ? NVML_ERROR_GPU_IS_LOST : NVML_SUCCESS;
}

nvmlReturn_t fake_enter_system(enum function_number function) {
    nvmlReturn_t fault = begin(function, -1);
    if (fault != NVML_SUCCESS) return fault;
    nvmlReturn_t state = library_state();
    return state == NVML_SUCCESS && hidden_by_mps_view(function) ? NVML_ERROR_NOT_SUPPORTED : state;
}

nvmlReturn_t fake_enter_slot(enum function_number function, int slot) {
    nvmlReturn_t fault = begin(function, slot);
    if (fault != NVML_SUCCESS) return fault;
    nvmlReturn_t state = fake_state(slot);
    if (state != NVML_SUCCESS) return state;
    if (hidden_by_mps_view(function)) return NVML_ERROR_NOT_SUPPORTED;
    return (nvmlReturn_t)fake_control->functions[function].profile_code[slot + 1];
}

nvmlReturn_t fake_enter_device(enum function_number function, nvmlDevice_t device, enum handles handles,
                               struct target *target) {
    nvmlReturn_t resolved = fake_resolve(device, target);
    // Faults and counting come first even with a bad handle: a hung driver hangs for everybody.
    nvmlReturn_t entered =
        resolved == NVML_SUCCESS ? fake_enter_slot(function, target->slot) : fake_enter_system(function);
    if (entered != NVML_SUCCESS) return entered;
    if (resolved != NVML_SUCCESS) return resolved;
    if (handles == WHOLE_GPU_ONLY && target->instance) return NVML_ERROR_NOT_SUPPORTED;
    return NVML_SUCCESS;
}

int fake_stub(int function, int takes_device, void *device) {
    struct target target;
    nvmlReturn_t entered = takes_device ? fake_enter_device((enum function_number)function, device, MIG_TOO, &target)
                                        : fake_enter_system((enum function_number)function);
    return entered != NVML_SUCCESS ? (int)entered : NVML_ERROR_NOT_SUPPORTED;
}

static nvmlReturn_t initialize(enum function_number function) {
    nvmlReturn_t fault = begin(function, -1);
    if (fault != NVML_SUCCESS) return fault;
    nvmlReturn_t driver = driver_state();
    if (driver != NVML_SUCCESS) return driver;
    pthread_mutex_lock(&init_lock);
    if (references == 0 || initialized_with != fake_control->driver_generation) {
        references = 0;
        __atomic_store_n(&initialized_with, fake_control->driver_generation, __ATOMIC_RELEASE);
        __atomic_add_fetch(&epoch, 1, __ATOMIC_ACQ_REL);
        __atomic_add_fetch(&fake_control->initializations, 1, __ATOMIC_RELAXED);
    }
    __atomic_add_fetch(&references, 1, __ATOMIC_ACQ_REL);
    pthread_mutex_unlock(&init_lock);
    return NVML_SUCCESS;
}

API(nvmlInit_v2, void) { return initialize(FN_nvmlInit_v2); }

API(nvmlInit, void) { return initialize(FN_nvmlInit); }

API(nvmlInitWithFlags, unsigned int flags) {
    (void)flags;
    return initialize(FN_nvmlInitWithFlags);
}

API(nvmlShutdown, void) {
    nvmlReturn_t fault = begin(FN_nvmlShutdown, -1);
    if (fault != NVML_SUCCESS) return fault;
    pthread_mutex_lock(&init_lock);
    nvmlReturn_t result = references > 0 ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
    if (references > 0) __atomic_sub_fetch(&references, 1, __ATOMIC_ACQ_REL);
    pthread_mutex_unlock(&init_lock);
    return result;
}

nvmlReturn_t fake_string(char *out, unsigned int length, const char *text) {
    REQUIRE(out != NULL);
    size_t needed = strlen(text) + 1;
    if (length < needed) return NVML_ERROR_INSUFFICIENT_SIZE;
    memcpy(out, text, needed);
    return NVML_SUCCESS;
}
