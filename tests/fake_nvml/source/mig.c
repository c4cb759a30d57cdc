// MIG: GPU instances, each with one compute instance that takes all of it.
#include <stdio.h>

#include "fake.h"

enum { INSTANCE_TAG = 0x5B };  // top byte of a GPU instance handle; the rest is as in a device handle

API(nvmlDeviceGetMigMode, nvmlDevice_t device, unsigned int *current, unsigned int *pending) {
    ENTER(nvmlDeviceGetMigMode, device, WHOLE_GPU_ONLY);
    REQUIRE(current != NULL && pending != NULL);
    if (!target.gpu->mig_supported) return NVML_ERROR_NOT_SUPPORTED;
    *current = target.gpu->mig_mode;
    *pending = target.gpu->mig_mode_pending;
    return NVML_SUCCESS;
}

API(nvmlDeviceGetMaxMigDeviceCount, nvmlDevice_t device, unsigned int *count) {
    ENTER(nvmlDeviceGetMaxMigDeviceCount, device, WHOLE_GPU_ONLY);
    REQUIRE(count != NULL);
    *count = target.gpu->mig_supported ? MAX_INSTANCES : 0;
    return NVML_SUCCESS;
}

API(nvmlDeviceGetMigDeviceHandleByIndex, nvmlDevice_t device, unsigned int index, nvmlDevice_t *mig) {
    ENTER(nvmlDeviceGetMigDeviceHandleByIndex, device, WHOLE_GPU_ONLY);
    REQUIRE(mig != NULL && index < MAX_INSTANCES);
    if (!target.gpu->mig_supported) return NVML_ERROR_NOT_SUPPORTED;
    for (int number = 0; number < MAX_INSTANCES; number++) {
        if (!target.gpu->mig_mode || !target.gpu->instances[number].in_use) continue;
        if (index-- > 0) continue;
        *mig = fake_handle(target.slot, number);
        return NVML_SUCCESS;
    }
    return NVML_ERROR_NOT_FOUND;
}

API(nvmlDeviceIsMigDeviceHandle, nvmlDevice_t device, unsigned int *is_mig) {
    ENTER(nvmlDeviceIsMigDeviceHandle, device, MIG_TOO);
    REQUIRE(is_mig != NULL);
    *is_mig = target.instance != NULL;
    return NVML_SUCCESS;
}

API(nvmlDeviceGetDeviceHandleFromMigDeviceHandle, nvmlDevice_t mig, nvmlDevice_t *device) {
    ENTER(nvmlDeviceGetDeviceHandleFromMigDeviceHandle, mig, MIG_TOO);
    REQUIRE(device != NULL && target.instance);
    *device = fake_handle(target.slot, -1);
    return NVML_SUCCESS;
}

API(nvmlDeviceGetGpuInstanceId, nvmlDevice_t device, unsigned int *id) {
    ENTER(nvmlDeviceGetGpuInstanceId, device, MIG_TOO);
    REQUIRE(id != NULL);
    if (!target.instance) return NVML_ERROR_NOT_SUPPORTED;
    *id = target.instance->gpu_instance_id;
    return NVML_SUCCESS;
}

API(nvmlDeviceGetComputeInstanceId, nvmlDevice_t device, unsigned int *id) {
    ENTER(nvmlDeviceGetComputeInstanceId, device, MIG_TOO);
    REQUIRE(id != NULL);
    if (!target.instance) return NVML_ERROR_NOT_SUPPORTED;
    *id = target.instance->compute_instance_id;
    return NVML_SUCCESS;
}

static nvmlReturn_t attributes_of(enum function_number function, nvmlDevice_t device, nvmlDeviceAttributes_t *attributes) {
    struct target target;
    nvmlReturn_t entered = fake_enter_device(function, device, MIG_TOO, &target);
    if (entered != NVML_SUCCESS) return entered;
    REQUIRE(attributes != NULL);
    const struct instance *instance = target.instance;
    if (!instance) return NVML_ERROR_NOT_SUPPORTED;
    *attributes = (nvmlDeviceAttributes_t){
        .multiprocessorCount = instance->multiprocessor_count,
        .sharedCopyEngineCount = instance->copy_engine_count,
        .sharedDecoderCount = instance->decoder_count,
        .gpuInstanceSliceCount = instance->slice_count,
        .computeInstanceSliceCount = instance->slice_count,
        .memorySizeMB = instance->memory_mib,
    };
    return NVML_SUCCESS;
}

API(nvmlDeviceGetAttributes_v2, nvmlDevice_t device, nvmlDeviceAttributes_t *attributes) {
    return attributes_of(FN_nvmlDeviceGetAttributes_v2, device, attributes);
}

API(nvmlDeviceGetAttributes, nvmlDevice_t device, nvmlDeviceAttributes_t *attributes) {
    return attributes_of(FN_nvmlDeviceGetAttributes, device, attributes);
}

static nvmlGpuInstance_t instance_handle(int slot, int number) {
    uint64_t bits = (uint64_t)(uintptr_t)fake_handle(slot, number);
    return (nvmlGpuInstance_t)(uintptr_t)((bits & UINT64_C(0xffffffffffff)) | (uint64_t)INSTANCE_TAG << 48);
}

API(nvmlDeviceGetGpuInstanceById, nvmlDevice_t device, unsigned int id, nvmlGpuInstance_t *handle) {
    ENTER(nvmlDeviceGetGpuInstanceById, device, WHOLE_GPU_ONLY);
    REQUIRE(handle != NULL);
    if (!target.gpu->mig_mode) return NVML_ERROR_NOT_SUPPORTED;
    for (int number = 0; number < MAX_INSTANCES; number++) {
        if (!target.gpu->instances[number].in_use || target.gpu->instances[number].gpu_instance_id != id) continue;
        *handle = instance_handle(target.slot, number);
        return NVML_SUCCESS;
    }
    return NVML_ERROR_NOT_FOUND;
}

API(nvmlDeviceGetGpuInstances, nvmlDevice_t device, unsigned int profile_id, nvmlGpuInstance_t *handles,
    unsigned int *count) {
    ENTER(nvmlDeviceGetGpuInstances, device, WHOLE_GPU_ONLY);
    REQUIRE(handles != NULL && count != NULL);
    if (!target.gpu->mig_mode) return NVML_ERROR_NOT_SUPPORTED;
    *count = 0;
    for (int number = 0; number < MAX_INSTANCES; number++)
        if (target.gpu->instances[number].in_use && target.gpu->instances[number].profile_id == profile_id)
            handles[(*count)++] = instance_handle(target.slot, number);
    return NVML_SUCCESS;
}

API(nvmlGpuInstanceGetInfo, nvmlGpuInstance_t handle, nvmlGpuInstanceInfo_t *info) {
    ENTER_SYSTEM(nvmlGpuInstanceGetInfo);
    REQUIRE(info != NULL);
    uint64_t bits = (uint64_t)(uintptr_t)handle;
    REQUIRE(bits >> 48 == INSTANCE_TAG);
    struct target target;  // it is a device handle under another tag
    nvmlReturn_t resolved = fake_resolve(
        (nvmlDevice_t)(uintptr_t)((bits & UINT64_C(0xffffffffffff)) | UINT64_C(0x5A) << 48), &target);
    if (resolved != NVML_SUCCESS) return resolved;
    REQUIRE(target.instance);
    *info = (nvmlGpuInstanceInfo_t){
        .device = fake_handle(target.slot, -1),
        .id = target.instance->gpu_instance_id,
        .profileId = target.instance->profile_id,
        .placement = {target.instance->placement_start, target.instance->placement_size},
    };
    return NVML_SUCCESS;
}

// Profiles are known by what exists: the first instance with this slice profile describes it.
static const struct instance *profile_of(const struct gpu *gpu, unsigned int profile) {
    static const unsigned int slices[] = {1, 2, 3, 4, 7, 8, 6, 1, 2, 1};
    if (profile >= sizeof slices / sizeof *slices) return NULL;
    for (int number = 0; number < MAX_INSTANCES; number++)
        if (gpu->instances[number].in_use && gpu->instances[number].slice_count == slices[profile])
            return &gpu->instances[number];
    return NULL;
}

API(nvmlDeviceGetGpuInstanceProfileInfo, nvmlDevice_t device, unsigned int profile,
    nvmlGpuInstanceProfileInfo_t *info) {
    ENTER(nvmlDeviceGetGpuInstanceProfileInfo, device, WHOLE_GPU_ONLY);
    REQUIRE(info != NULL);
    const struct instance *instance = target.gpu->mig_mode ? profile_of(target.gpu, profile) : NULL;
    if (!instance) return NVML_ERROR_NOT_SUPPORTED;
    *info = (nvmlGpuInstanceProfileInfo_t){
        .id = instance->profile_id,
        .sliceCount = instance->slice_count,
        .instanceCount = MAX_INSTANCES / instance->slice_count,
        .multiprocessorCount = instance->multiprocessor_count,
        .copyEngineCount = instance->copy_engine_count,
        .decoderCount = instance->decoder_count,
        .memorySizeMB = instance->memory_mib,
    };
    return NVML_SUCCESS;
}

API(nvmlDeviceGetGpuInstanceProfileInfoV, nvmlDevice_t device, unsigned int profile,
    nvmlGpuInstanceProfileInfo_v2_t *info) {
    ENTER(nvmlDeviceGetGpuInstanceProfileInfoV, device, WHOLE_GPU_ONLY);
    REQUIRE_VERSION(info, nvmlGpuInstanceProfileInfo_v2);
    const struct instance *instance = target.gpu->mig_mode ? profile_of(target.gpu, profile) : NULL;
    if (!instance) return NVML_ERROR_NOT_SUPPORTED;
    *info = (nvmlGpuInstanceProfileInfo_v2_t){
        .version = nvmlGpuInstanceProfileInfo_v2,
        .id = instance->profile_id,
        .sliceCount = instance->slice_count,
        .instanceCount = MAX_INSTANCES / instance->slice_count,
        .multiprocessorCount = instance->multiprocessor_count,
        .copyEngineCount = instance->copy_engine_count,
        .decoderCount = instance->decoder_count,
        .memorySizeMB = instance->memory_mib,
    };
    snprintf(info->name, sizeof info->name, "MIG %ug.%llugb", instance->slice_count,
             (unsigned long long)(instance->memory_mib + 1023) / 1024);
    return NVML_SUCCESS;
}
