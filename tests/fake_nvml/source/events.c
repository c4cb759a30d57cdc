// Event sets: a waiter gets what happens after it registered, and nothing from before.
#include <pthread.h>
#include <stdlib.h>

#include "fake.h"

// Seldom: a real driver's wait sleeps until something happens, and what it wakes for is in the bill.
enum { WAIT_POLL_NS = 100 * 1000 * 1000 };

struct nvmlEventSet_st {
    pthread_mutex_t lock;
    uint64_t cursor;                // the next event to look at
    uint64_t types[MAX_GPUS];       // registered for each GPU
    uint64_t registered[MAX_GPUS];  // events from this number on count for the GPU
};

static uint64_t event_count(void) { return __atomic_load_n(&fake_control->event_count, __ATOMIC_ACQUIRE); }

API(nvmlEventSetCreate, nvmlEventSet_t *set) {
    ENTER_SYSTEM(nvmlEventSetCreate);
    REQUIRE(set != NULL);
    *set = calloc(1, sizeof **set);
    if (!*set) return NVML_ERROR_MEMORY;
    pthread_mutex_init(&(*set)->lock, NULL);
    (*set)->cursor = event_count();
    return NVML_SUCCESS;
}

API(nvmlEventSetFree, nvmlEventSet_t set) {
    ENTER_SYSTEM(nvmlEventSetFree);
    REQUIRE(set != NULL);
    pthread_mutex_destroy(&set->lock);
    free(set);
    return NVML_SUCCESS;
}

API(nvmlDeviceGetSupportedEventTypes, nvmlDevice_t device, unsigned long long *types) {
    ENTER(nvmlDeviceGetSupportedEventTypes, device, WHOLE_GPU_ONLY);
    REQUIRE(types != NULL);
    *types = target.gpu->supported_event_types;
    return NVML_SUCCESS;
}

API(nvmlDeviceRegisterEvents, nvmlDevice_t device, unsigned long long types, nvmlEventSet_t set) {
    ENTER(nvmlDeviceRegisterEvents, device, MIG_TOO);
    REQUIRE(set != NULL && !target.instance);
    if (types & ~target.gpu->supported_event_types) return NVML_ERROR_NOT_SUPPORTED;  // none is registered then
    pthread_mutex_lock(&set->lock);
    if (!set->types[target.slot]) set->registered[target.slot] = event_count();
    set->types[target.slot] |= types;
    pthread_mutex_unlock(&set->lock);
    return NVML_SUCCESS;
}

// The next event that the set waits for; false if there is none yet.
static bool next_event(nvmlEventSet_t set, nvmlEventData_t *data) {
    bool found = false;
    pthread_mutex_lock(&set->lock);
    while (!found && set->cursor < event_count()) {
        const struct event *event = &fake_control->events[set->cursor % MAX_EVENTS];
        found = event->gpu < MAX_GPUS && event->type & set->types[event->gpu] &&
                set->cursor >= set->registered[event->gpu];
        if (found)
            *data = (nvmlEventData_t){.device = fake_handle((int)event->gpu, -1),
                                      .eventType = event->type,
                                      .eventData = event->data,
                                      .gpuInstanceId = event->gpu_instance_id,
                                      .computeInstanceId = event->compute_instance_id};
        set->cursor++;
    }
    pthread_mutex_unlock(&set->lock);
    return found;
}

// A lost GPU ends the wait of every set that watches it.
static nvmlReturn_t watched_state(nvmlEventSet_t set) {
    for (int slot = 0; slot < MAX_GPUS; slot++) {
        nvmlReturn_t state = set->types[slot] ? fake_state(slot) : NVML_SUCCESS;
        if (state != NVML_SUCCESS) return state;
    }
    return NVML_SUCCESS;
}

static nvmlReturn_t wait_for_event(enum function_number function, nvmlEventSet_t set, nvmlEventData_t *data,
                                   unsigned int timeout_ms) {
    nvmlReturn_t entered = fake_enter_system(function);
    if (entered != NVML_SUCCESS) return entered;
    REQUIRE(set != NULL && data != NULL);
    uint64_t deadline_ns = fake_now_ns() + (uint64_t)timeout_ms * 1000000;
    for (;;) {
        if (next_event(set, data)) return NVML_SUCCESS;
        nvmlReturn_t state = watched_state(set);
        if (state != NVML_SUCCESS) return state;
        uint64_t now_ns = fake_now_ns();
        if (now_ns >= deadline_ns) return NVML_ERROR_TIMEOUT;
        fake_sleep_ns(deadline_ns - now_ns < WAIT_POLL_NS ? deadline_ns - now_ns : WAIT_POLL_NS);
    }
}

API(nvmlEventSetWait_v2, nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms) {
    return wait_for_event(FN_nvmlEventSetWait_v2, set, data, timeout_ms);
}

API(nvmlEventSetWait, nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms) {
    return wait_for_event(FN_nvmlEventSetWait, set, data, timeout_ms);
}
