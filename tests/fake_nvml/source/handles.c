// Device handles. A handle carries the initialisation it belongs to, so that one kept across nvmlShutdown or a
// driver reload is refused (and counted) instead of working by luck.
#include <stdio.h>

#include "fake.h"

enum { TAG = 0x5A };  // top byte of every handle

// From low to high: instance + 1 (8 bits), slot (8), instance generation (16), epoch (16), tag (8).
nvmlDevice_t fake_handle(int slot, int instance) {
    const struct gpu *gpu = &fake_control->gpus[slot];
    uint64_t generation = (instance < 0 ? gpu->handle_generation : gpu->instances[instance].generation) & 0xffff;
    uint64_t bits = (uint64_t)TAG << 48 | (uint64_t)(fake_epoch() & 0xffff) << 32 | generation << 16 |
                    (uint64_t)slot << 8 | (uint64_t)(instance + 1);
    return (nvmlDevice_t)(uintptr_t)bits;
}

nvmlReturn_t fake_resolve(nvmlDevice_t device, struct target *target) {
    uint64_t bits = (uint64_t)(uintptr_t)device;
    *target = (struct target){.slot = 0, .gpu = NULL, .number = -1, .instance = NULL};
    if (!fake_control || bits >> 48 != TAG) return NVML_ERROR_INVALID_ARGUMENT;
    target->slot = (int)(bits >> 8 & 0xff);
    target->number = (int)(bits & 0xff) - 1;
    if (target->slot >= (int)fake_control->gpu_count || target->number >= MAX_INSTANCES)
        return NVML_ERROR_INVALID_ARGUMENT;
    if ((bits >> 32 & 0xffff) != (fake_epoch() & 0xffff)) {
        __atomic_add_fetch(&fake_control->stale_handles, 1, __ATOMIC_RELAXED);
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    target->gpu = &fake_control->gpus[target->slot];
    if (target->number < 0 && (bits >> 16 & 0xffff) != (target->gpu->handle_generation & 0xffff))
        return NVML_ERROR_INVALID_ARGUMENT;
    if (target->number >= 0) {
        target->instance = &target->gpu->instances[target->number];
        if (!target->instance->in_use || (bits >> 16 & 0xffff) != (target->instance->generation & 0xffff))
            return NVML_ERROR_NOT_FOUND;
    }
    return NVML_SUCCESS;
}

static int slot_of_index(unsigned int index) {
    return index < fake_control->visible_count ? (int)fake_control->visible[index] : -1;
}

static nvmlReturn_t count_devices(enum function_number function, unsigned int *count) {
    nvmlReturn_t entered = fake_enter_system(function);
    if (entered != NVML_SUCCESS) return entered;
    REQUIRE(count != NULL);
    *count = fake_control->visible_count;
    return NVML_SUCCESS;
}

API(nvmlDeviceGetCount_v2, unsigned int *count) { return count_devices(FN_nvmlDeviceGetCount_v2, count); }

API(nvmlDeviceGetCount, unsigned int *count) { return count_devices(FN_nvmlDeviceGetCount, count); }

static nvmlReturn_t by_index(enum function_number function, unsigned int index, nvmlDevice_t *device) {
    int slot = fake_control ? slot_of_index(index) : -1;
    nvmlReturn_t entered = slot < 0 ? fake_enter_system(function) : fake_enter_slot(function, slot);
    if (entered != NVML_SUCCESS) return entered;
    REQUIRE(device != NULL && slot >= 0);
    *device = fake_handle(slot, -1);
    return NVML_SUCCESS;
}

API(nvmlDeviceGetHandleByIndex_v2, unsigned int index, nvmlDevice_t *device) {
    return by_index(FN_nvmlDeviceGetHandleByIndex_v2, index, device);
}

API(nvmlDeviceGetHandleByIndex, unsigned int index, nvmlDevice_t *device) {
    return by_index(FN_nvmlDeviceGetHandleByIndex, index, device);
}

// The GPU or MIG instance with this text as its UUID (or serial, or bus id); false if there is none.
static bool find_uuid(const char *uuid, int *slot, int *instance) {
    for (unsigned int index = 0; index < fake_control->visible_count; index++) {
        *slot = (int)fake_control->visible[index];
        *instance = -1;
        struct gpu *gpu = &fake_control->gpus[*slot];
        if (strcmp(gpu->uuid, uuid) == 0) return true;
        for (*instance = 0; *instance < MAX_INSTANCES; ++*instance)
            if (gpu->instances[*instance].in_use && strcmp(gpu->instances[*instance].uuid, uuid) == 0) return true;
    }
    return false;
}

API(nvmlDeviceGetHandleByUUID, const char *uuid, nvmlDevice_t *device) {
    ENTER_SYSTEM(nvmlDeviceGetHandleByUUID);
    REQUIRE(uuid != NULL && device != NULL);
    int slot, instance;
    if (!find_uuid(uuid, &slot, &instance)) return NVML_ERROR_NOT_FOUND;
    nvmlReturn_t state = fake_state(slot);
    if (state == NVML_SUCCESS) *device = fake_handle(slot, instance);
    return state;
}

API(nvmlDeviceGetHandleBySerial, const char *serial, nvmlDevice_t *device) {
    ENTER_SYSTEM(nvmlDeviceGetHandleBySerial);
    REQUIRE(serial != NULL && device != NULL);
    for (unsigned int index = 0; index < fake_control->visible_count; index++) {
        int slot = slot_of_index(index);
        if (strcmp(fake_control->gpus[slot].serial, serial) == 0) {
            *device = fake_handle(slot, -1);
            return fake_state(slot);
        }
    }
    return NVML_ERROR_NOT_FOUND;
}

static nvmlReturn_t by_bus_id(enum function_number function, const char *bus_id, nvmlDevice_t *device) {
    nvmlReturn_t entered = fake_enter_system(function);
    if (entered != NVML_SUCCESS) return entered;
    REQUIRE(bus_id != NULL && device != NULL);
    unsigned int domain = 0, bus = 0, number = 0;
    if (sscanf(bus_id, "%x:%x:%x", &domain, &bus, &number) != 3) {
        domain = 0;
        REQUIRE(sscanf(bus_id, "%x:%x", &bus, &number) == 2);
    }
    for (unsigned int index = 0; index < fake_control->visible_count; index++) {
        int slot = slot_of_index(index);
        const struct gpu *gpu = &fake_control->gpus[slot];
        if (gpu->pci_domain == domain && gpu->pci_bus == bus && gpu->pci_device == number) {
            *device = fake_handle(slot, -1);
            return fake_state(slot);
        }
    }
    return NVML_ERROR_NOT_FOUND;
}

API(nvmlDeviceGetHandleByPciBusId_v2, const char *bus_id, nvmlDevice_t *device) {
    return by_bus_id(FN_nvmlDeviceGetHandleByPciBusId_v2, bus_id, device);
}

API(nvmlDeviceGetHandleByPciBusId, const char *bus_id, nvmlDevice_t *device) {
    return by_bus_id(FN_nvmlDeviceGetHandleByPciBusId, bus_id, device);
}

API(nvmlDeviceGetIndex, nvmlDevice_t device, unsigned int *index) {
    ENTER(nvmlDeviceGetIndex, device, MIG_TOO);
    REQUIRE(index != NULL);
    if (target.instance) {  // a MIG device's index counts the instances of its own GPU
        *index = 0;
        for (int number = 0; number < target.number; number++) *index += target.gpu->instances[number].in_use != 0;
        return NVML_SUCCESS;
    }
    for (*index = 0; *index < fake_control->visible_count; ++*index)
        if ((int)fake_control->visible[*index] == target.slot) return NVML_SUCCESS;
    return NVML_ERROR_GPU_IS_LOST;
}
