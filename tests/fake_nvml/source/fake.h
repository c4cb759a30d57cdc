// Shared by all parts of the fake driver library.
//
// Every NVML function starts with one of the ENTER macros: it counts the call, applies the faults that the test
// asked for, checks that NVML is initialised and the driver there, and turns the handle into a GPU.
#pragma once

#include <nvml.h>
#include <stdbool.h>
#include <string.h>

#include "generated.h"

#define API(name, ...) __attribute__((visibility("default"))) nvmlReturn_t name(__VA_ARGS__)

// What a device handle means: a GPU, and perhaps one of its MIG instances.
struct target {
    int slot;
    struct gpu *gpu;
    int number;                 // of the MIG instance, -1 for the whole GPU
    struct instance *instance;  // NULL for the whole GPU
};

// The whole state of a schedule at one moment.
struct totals {
    uint64_t time_ns;
    double values[VALUE_COUNT];
    double integrals[VALUE_COUNT];
    double reason_seconds[REASON_COUNT];
};

enum handles { WHOLE_GPU_ONLY, MIG_TOO };

extern struct control *fake_control;

uint64_t fake_now_ns(void);
void fake_sleep_ns(uint64_t nanoseconds);

// core.c: the common way in.
nvmlReturn_t fake_enter_system(enum function_number function);
nvmlReturn_t fake_enter_slot(enum function_number function, int slot);
nvmlReturn_t fake_enter_device(enum function_number function, nvmlDevice_t device, enum handles handles, struct target *target);
nvmlReturn_t fake_state(int slot);  // what any call on this GPU would return now, faults aside

// handles.c
nvmlDevice_t fake_handle(int slot, int instance);
nvmlReturn_t fake_resolve(nvmlDevice_t device, struct target *target);
uint32_t fake_epoch(void);

// schedule.c: consistent with what the test writes at the same time.
void fake_totals(const struct target *target, struct totals *totals);
void fake_totals_at(const struct target *target, uint64_t time_ns, struct totals *totals);
double fake_value(const struct target *target, enum value value);

// fields.c
void fake_field(const struct target *target, nvmlFieldValue_t *field);
double fake_power_watts(const struct target *target);  // averaged as the profile says
uint64_t fake_energy_mj(const struct target *target, const struct totals *totals);
uint64_t fake_total_energy_mj(const struct target *target, const struct totals *totals);  // of the call without a scope

nvmlReturn_t fake_string(char *out, unsigned int length, const char *text);

#define ENTER_SYSTEM(name)                                      \
    do {                                                        \
        nvmlReturn_t entered = fake_enter_system(FN_##name);    \
        if (entered != NVML_SUCCESS) return entered;            \
    } while (0)

#define ENTER(name, device, handles)                                                       \
    struct target target;                                                                  \
    do {                                                                                   \
        nvmlReturn_t entered = fake_enter_device(FN_##name, device, handles, &target);     \
        if (entered != NVML_SUCCESS) return entered;                                       \
    } while (0)

#define REQUIRE(condition)                                     \
    do {                                                       \
        if (!(condition)) return NVML_ERROR_INVALID_ARGUMENT;  \
    } while (0)

#define REQUIRE_VERSION(pointer, expected)                                                \
    do {                                                                                  \
        REQUIRE((pointer) != NULL);                                                       \
        if ((pointer)->version != (expected)) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH; \
    } while (0)
