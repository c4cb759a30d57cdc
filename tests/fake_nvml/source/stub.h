// What the generated stubs need. nvml.h stays out: a stub ignores the parameters its prototype would demand.
#pragma once

#include "generated.h"

#define EXPORT __attribute__((visibility("default")))

// A function that nobody wrote by hand: counted and open to faults like any other, else NOT_SUPPORTED.
int fake_stub(int function, int takes_device, void *device);
