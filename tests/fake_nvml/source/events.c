// Event sets: a waiter gets what happens after it registered, and nothing from before.
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "fake.h"

// A real driver sleeps until something happens. This one looks for it this often, or as often as
// FAKE_NVML_EVENT_POLL_MS says: a benchmark would count the looking as the exporter's.
static uint64_t wait_poll_ns(void) {
    const char *milliseconds = getenv("FAKE_NVML_EVENT_POLL_MS");
    return (milliseconds ? strtoull(milliseconds, NULL, 10) : 100) * 1000000;
}

struct nvmlEventSet_st {
    pthread_mutex_t lock;
    uint64_t cursor;                // the next event to look at
    uint64_t types[MAX_GPUS];       // registered for each GPU
    uint64_t registered[MAX_GPUS];  // events from this number on count for the GPU
    uint64_t structured[MAX_GPUS];  // 1 + the event from which on the GPU tells in the structured format
    const struct event *twin;       // told as an event bit, and still to be told in the structured format
    uint64_t group;                 // of structured records
    int xid;                        // in the context of the last structured record, -1 without
};

// A GPU whose supported_event_types has this bit has "GPU operational events".
static const uint64_t OPERATIONAL = (uint64_t)1 << 63;

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
    __atomic_add_fetch(&fake_control->event_registrations[target.slot], 1, __ATOMIC_RELEASE);
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

API(nvmlEventSetRegisterGpuOperationalEvents_v1, nvmlEventSet_t set, const nvmlGpuOperationalEventConfig_v1_t *config) {
    ENTER_SYSTEM(nvmlEventSetRegisterGpuOperationalEvents_v1);
    REQUIRE(set != NULL && config != NULL);
    for (int slot = 0; slot < MAX_GPUS; slot++) {
        const struct gpu *gpu = &fake_control->gpus[slot];
        if (strcmp(gpu->uuid, config->uuid) != 0) continue;
        if (!(gpu->supported_event_types & OPERATIONAL)) return NVML_ERROR_NOT_SUPPORTED;
        if (!set->structured[slot]) set->structured[slot] = 1 + event_count();
        __atomic_add_fetch(&fake_control->event_registrations[slot], 1, __ATOMIC_RELEASE);
        return NVML_SUCCESS;
    }
    return NVML_ERROR_INVALID_ARGUMENT;
}

static void tell_structured(nvmlEventSet_t set, const struct event *event, nvmlEventSetWait_v3_t *params) {
    params->dataType = NVML_EVENT_DATA_TYPE_GPU_OPERATIONAL_EVENT;
    params->groupCursor = ++set->group;
    params->groupSize = 1;
    strcpy(params->uuid, fake_control->gpus[event->gpu].uuid);
    set->xid = event->type & nvmlEventTypeXidCriticalError ? (int)event->data : -1;
}

// The next record in either format; an event of a GPU that is registered for both comes in both.
static bool next_record(nvmlEventSet_t set, nvmlEventSetWait_v3_t *params) {
    bool found = false;
    pthread_mutex_lock(&set->lock);
    *params = (nvmlEventSetWait_v3_t){.timeoutMs = params->timeoutMs};
    set->xid = -1;
    if (set->twin) {
        tell_structured(set, set->twin, params);
        set->twin = NULL;
        found = true;
    }
    while (!found && set->cursor < event_count()) {
        const struct event *event = &fake_control->events[set->cursor % MAX_EVENTS];
        bool known = event->gpu < MAX_GPUS;
        bool bit = known && event->type & set->types[event->gpu] && set->cursor >= set->registered[event->gpu];
        bool structured = known && set->structured[event->gpu] && set->cursor + 1 >= set->structured[event->gpu];
        if (bit) {
            params->dataType = NVML_EVENT_DATA_TYPE_NVML_EVENT;
            strcpy(params->uuid, fake_control->gpus[event->gpu].uuid);
            params->eventType = event->type;
            params->eventData = event->data;
            if (structured) set->twin = event;
        } else if (structured) {
            tell_structured(set, event, params);
        }
        found = bit || structured;
        set->cursor++;
    }
    pthread_mutex_unlock(&set->lock);
    return found;
}

// A lost GPU ends the wait of every set that watches it.
static nvmlReturn_t watched_state(nvmlEventSet_t set) {
    for (int slot = 0; slot < MAX_GPUS; slot++) {
        nvmlReturn_t state = set->types[slot] || set->structured[slot] ? fake_state(slot) : NVML_SUCCESS;
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
        uint64_t poll_ns = wait_poll_ns();
        fake_sleep_ns(deadline_ns - now_ns < poll_ns ? deadline_ns - now_ns : poll_ns);
    }
}

API(nvmlEventSetWait_v2, nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms) {
    return wait_for_event(FN_nvmlEventSetWait_v2, set, data, timeout_ms);
}

API(nvmlEventSetWait, nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms) {
    return wait_for_event(FN_nvmlEventSetWait, set, data, timeout_ms);
}

API(nvmlEventSetWait_v3, nvmlEventSet_t set, nvmlEventSetWait_v3_t *params) {
    ENTER_SYSTEM(nvmlEventSetWait_v3);
    REQUIRE(set != NULL && params != NULL);
    uint64_t deadline_ns = fake_now_ns() + (uint64_t)params->timeoutMs * 1000000;
    for (;;) {
        if (next_record(set, params)) return NVML_SUCCESS;
        nvmlReturn_t state = watched_state(set);
        if (state != NVML_SUCCESS) return state;
        uint64_t now_ns = fake_now_ns();
        if (now_ns >= deadline_ns) return NVML_ERROR_TIMEOUT;
        uint64_t poll_ns = wait_poll_ns();
        fake_sleep_ns(deadline_ns - now_ns < poll_ns ? deadline_ns - now_ns : poll_ns);
    }
}

API(nvmlEventSetGetContextCount_v1, nvmlEventSet_t set, nvmlEventSetGetContextCount_v1_t *params) {
    ENTER_SYSTEM(nvmlEventSetGetContextCount_v1);
    REQUIRE(set != NULL && params != NULL);
    params->count = set->xid < 0 ? 1 : 2;  // the first is one that NVML does not interpret
    return NVML_SUCCESS;
}

API(nvmlEventSetGetContextInfo_v1, nvmlEventSet_t set, nvmlEventSetGetContextInfo_v1_t *params) {
    ENTER_SYSTEM(nvmlEventSetGetContextInfo_v1);
    REQUIRE(set != NULL && params != NULL && params->index < (set->xid < 0 ? 1u : 2u));
    params->nvmlGpuOperationalEventContextType = params->index == 1
                                                     ? NVML_GPU_OPERATIONAL_EVENT_CONTEXT_TYPE_LEGACY_XID
                                                     : NVML_GPU_OPERATIONAL_EVENT_CONTEXT_TYPE_UNKNOWN;
    params->dataSize = sizeof(unsigned int);
    return NVML_SUCCESS;
}

API(nvmlEventSetGetGpuOperationalEventContextLegacyXid_v1, nvmlEventSet_t set,
    nvmlEventSetGetGpuOperationalEventContextLegacyXid_v1_t *params) {
    ENTER_SYSTEM(nvmlEventSetGetGpuOperationalEventContextLegacyXid_v1);
    REQUIRE(set != NULL && params != NULL && set->xid >= 0 && params->index == 1);
    params->xidCode = (unsigned int)set->xid;
    return NVML_SUCCESS;
}
