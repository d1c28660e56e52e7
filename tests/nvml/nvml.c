/* A library that plays NVML, so that the real Zeus and pynvml can be driven without a GPU.
 *
 * All state lives in one memory-mapped file, named by NVML_PLAY_STATE and made by play.py; every process that loads the
 * library shares it. Energy is integrated over CLOCK_MONOTONIC from the power drawn, and becomes visible only at
 * multiples of the counter's period, as on hardware. Power drawn never exceeds what is enforced. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4,
    INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15
};
enum { CLOCK_SM = 1, LOWEST_MHZ = 345, HIGHEST_MHZ = 1980, CLOCK_STEP_MHZ = 15, MEMORY_MHZ = 3201 };
enum { IDLE = 1, SW_POWER_CAP = 4 }; /* reasons of the clock */
enum { VOLTA = 5, FIELD_ENERGY = 83, FIELD_POWER_AVERAGE = 185, FIELD_POWER_INSTANT = 186 };

#define MAGIC 0x4c564e59414c50ULL

/* Every member is 8 bytes wide or a multiple of it: play.py has the same layout as a struct format. */
struct gpu {
    double energy_uj;        /* exact, at time_ns */
    int64_t time_ns;
    int64_t published_uj;    /* what the counter shows, since published_tick */
    int64_t published_tick;
    int64_t power_mw;        /* wanted by the work */
    int64_t limit_mw, default_mw, min_mw, max_mw;
    int64_t ceiling_mw;      /* another limiter (thermal, slot); the smaller one is enforced */
    int64_t lost, mig, architecture, writes;
    int64_t locked_mhz;      /* highest SM clock that was locked; 0 when none is */
    char name[96], uuid[96];
};
struct state {
    uint64_t magic;
    int64_t gpus, period_ns, privileged;
    struct gpu gpu[];
};
struct field { uint32_t id, scope; int64_t timestamp, latency_us; uint32_t type, status; union { uint32_t ui; uint64_t ull; } value; };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct state *state;
static size_t state_size;
static int state_fd = -1;
static char state_path[4096];
static char handles[64]; /* a handle is an address in here: index and nothing else */

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t enforced_mw(const struct gpu *gpu) { return smaller(gpu->limit_mw, gpu->ceiling_mw); }
static int64_t drawn_mw(const struct gpu *gpu) { return smaller(gpu->power_mw, enforced_mw(gpu)); }

static void advance(struct gpu *gpu, int64_t period_ns) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    int64_t now_ns = ts.tv_sec * 1000000000LL + ts.tv_nsec, tick = now_ns / period_ns;
    double uj_per_ns = drawn_mw(gpu) / 1e6;
    if (tick > gpu->published_tick) {
        int64_t at_ns = tick * period_ns;
        double since_ns = at_ns > gpu->time_ns ? (double)(at_ns - gpu->time_ns) : 0;
        gpu->published_uj = (int64_t)(gpu->energy_uj + uj_per_ns * since_ns);
        gpu->published_tick = tick;
    }
    gpu->energy_uj += uj_per_ns * (now_ns - gpu->time_ns);
    gpu->time_ns = now_ns;
}

static int open_state(void) {
    const char *path = getenv("NVML_PLAY_STATE");
    if (!path) return DRIVER_NOT_LOADED;
    if (state && strcmp(path, state_path) == 0) return SUCCESS;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    struct stat info;
    if (fd < 0) return DRIVER_NOT_LOADED;
    if (fstat(fd, &info) != 0 || (size_t)info.st_size < sizeof(struct state)) { close(fd); return DRIVER_NOT_LOADED; }
    void *map = mmap(NULL, info.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) { close(fd); return DRIVER_NOT_LOADED; }
    struct state *found = map;
    if (found->magic != MAGIC || sizeof(struct state) + found->gpus * sizeof(struct gpu) > (size_t)info.st_size) {
        munmap(map, info.st_size);
        close(fd);
        return DRIVER_NOT_LOADED;
    }
    if (state) munmap(state, state_size);
    if (state_fd >= 0) close(state_fd);
    state = found;
    state_size = info.st_size;
    state_fd = fd;
    snprintf(state_path, sizeof state_path, "%s", path);
    return SUCCESS;
}

/* Threads of this process are kept apart by the mutex, other processes (play.py too) by the file lock. */
static void lock(void) { pthread_mutex_lock(&mutex); if (state_fd >= 0) flock(state_fd, LOCK_EX); }
static void unlock(void) { if (state_fd >= 0) flock(state_fd, LOCK_UN); pthread_mutex_unlock(&mutex); }

static int find(const void *handle, struct gpu **gpu) {
    if (!state) return UNINITIALIZED;
    int64_t index = (const char *)handle - handles;
    if (index < 0 || index >= state->gpus) return INVALID_ARGUMENT;
    *gpu = &state->gpu[index];
    if ((*gpu)->lost) return GPU_IS_LOST;
    advance(*gpu, state->period_ns);
    return SUCCESS;
}

/* A call on one GPU: the body runs under the lock, with `gpu` found, alive and advanced to now. */
#define ON_GPU(body) do { \
    struct gpu *gpu; \
    lock(); \
    int status = find(handle, &gpu); \
    if (status == SUCCESS) { body } \
    unlock(); \
    return status; \
} while (0)

static int copy(const char *from, char *to, unsigned size) {
    if (strlen(from) >= size) return INSUFFICIENT_SIZE;
    strcpy(to, from);
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    pthread_mutex_lock(&mutex);
    int status = open_state();
    pthread_mutex_unlock(&mutex);
    return status;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return state ? SUCCESS : UNINITIALIZED; }

const char *nvmlErrorString(int status) {
    switch (status) {
    case SUCCESS: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NO_PERMISSION: return "Insufficient Permissions";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case GPU_IS_LOST: return "GPU is lost";
    default: return "Unknown Error";
    }
}

int nvmlSystemGetDriverVersion(char *version, unsigned size) { return copy("0.0-played", version, size); }

int nvmlDeviceGetCount_v2(unsigned *count) {
    if (!state) return UNINITIALIZED;
    *count = (unsigned)state->gpus;
    return SUCCESS;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out) {
    const void *handle = index < sizeof handles ? handles + index : NULL;
    ON_GPU({ (void)gpu; *out = handles + index; });
}
int nvmlDeviceGetIndex(void *handle, unsigned *index) { ON_GPU(*index = (unsigned)(gpu - state->gpu);); }
int nvmlDeviceGetName(void *handle, char *name, unsigned size) { ON_GPU(status = copy(gpu->name, name, size);); }
int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned size) { ON_GPU(status = copy(gpu->uuid, uuid, size);); }
int nvmlDeviceGetArchitecture(void *handle, unsigned *architecture) {
    ON_GPU(*architecture = (unsigned)gpu->architecture;);
}
int nvmlDeviceGetC2cModeInfoV(void *handle, void *info) {
    (void)info;
    ON_GPU({ (void)gpu; status = NOT_SUPPORTED; });
}
int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    ON_GPU(*current = *pending = (unsigned)gpu->mig;);
}
int nvmlDeviceGetTotalEnergyConsumption(void *handle, unsigned long long *mj) {
    ON_GPU({
        if (gpu->architecture < VOLTA) status = NOT_SUPPORTED;
        else *mj = (unsigned long long)(gpu->published_uj / 1000);
    });
}
int nvmlDeviceGetPowerUsage(void *handle, unsigned *mw) { ON_GPU(*mw = (unsigned)drawn_mw(gpu);); }
int nvmlDeviceGetPowerManagementLimit(void *handle, unsigned *mw) { ON_GPU(*mw = (unsigned)gpu->limit_mw;); }
int nvmlDeviceGetPowerManagementDefaultLimit(void *handle, unsigned *mw) { ON_GPU(*mw = (unsigned)gpu->default_mw;); }
int nvmlDeviceGetEnforcedPowerLimit(void *handle, unsigned *mw) { ON_GPU(*mw = (unsigned)enforced_mw(gpu);); }
int nvmlDeviceGetPowerManagementLimitConstraints(void *handle, unsigned *min_mw, unsigned *max_mw) {
    ON_GPU({ *min_mw = (unsigned)gpu->min_mw; *max_mw = (unsigned)gpu->max_mw; });
}
int nvmlDeviceSetPowerManagementLimit(void *handle, unsigned mw) {
    ON_GPU({
        if (!state->privileged) status = NO_PERMISSION;
        else if (mw < gpu->min_mw || mw > gpu->max_mw) status = INVALID_ARGUMENT;
        else { gpu->limit_mw = mw; gpu->writes++; }
    });
}
int nvmlDeviceGetFieldValues(void *handle, int count, struct field *fields) {
    ON_GPU({
        for (int i = 0; i < count; i++) {
            struct field *field = &fields[i];
            field->timestamp = gpu->time_ns / 1000;
            field->latency_us = 0;
            field->status = SUCCESS;
            if (field->id == FIELD_POWER_INSTANT || field->id == FIELD_POWER_AVERAGE) {
                field->type = 1; /* unsigned int */
                field->value.ui = (uint32_t)drawn_mw(gpu);
            } else if (field->id == FIELD_ENERGY && gpu->architecture >= VOLTA) {
                field->type = 3; /* unsigned long long */
                field->value.ull = (uint64_t)(gpu->published_uj / 1000);
            } else field->status = NOT_SUPPORTED;
        }
    });
}

/* Clocks: the highest that is locked, or that there is; the power cap holds it down when the work wants more watts. */
static int listed(unsigned *count, unsigned *out, unsigned all, unsigned first, unsigned step) {
    unsigned room = *count;
    *count = all;
    if (!out || room < all) return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < all; i++) out[i] = first - i * step;
    return SUCCESS;
}
int nvmlDeviceGetSupportedMemoryClocks(void *handle, unsigned *count, unsigned *mhz) {
    ON_GPU({ (void)gpu; status = listed(count, mhz, 1, MEMORY_MHZ, 0); });
}
int nvmlDeviceGetSupportedGraphicsClocks(void *handle, unsigned memory_mhz, unsigned *count, unsigned *mhz) {
    ON_GPU({
        (void)gpu;
        if (memory_mhz != MEMORY_MHZ) status = INVALID_ARGUMENT;
        else status = listed(count, mhz, (HIGHEST_MHZ - LOWEST_MHZ) / CLOCK_STEP_MHZ + 1, HIGHEST_MHZ, CLOCK_STEP_MHZ);
    });
}
int nvmlDeviceSetGpuLockedClocks(void *handle, unsigned low_mhz, unsigned high_mhz) {
    ON_GPU({
        if (!state->privileged) status = NO_PERMISSION;
        else if (low_mhz > high_mhz || high_mhz < LOWEST_MHZ) status = INVALID_ARGUMENT;
        else { gpu->locked_mhz = smaller(high_mhz, HIGHEST_MHZ) / CLOCK_STEP_MHZ * CLOCK_STEP_MHZ; gpu->writes++; }
    });
}
int nvmlDeviceResetGpuLockedClocks(void *handle) {
    ON_GPU({
        if (!state->privileged) status = NO_PERMISSION;
        else { gpu->locked_mhz = 0; gpu->writes++; }
    });
}
int nvmlDeviceGetClockInfo(void *handle, unsigned type, unsigned *mhz) {
    ON_GPU({
        if (type > CLOCK_SM) status = NOT_SUPPORTED;
        else *mhz = (unsigned)(gpu->locked_mhz ? gpu->locked_mhz : HIGHEST_MHZ);
    });
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *handle, unsigned long long *reasons) {
    ON_GPU(*reasons = gpu->power_mw > enforced_mw(gpu) ? SW_POWER_CAP : gpu->power_mw == 0 ? IDLE : 0;);
}
