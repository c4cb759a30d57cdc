// What a GPU is: names, numbers and capabilities that do not change while it works.
#include <stdio.h>
#include <stdlib.h>

#include "fake.h"

API(nvmlSystemGetDriverVersion, char *version, unsigned int length) {
    ENTER_SYSTEM(nvmlSystemGetDriverVersion);
    return fake_string(version, length, fake_control->driver_version);
}

API(nvmlSystemGetNVMLVersion, char *version, unsigned int length) {
    ENTER_SYSTEM(nvmlSystemGetNVMLVersion);
    return fake_string(version, length, fake_control->nvml_version);
}

API(nvmlSystemGetCudaDriverVersion, int *version) {
    ENTER_SYSTEM(nvmlSystemGetCudaDriverVersion);
    REQUIRE(version != NULL);
    *version = (int)fake_control->cuda_driver_version;
    return NVML_SUCCESS;
}

API(nvmlSystemGetCudaDriverVersion_v2, int *version) {
    ENTER_SYSTEM(nvmlSystemGetCudaDriverVersion_v2);
    REQUIRE(version != NULL);
    *version = (int)fake_control->cuda_driver_version;
    return NVML_SUCCESS;
}

API(nvmlSystemGetDriverBranch, nvmlSystemDriverBranchInfo_t *branch, unsigned int length) {
    ENTER_SYSTEM(nvmlSystemGetDriverBranch);
    REQUIRE_VERSION(branch, nvmlSystemDriverBranchInfo_v1);
    char text[16];
    snprintf(text, sizeof text, "r%.3s_00", fake_control->driver_version);
    return fake_string(branch->branch, length < sizeof branch->branch ? length : sizeof branch->branch, text);
}

// A generic getter of one string of the GPU.
#define TEXT(name, member)                                                     \
    API(name, nvmlDevice_t device, char *out, unsigned int length) {           \
        ENTER(name, device, WHOLE_GPU_ONLY);                                   \
        if (!target.gpu->member[0]) return NVML_ERROR_NOT_SUPPORTED;           \
        return fake_string(out, length, target.gpu->member);                   \
    }

#define NUMBER(name, type, handles, value)                                     \
    API(name, nvmlDevice_t device, type *out) {                                \
        ENTER(name, device, handles);                                          \
        REQUIRE(out != NULL);                                                  \
        *out = (type)(value);                                                  \
        return NVML_SUCCESS;                                                   \
    }

API(nvmlDeviceGetName, nvmlDevice_t device, char *name, unsigned int length) {
    ENTER(nvmlDeviceGetName, device, MIG_TOO);
    return fake_string(name, length, target.instance ? target.instance->name : target.gpu->name);
}

API(nvmlDeviceGetUUID, nvmlDevice_t device, char *uuid, unsigned int length) {
    ENTER(nvmlDeviceGetUUID, device, MIG_TOO);
    return fake_string(uuid, length, target.instance ? target.instance->uuid : target.gpu->uuid);
}

TEXT(nvmlDeviceGetSerial, serial)
TEXT(nvmlDeviceGetBoardPartNumber, board_part_number)
TEXT(nvmlDeviceGetVbiosVersion, vbios_version)
TEXT(nvmlDeviceGetInforomImageVersion, inforom_image_version)

API(nvmlDeviceGetInforomVersion, nvmlDevice_t device, nvmlInforomObject_t object, char *version, unsigned int length) {
    ENTER(nvmlDeviceGetInforomVersion, device, WHOLE_GPU_ONLY);
    switch (object) {
        case NVML_INFOROM_OEM: return fake_string(version, length, "2.1");
        case NVML_INFOROM_ECC: return fake_string(version, length, "7.16");
        default: return NVML_ERROR_NOT_SUPPORTED;
    }
}

API(nvmlDeviceGetGspFirmwareVersion, nvmlDevice_t device, char *version) {
    ENTER(nvmlDeviceGetGspFirmwareVersion, device, WHOLE_GPU_ONLY);
    return fake_string(version, NVML_GSP_FIRMWARE_VERSION_BUF_SIZE, fake_control->driver_version);
}

API(nvmlDeviceGetGspFirmwareMode, nvmlDevice_t device, unsigned int *enabled, unsigned int *default_mode) {
    ENTER(nvmlDeviceGetGspFirmwareMode, device, WHOLE_GPU_ONLY);
    REQUIRE(enabled != NULL && default_mode != NULL);
    *enabled = *default_mode = 1;
    return NVML_SUCCESS;
}

NUMBER(nvmlDeviceGetBrand, nvmlBrandType_t, WHOLE_GPU_ONLY, target.gpu->brand)
NUMBER(nvmlDeviceGetArchitecture, nvmlDeviceArchitecture_t, MIG_TOO, target.gpu->architecture)
NUMBER(nvmlDeviceGetMinorNumber, unsigned int, WHOLE_GPU_ONLY, target.gpu->minor_number)
NUMBER(nvmlDeviceGetModuleId, unsigned int, WHOLE_GPU_ONLY, target.slot + 1)
NUMBER(nvmlDeviceGetNumaNodeId, unsigned int, WHOLE_GPU_ONLY, target.gpu->numa_node)
NUMBER(nvmlDeviceGetBoardId, unsigned int, WHOLE_GPU_ONLY, target.gpu->pci_bus << 8)
NUMBER(nvmlDeviceGetMultiGpuBoard, unsigned int, WHOLE_GPU_ONLY, 0)
NUMBER(nvmlDeviceGetIrqNum, unsigned int, WHOLE_GPU_ONLY, 64 + target.slot)
NUMBER(nvmlDeviceGetMemoryBusWidth, unsigned int, WHOLE_GPU_ONLY, target.gpu->memory_bus_width_bits)
NUMBER(nvmlDeviceGetBusType, nvmlBusType_t, WHOLE_GPU_ONLY, NVML_BUS_TYPE_PCIE)
NUMBER(nvmlDeviceGetPowerSource, nvmlPowerSource_t, WHOLE_GPU_ONLY, NVML_POWER_SOURCE_AC)
NUMBER(nvmlDeviceGetVirtualizationMode, nvmlGpuVirtualizationMode_t, WHOLE_GPU_ONLY, target.gpu->virtualization_mode)
NUMBER(nvmlDeviceGetComputeMode, nvmlComputeMode_t, WHOLE_GPU_ONLY, target.gpu->compute_mode)
NUMBER(nvmlDeviceGetPersistenceMode, nvmlEnableState_t, WHOLE_GPU_ONLY, target.gpu->persistence_mode)
NUMBER(nvmlDeviceGetDisplayMode, nvmlEnableState_t, WHOLE_GPU_ONLY, NVML_FEATURE_DISABLED)
NUMBER(nvmlDeviceGetDisplayActive, nvmlEnableState_t, WHOLE_GPU_ONLY, target.gpu->display_active)
NUMBER(nvmlDeviceGetAccountingMode, nvmlEnableState_t, WHOLE_GPU_ONLY, NVML_FEATURE_DISABLED)

// Not answered while MIG is on, as on real H100s.
API(nvmlDeviceGetNumGpuCores, nvmlDevice_t device, unsigned int *cores) {
    ENTER(nvmlDeviceGetNumGpuCores, device, WHOLE_GPU_ONLY);
    REQUIRE(cores != NULL);
    if (target.gpu->mig_mode) return NVML_ERROR_NOT_SUPPORTED;
    *cores = target.gpu->num_gpu_cores;
    return NVML_SUCCESS;
}

API(nvmlDeviceGetCudaComputeCapability, nvmlDevice_t device, int *major, int *minor) {
    ENTER(nvmlDeviceGetCudaComputeCapability, device, MIG_TOO);
    REQUIRE(major != NULL && minor != NULL);
    *major = (int)target.gpu->compute_major;
    *minor = (int)target.gpu->compute_minor;
    return NVML_SUCCESS;
}

static nvmlReturn_t pci_info(enum function_number function, nvmlDevice_t device, nvmlPciInfo_t *pci) {
    struct target target;
    nvmlReturn_t entered = fake_enter_device(function, device, WHOLE_GPU_ONLY, &target);
    if (entered != NVML_SUCCESS) return entered;
    REQUIRE(pci != NULL);
    const struct gpu *gpu = target.gpu;
    memset(pci, 0, sizeof *pci);
    pci->domain = gpu->pci_domain;
    pci->bus = gpu->pci_bus;
    pci->device = gpu->pci_device;
    pci->pciDeviceId = gpu->pci_device_id;
    pci->pciSubSystemId = gpu->pci_subsystem_id;
    snprintf(pci->busId, sizeof pci->busId, "%08X:%02X:%02X.0", gpu->pci_domain, gpu->pci_bus & 0xff,
             gpu->pci_device & 0xff);
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "%04X:%02X:%02X.0", gpu->pci_domain & 0xffff,
             gpu->pci_bus & 0xff, gpu->pci_device & 0xff);
    return NVML_SUCCESS;
}

API(nvmlDeviceGetPciInfo_v3, nvmlDevice_t device, nvmlPciInfo_t *pci) {
    return pci_info(FN_nvmlDeviceGetPciInfo_v3, device, pci);
}

API(nvmlDeviceGetPciInfo_v2, nvmlDevice_t device, nvmlPciInfo_t *pci) {
    return pci_info(FN_nvmlDeviceGetPciInfo_v2, device, pci);
}

API(nvmlDeviceGetPciInfo, nvmlDevice_t device, nvmlPciInfo_t *pci) {
    return pci_info(FN_nvmlDeviceGetPciInfo, device, pci);
}

API(nvmlSystemGetProcessName, unsigned int pid, char *name, unsigned int length) {
    ENTER_SYSTEM(nvmlSystemGetProcessName);
    REQUIRE(name != NULL && length > 0);
    for (unsigned int slot = 0; slot < fake_control->gpu_count; slot++) {
        const struct gpu *gpu = &fake_control->gpus[slot];
        for (unsigned int index = 0; index < gpu->process_count; index++) {
            if (gpu->processes[index].pid != pid) continue;
            snprintf(name, length, "%s", gpu->processes[index].name);
            return NVML_SUCCESS;
        }
    }
    return NVML_ERROR_NOT_FOUND;
}

API(nvmlSystemGetConfComputeState, nvmlConfComputeSystemState_t *state) {
    ENTER_SYSTEM(nvmlSystemGetConfComputeState);
    REQUIRE(state != NULL);
    *state = (nvmlConfComputeSystemState_t){.ccFeature = fake_control->conf_compute_enabled};
    return NVML_SUCCESS;
}

API(nvmlDeviceGetConfComputeMemSizeInfo, nvmlDevice_t device, nvmlConfComputeMemSizeInfo_t *info) {
    ENTER(nvmlDeviceGetConfComputeMemSizeInfo, device, WHOLE_GPU_ONLY);
    REQUIRE(info != NULL);
    unsigned long long kib = target.gpu->memory_total_bytes / 1024;
    info->protectedMemSizeKib = fake_control->conf_compute_enabled ? kib : 0;
    info->unprotectedMemSizeKib = fake_control->conf_compute_enabled ? 0 : kib;
    return NVML_SUCCESS;
}

API(nvmlDeviceGetGpuUptime_v1, nvmlDevice_t device, nvmlGpuUptime_v1_t *uptime) {
    ENTER(nvmlDeviceGetGpuUptime_v1, device, WHOLE_GPU_ONLY);
    REQUIRE(uptime != NULL);
    uptime->uptime = (unsigned int)(fake_now_ns() / 1000000000);
    return NVML_SUCCESS;
}

// nvmlErrorString alone returns text, needs no initialisation and cannot fail.
__attribute__((visibility("default"))) const char *nvmlErrorString(nvmlReturn_t result) {
    switch (result) {
        case NVML_SUCCESS: return "Success";
        case NVML_ERROR_UNINITIALIZED: return "Uninitialized";
        case NVML_ERROR_INVALID_ARGUMENT: return "Invalid Argument";
        case NVML_ERROR_NOT_SUPPORTED: return "Not Supported";
        case NVML_ERROR_NO_PERMISSION: return "Insufficient Permissions";
        case NVML_ERROR_NOT_FOUND: return "Not Found";
        case NVML_ERROR_INSUFFICIENT_SIZE: return "Insufficient Size";
        case NVML_ERROR_DRIVER_NOT_LOADED: return "Driver Not Loaded";
        case NVML_ERROR_TIMEOUT: return "Timeout";
        case NVML_ERROR_LIBRARY_NOT_FOUND: return "NVML Shared Library Not Found";
        case NVML_ERROR_FUNCTION_NOT_FOUND: return "Function Not Found";
        case NVML_ERROR_GPU_IS_LOST: return "GPU is lost";
        case NVML_ERROR_RESET_REQUIRED: return "GPU requires reset";
        case NVML_ERROR_LIB_RM_VERSION_MISMATCH: return "Driver/library version mismatch";
        default: return "Unknown Error";
    }
}
