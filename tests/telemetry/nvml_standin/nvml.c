/*
 * Stands in for libnvidia-ml.so.1: the part of NVML's C interface that Chimera's collector calls, playing a scenario.
 *
 * The scenario is a text file named by NVML_STANDIN_SCENARIO; see read_scenario() for its lines. Its time runs from
 * the first nvmlInit, `scale` times as fast as CLOCK_MONOTONIC, for what happens and for the counters. A test that
 * calls standin_set_time() keeps the time itself.
 *
 * With -DOLD_DRIVER the library lacks what drivers before R510 lack.
 */

#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7, TIMEOUT = 10, GPU_IS_LOST = 15, UNKNOWN = 999
};

#define MAX_GPUS 16
#define MAX_KEYS 160
#define MAX_PROCESSES 16
#define MAX_INSTANCES 8
#define MAX_EVENTS 256
#define MAX_XIDS 32
#define NONE 4294967295.0

typedef struct { char key[48]; double value; } property_t;
typedef struct { unsigned pid; double bytes; double sm; unsigned instance; } process_t;

typedef struct device {
    int index;
    struct device *parent;
    unsigned instance;
    char name[96], uuid[96];
    property_t properties[MAX_KEYS];
    int property_count;
    process_t processes[MAX_PROCESSES];
    int process_count;
    struct device *instances[MAX_INSTANCES];
    long calls;
} device_t;

typedef struct { double at; int gpu; char key[48]; double value; int done; } happening_t;

static device_t gpus[MAX_GPUS];
static int gpu_count;
static property_t globals[MAX_KEYS];
static int global_count;
static happening_t happenings[MAX_EVENTS];
static int happening_count;
static char driver_version[80] = "575.57.08";
static struct { device_t *gpu; unsigned long long number; } xids[MAX_XIDS];
static int xid_first, xid_last;
static int listening;
static pid_t opened_by;
static int open_count, loaded;
static double origin, integrated;
static long all_calls;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static double speed = 1;

static double told = -1;

static double wall(void) {
    if (told >= 0) return told;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (now.tv_sec + now.tv_nsec / 1e9) * speed;
}

static property_t *find(property_t *table, int count, const char *key) {
    for (int i = 0; i < count; i++)
        if (!strcmp(table[i].key, key)) return &table[i];
    return NULL;
}

static void put(property_t *table, int *count, const char *key, double value) {
    property_t *known = find(table, *count, key);
    if (!known) {
        if (*count == MAX_KEYS) abort();
        known = &table[(*count)++];
        snprintf(known->key, sizeof known->key, "%s", key);
    }
    known->value = value;
}

static double global(const char *key, double otherwise) {
    property_t *known = find(globals, global_count, key);
    return known ? known->value : otherwise;
}

static double get(device_t *gpu, const char *key, double otherwise) {
    property_t *known = find(gpu->properties, gpu->property_count, key);
    return known ? known->value : otherwise;
}

static int has(device_t *gpu, const char *key) { return find(gpu->properties, gpu->property_count, key) != NULL; }

static void set(device_t *gpu, const char *key, double value) {
    put(gpu->properties, &gpu->property_count, key, value);
}

/*
 * Lines of a scenario; what follows `gpu N` is of that GPU until the next one. A value is a number.
 *
 *   driver 575.57.08             the driver's version
 *   scale 10                     seconds of the scenario in one second
 *   delay_ms 20                  time that each call takes
 *   code.NAME 3                  what the function NAME returns; `code.*` what every function returns
 *   gpu 0                        begins a GPU
 *   name NVIDIA ...              text to the end of the line
 *   uuid GPU-...
 *   KEY VALUE                    a property: util, mem_util, total, used, reserved, temp, ...; see the functions
 *   field.82 45                  an NVML field; `field.82.code 3` what is returned for it instead
 *   still 1                      fields of two calls bear one time where the scenario's stands
 *   rate.269 0.5                 a counter field grows by this part of the time (ns); any other: units a second
 *   process PID BYTES SM         a compute process
 *   mig SLICES MEGABYTES USED    a MIG instance
 *   at 8 KEY VALUE               at that scenario second the property of this GPU becomes VALUE; `xid` raises one
 *
 * Before the first GPU, `at` and properties are of the library: `at 3 code.* 999`.
 */
static void read_scenario(void) {
    const char *path = getenv("NVML_STANDIN_SCENARIO");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[512], key[64], rest[400];
    device_t *gpu = NULL;
    if (!file) { fprintf(stderr, "NVML_STANDIN_SCENARIO names no readable file\n"); abort(); }
    while (fgets(line, sizeof line, file)) {
        double value = 0, at;
        unsigned pid, slices;
        double a, b;
        int n;
        if (line[0] == '#' || sscanf(line, " %63s %399[^\n]", key, rest) < 2) continue;
        if (!strcmp(key, "gpu")) {
            n = atoi(rest);
            gpu = &gpus[n];
            gpu->index = n;
            if (n + 1 > gpu_count) gpu_count = n + 1;
        } else if (!strcmp(key, "driver")) {
            snprintf(driver_version, sizeof driver_version, "%s", rest);
        } else if (gpu && !strcmp(key, "name")) {
            snprintf(gpu->name, sizeof gpu->name, "%s", rest);
        } else if (gpu && !strcmp(key, "uuid")) {
            snprintf(gpu->uuid, sizeof gpu->uuid, "%s", rest);
        } else if (gpu && !strcmp(key, "process") && sscanf(rest, "%u %lf %lf", &pid, &a, &b) == 3) {
            gpu->processes[gpu->process_count++] = (process_t){pid, a, b, 0xffffffffu};
        } else if (gpu && !strcmp(key, "mig") && sscanf(rest, "%u %lf %lf", &slices, &a, &b) == 3) {
            for (n = 0; gpu->instances[n]; n++) {}
            device_t *instance = gpu->instances[n] = calloc(1, sizeof *instance);
            instance->index = gpu->index;
            instance->parent = gpu;
            instance->instance = n + 1;
            snprintf(instance->name, sizeof instance->name, "%.60s MIG %ug.%.0fgb", gpu->name, slices, a / 1024);
            snprintf(instance->uuid, sizeof instance->uuid, "MIG-%d-%d", gpu->index, n);
            set(instance, "slices", slices);
            set(instance, "total", a * 1048576);
            set(instance, "used", b * 1048576);
            set(instance, "reserved", 0);
        } else if (!strcmp(key, "at") && sscanf(rest, "%lf %63s %lf", &at, key, &value) == 3) {
            happening_t *one = &happenings[happening_count++];
            one->at = at;
            one->gpu = gpu ? gpu->index : -1;
            snprintf(one->key, sizeof one->key, "%s", key);
            one->value = value;
        } else if (sscanf(rest, "%lf", &value) == 1) {
            if (gpu) set(gpu, key, value); else put(globals, &global_count, key, value);
        }
    }
    fclose(file);
    for (int i = 0; i < gpu_count; i++)
        if (has(&gpus[i], "power") && !has(&gpus[i], "energy")) set(&gpus[i], "energy", 1e6);
}

/* Let the counters of all GPUs run until this moment. */
static void integrate(double until) {
    double span = until - integrated;
    char key[48];
    if (span <= 0) return;
    integrated = until;
    for (int i = 0; i < gpu_count; i++) {
        device_t *gpu = &gpus[i];
        int count = gpu->property_count;
        for (int p = 0; p < count; p++) {
            int field;
            if (sscanf(gpu->properties[p].key, "rate.%d", &field) != 1) continue;
            int is_time = (field >= 74 && field <= 79) || (field >= 269 && field <= 271);
            snprintf(key, sizeof key, "field.%d", field);
            set(gpu, key, get(gpu, key, 0) + gpu->properties[p].value * span * (is_time ? 1e9 : 1));
        }
        if (has(gpu, "power")) set(gpu, "energy", get(gpu, "energy", 0) + get(gpu, "power", 0) * span);
    }
}

static double scenario_time(void) { return wall() - origin; }

/* Make happen what is due, each at its own moment. */
static void advance(void) {
    double now = wall();
    for (;;) {
        happening_t *next = NULL;
        for (int i = 0; i < happening_count; i++)
            if (!happenings[i].done && origin + happenings[i].at <= now && (!next || happenings[i].at < next->at))
                next = &happenings[i];
        if (!next) break;
        next->done = 1;
        integrate(origin + next->at);
        if (next->gpu < 0) {
            put(globals, &global_count, next->key, next->value);
        } else if (!strcmp(next->key, "xid")) {
            if (listening & (1 << next->gpu) && xid_last < MAX_XIDS) {
                xids[xid_last].gpu = &gpus[next->gpu];
                xids[xid_last++].number = (unsigned long long)next->value;
            }
        } else {
            set(&gpus[next->gpu], next->key, next->value);
        }
    }
    integrate(now);
}

/* What every function does first: count, take its time, move the scenario on, and refuse where it must. */
static int enter(device_t *gpu, const char *function) {
    char key[64];
    double delay = global("delay_ms", 0);
    device_t *whole = gpu && gpu->parent ? gpu->parent : gpu;
    all_calls++;
    if (whole) whole->calls++;
    if (delay > 0) usleep((useconds_t)(delay * 1000));
    if (opened_by != getpid()) return UNINITIALIZED;
    advance();
    if (global("code.*", 0)) return (int)global("code.*", 0);
    snprintf(key, sizeof key, "code.%s", function);
    if (global(key, 0)) return (int)global(key, 0);
    if (whole && get(whole, "code.*", 0)) return (int)get(whole, "code.*", 0);
    if (gpu && get(gpu, key, 0)) return (int)get(gpu, key, 0);
    return SUCCESS;
}

#define ENTER(gpu) do { \
        pthread_mutex_lock(&lock); \
        int code_ = enter((gpu), __func__); \
        pthread_mutex_unlock(&lock); \
        if (code_) return code_; \
    } while (0)

/* A property as an answer; one that the scenario does not name is not supported. */
static int answer(device_t *gpu, const char *key, unsigned *out) {
    if (gpu->parent || !has(gpu, key)) return NOT_SUPPORTED;
    *out = (unsigned)get(gpu, key, NONE);
    return SUCCESS;
}

/* -- for tests: how many calls were made, and what time it is ---------------------------------------------------- */

long standin_calls(int gpu) { return gpu < 0 ? all_calls : gpus[gpu].calls; }

void standin_set_time(double seconds) { told = seconds; }

/* -- the library ------------------------------------------------------------------------------------------------- */

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    pthread_mutex_lock(&lock);
    all_calls++;
    if (!loaded) {
        loaded = 1;
        read_scenario();
        speed = global("scale", 1);
        origin = integrated = wall();
    }
    opened_by = getpid();
    advance();
    int code = (int)global("code.nvmlInit", 0);
    if (!code) open_count++; else opened_by = 0;
    pthread_mutex_unlock(&lock);
    return code;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    if (!open_count) return UNINITIALIZED;
    open_count--;
    opened_by = 0;
    listening = 0;
    return SUCCESS;
}

const char *nvmlErrorString(int code) {
    return code == 21 ? "No data" : code == UNKNOWN ? "Unknown Error" : "an NVML error";
}

int nvmlSystemGetDriverVersion(char *out, unsigned length) {
    ENTER(NULL);
    snprintf(out, length, "%s", driver_version);
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *out) {
    ENTER(NULL);
    *out = (unsigned)gpu_count;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t **out) {
    ENTER(NULL);
    if (index >= (unsigned)gpu_count) return INVALID_ARGUMENT;
    if (get(&gpus[index], "code.handle", 0)) return (int)get(&gpus[index], "code.handle", 0);
    *out = &gpus[index];
    return SUCCESS;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, device_t **out) {
    unsigned domain, number;
    ENTER(NULL);
    if (sscanf(bus, "%x:%x", &domain, &number) != 2) return INVALID_ARGUMENT;
    for (int i = 0; i < gpu_count; i++)
        if ((unsigned)get(&gpus[i], "bus", i + 1) == number) { *out = &gpus[i]; return SUCCESS; }
    return NOT_FOUND;
}

int nvmlDeviceGetIndex(device_t *gpu, unsigned *out) { ENTER(gpu); *out = (unsigned)gpu->index; return SUCCESS; }

int nvmlDeviceGetName(device_t *gpu, char *out, unsigned length) {
    ENTER(gpu);
    snprintf(out, length, "%s", gpu->name);
    return SUCCESS;
}

int nvmlDeviceGetUUID(device_t *gpu, char *out, unsigned length) {
    ENTER(gpu);
    snprintf(out, length, "%s", gpu->uuid);
    return SUCCESS;
}

typedef struct {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char bus_id[32];
} pci_t;

int nvmlDeviceGetPciInfo_v3(device_t *gpu, pci_t *out) {
    ENTER(gpu);
    memset(out, 0, sizeof *out);
    out->bus = (unsigned)get(gpu, "bus", gpu->index + 1);
    snprintf(out->bus_id, sizeof out->bus_id, "00000000:%02X:00.0", out->bus);
    return SUCCESS;
}

int nvmlDeviceGetArchitecture(device_t *gpu, unsigned *out) { ENTER(gpu); return answer(gpu, "arch", out); }
int nvmlDeviceGetMemoryBusWidth(device_t *gpu, unsigned *out) { ENTER(gpu); return answer(gpu, "bus_width", out); }
int nvmlDeviceGetPersistenceMode(device_t *gpu, unsigned *out) { ENTER(gpu); return answer(gpu, "persistence", out); }
int nvmlDeviceGetMaxPcieLinkGeneration(device_t *gpu, unsigned *out) { ENTER(gpu); return answer(gpu, "max_gen", out); }
int nvmlDeviceGetMaxPcieLinkWidth(device_t *gpu, unsigned *out) { ENTER(gpu); return answer(gpu, "max_width", out); }
int nvmlDeviceGetCurrPcieLinkGeneration(device_t *gpu, unsigned *out) { ENTER(gpu); return answer(gpu, "gen", out); }
int nvmlDeviceGetCurrPcieLinkWidth(device_t *gpu, unsigned *out) { ENTER(gpu); return answer(gpu, "width", out); }
int nvmlDeviceGetFanSpeed(device_t *gpu, unsigned *out) { ENTER(gpu); return answer(gpu, "fan", out); }
int nvmlDeviceGetPerformanceState(device_t *gpu, unsigned *out) { ENTER(gpu); return answer(gpu, "pstate", out); }
int nvmlDeviceGetPowerUsage(device_t *gpu, unsigned *out) { ENTER(gpu); return answer(gpu, "power", out); }
int nvmlDeviceGetEnforcedPowerLimit(device_t *gpu, unsigned *out) { ENTER(gpu); return answer(gpu, "limit", out); }

int nvmlDeviceGetPowerManagementDefaultLimit(device_t *gpu, unsigned *out) {
    ENTER(gpu);
    return answer(gpu, "default_limit", out);
}

int nvmlDeviceGetPowerManagementLimitConstraints(device_t *gpu, unsigned *low, unsigned *high) {
    ENTER(gpu);
    return answer(gpu, "min_limit", low) ? NOT_SUPPORTED : answer(gpu, "max_limit", high);
}

int nvmlDeviceGetClockInfo(device_t *gpu, unsigned kind, unsigned *out) {
    ENTER(gpu);
    return answer(gpu, kind == 2 ? "mem_clock" : "sm_clock", out);
}

int nvmlDeviceGetMaxClockInfo(device_t *gpu, unsigned kind, unsigned *out) {
    ENTER(gpu);
    return answer(gpu, kind == 2 ? "max_mem_clock" : "max_sm_clock", out);
}

/* Temperature: fixed, or on its way from one equilibrium to another, T = to - (to - from) * exp(-t / tau). */
int nvmlDeviceGetTemperature(device_t *gpu, unsigned sensor, unsigned *out) {
    (void)sensor;
    ENTER(gpu);
    if (has(gpu, "curve.tau")) {
        double from = get(gpu, "curve.from", 30), to = get(gpu, "curve.to", 80);
        double since = scenario_time() - get(gpu, "curve.start", 0);
        *out = (unsigned)lround(to - (to - from) * exp(-(since > 0 ? since : 0) / get(gpu, "curve.tau", 60)));
        return SUCCESS;
    }
    return answer(gpu, "temp", out);
}

int nvmlDeviceGetTemperatureThreshold(device_t *gpu, unsigned which, unsigned *out) {
    ENTER(gpu);
    return which == 1 ? answer(gpu, "slowdown", out) : NOT_SUPPORTED;
}

typedef struct { unsigned gpu, memory; } utilization_t;

int nvmlDeviceGetUtilizationRates(device_t *gpu, utilization_t *out) {
    ENTER(gpu);
    if (answer(gpu, "util", &out->gpu)) return NOT_SUPPORTED;
    out->memory = (unsigned)get(gpu, "mem_util", 0);
    return SUCCESS;
}

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2_t;

static unsigned long long big(double value) { return value < 0 ? ~0ull : (unsigned long long)value; }

static int memory(device_t *gpu, memory_v2_t *out) {
    if (!has(gpu, "total")) return NOT_SUPPORTED;
    out->total = big(get(gpu, "total", -1));
    out->reserved = big(get(gpu, "reserved", -1));
    out->used = big(get(gpu, "used", -1));
    out->free = big(has(gpu, "free") ? get(gpu, "free", -1)
                                     : get(gpu, "total", 0) - get(gpu, "used", 0) - get(gpu, "reserved", 0));
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(device_t *gpu, memory_t *out) {
    memory_v2_t all;
    ENTER(gpu);
    int code = memory(gpu, &all);
    if (code) return code;
    out->total = all.total;
    out->free = all.free;
    out->used = all.used + all.reserved;
    return SUCCESS;
}

typedef struct { unsigned long long reference, held; } violation_t;

int nvmlDeviceGetViolationStatus(device_t *gpu, unsigned policy, violation_t *out) {
    char key[48];
    ENTER(gpu);
    snprintf(key, sizeof key, "field.%u", 74 + policy);
    if (!get(gpu, "policies", 0) || gpu->parent) return NOT_SUPPORTED;
    out->reference = (unsigned long long)(wall() * 1e6);
    out->held = big(get(gpu, key, 0));
    return SUCCESS;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(device_t *gpu, unsigned long long *out) {
    ENTER(gpu);
    if (gpu->parent || !has(gpu, "reasons")) return NOT_SUPPORTED;
    *out = big(get(gpu, "reasons", 0));
    return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(device_t *gpu, unsigned long long *out) {
    ENTER(gpu);
    if (gpu->parent || !has(gpu, "power") || get(gpu, "no_energy", 0)) return NOT_SUPPORTED;
    *out = big(get(gpu, "energy", 0));
    return SUCCESS;
}

typedef union {
    double d; unsigned ui; unsigned long ul; unsigned long long ull; long long sll; int si; unsigned short us;
} value_t;
typedef struct {
    unsigned field, scope;
    long long timestamp, latency;
    unsigned type;
    int code;
    value_t value;
} field_t;

int nvmlDeviceGetFieldValues(device_t *gpu, int count, field_t *fields) {
    int refused = 0;
    ENTER(gpu);
    for (int i = 0; i < count; i++) {
        char key[48];
        field_t *field = &fields[i];
        unsigned id = field->field;
        /* Driver 580: after one field that it refuses, it leaves these as they were handed in. */
        if (refused && get(gpu, "cut_fields", 0) && id >= 270 && id <= 271) continue;
        field->timestamp = (long long)(wall() * 1e6);
        /* Its clock goes on from call to call also where the time that it was told stands. */
        if (told >= 0 && !get(gpu, "still", 0)) field->timestamp += all_calls;
        field->type = 3;
        snprintf(key, sizeof key, "field.%u.code", id);
        field->code = (int)get(gpu, key, 0);
        if (field->code) continue;
        snprintf(key, sizeof key, "field.%u", id);
        int known = has(gpu, key);
        double value = get(gpu, key, 0);
        if (id == 83) { known = has(gpu, "power") && !get(gpu, "no_energy", 0); value = get(gpu, "energy", 0); }
        if (id == 185 || id == 186) { known = known || has(gpu, "power"); if (!has(gpu, key)) value = get(gpu, "power", 0); }
#ifdef OLD_DRIVER
        if (id > 100) known = 0;
#endif
        if (get(gpu, "no_time_fields", 0) && ((id >= 74 && id <= 79) || id >= 269)) known = 0;
        if (gpu->parent || !known) { field->code = NOT_SUPPORTED; refused = 1; continue; }
        if (id == 82 || id == 185 || id == 186) { field->type = 1; field->value.ui = (unsigned)value; }
        else if (id >= 193 && id <= 196) { field->type = 5; field->value.si = (int)value; }
        else if (get(gpu, "narrow_pcie", 0) && (id == 197 || id == 198)) {
            field->type = 1;  /* as on Hopper: bytes in 32 bits */
            field->value.ull = 0;
            field->value.ui = (unsigned)((unsigned long long)value & 0xffffffffull);
        }
        else field->value.ull = big(value);
    }
    return SUCCESS;
}

typedef struct { unsigned pid; unsigned long long bytes; unsigned gi, ci; } process_info_t;

static int list_processes(device_t *gpu, unsigned *count, process_info_t *out) {
    device_t *whole = gpu->parent ? gpu->parent : gpu;
    unsigned room = *count;
    *count = (unsigned)whole->process_count;
    if (!*count) return SUCCESS;
    if (room < *count || !out) return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < *count; i++)
        out[i] = (process_info_t){whole->processes[i].pid, big(whole->processes[i].bytes), 0xffffffffu, 0xffffffffu};
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v2(device_t *gpu, unsigned *count, process_info_t *out) {
    ENTER(gpu);
    return list_processes(gpu, count, out);
}

typedef struct { unsigned pid; unsigned long long at; unsigned sm, mem, enc, dec; } process_sample_t;

int nvmlDeviceGetProcessUtilization(device_t *gpu, process_sample_t *out, unsigned *count, unsigned long long since) {
    unsigned active = 0;
    ENTER(gpu);
    if (gpu->parent) return NOT_SUPPORTED;
    for (int i = 0; i < gpu->process_count; i++) active += gpu->processes[i].sm >= 0;
    if (!active) return NOT_FOUND;
    if (!out) { *count = active; return INSUFFICIENT_SIZE; }
    unsigned long long now = (unsigned long long)(wall() * 1e6);
    *count = 0;
    if (now <= since) return NOT_FOUND;
    /* A mean over all that it remembers since then; `long_sm` is what it is over more than some seconds. */
    int far = now - since > 6000000 && has(gpu, "long_sm");
    for (int i = 0; i < gpu->process_count; i++)
        if (gpu->processes[i].sm >= 0)
            out[(*count)++] = (process_sample_t){
                gpu->processes[i].pid, now, (unsigned)(far ? get(gpu, "long_sm", 0) : gpu->processes[i].sm), 0, 0, 0};
    return SUCCESS;
}

int nvmlDeviceGetTotalEccErrors(device_t *gpu, unsigned kind, unsigned counter, unsigned long long *out) {
    (void)kind; (void)counter;
    ENTER(gpu);
    if (!has(gpu, "ecc")) return NOT_SUPPORTED;
    *out = big(get(gpu, "ecc", 0));
    return SUCCESS;
}

int nvmlDeviceGetRemappedRows(device_t *gpu, unsigned *corrected, unsigned *not, unsigned *pending, unsigned *failed) {
    ENTER(gpu);
    if (!has(gpu, "remapped")) return NOT_SUPPORTED;
    *corrected = (unsigned)get(gpu, "remapped", 0);
    *not = *pending = *failed = 0;
    return SUCCESS;
}

int nvmlDeviceGetMigMode(device_t *gpu, unsigned *current, unsigned *pending) {
    ENTER(gpu);
    if (gpu->parent || !has(gpu, "mig_mode")) return NOT_SUPPORTED;
    *current = *pending = (unsigned)get(gpu, "mig_mode", 0);
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(device_t *gpu, unsigned *out) {
    ENTER(gpu);
    *out = (unsigned)get(gpu, "mig_slots", MAX_INSTANCES);
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(device_t *gpu, unsigned index, device_t **out) {
    ENTER(gpu);
    /* Holes are normal: unless told otherwise, instances stand at every second place. */
    unsigned step = (unsigned)get(gpu, "mig_step", 2);
    if (index % step || index / step >= MAX_INSTANCES || !gpu->instances[index / step]) return NOT_FOUND;
    *out = gpu->instances[index / step];
    return SUCCESS;
}

typedef struct { unsigned sm, copy, decoder, encoder, jpeg, ofa, slices, compute; unsigned long long megabytes; } attributes_t;

int nvmlDeviceGetAttributes_v2(device_t *gpu, attributes_t *out) {
    ENTER(gpu);
    if (!gpu->parent) return NOT_SUPPORTED;
    memset(out, 0, sizeof *out);
    out->slices = out->compute = (unsigned)get(gpu, "slices", 1);
    out->megabytes = (unsigned long long)(get(gpu, "total", 0) / 1048576);
    return SUCCESS;
}

/* -- events ------------------------------------------------------------------------------------------------------ */

int nvmlEventSetCreate(void **out) { ENTER(NULL); *out = &listening; return SUCCESS; }
int nvmlEventSetFree(void *set) { (void)set; listening = 0; return SUCCESS; }
int nvmlDeviceGetSupportedEventTypes(device_t *gpu, unsigned long long *out) { ENTER(gpu); *out = 0x1f; return SUCCESS; }

int nvmlDeviceRegisterEvents(device_t *gpu, unsigned long long types, void *set) {
    (void)set;
    ENTER(gpu);
    if (types & ~0x1full) return NOT_SUPPORTED;
    listening |= 1 << gpu->index;
    return SUCCESS;
}

typedef struct { device_t *gpu; unsigned long long type, data; unsigned gi, ci; } event_t;

int nvmlEventSetWait_v2(void *set, event_t *out, unsigned timeout_ms) {
    (void)set;
    ENTER(NULL);
    for (double until = wall() + timeout_ms / 1e3 * speed;;) {
        pthread_mutex_lock(&lock);
        advance();
        int any = xid_first < xid_last;
        if (any) *out = (event_t){xids[xid_first].gpu, 8, xids[xid_first].number, 0xffffffffu, 0xffffffffu};
        xid_first += any;
        pthread_mutex_unlock(&lock);
        if (any) return SUCCESS;
        if (wall() >= until || told >= 0) return TIMEOUT;
        usleep(500);
    }
}

/* -- what older drivers lack ------------------------------------------------------------------------------------- */

#ifndef OLD_DRIVER

int nvmlDeviceGetMemoryInfo_v2(device_t *gpu, memory_v2_t *out) { ENTER(gpu); return memory(gpu, out); }

int nvmlDeviceGetComputeRunningProcesses_v3(device_t *gpu, unsigned *count, process_info_t *out) {
    ENTER(gpu);
    return list_processes(gpu, count, out);
}

int nvmlDeviceGetCurrentClocksEventReasons(device_t *gpu, unsigned long long *out) {
    ENTER(gpu);
    if (gpu->parent || !has(gpu, "reasons")) return NOT_SUPPORTED;
    *out = big(get(gpu, "reasons", 0));
    return SUCCESS;
}

typedef struct { unsigned version; int margin; } margin_t;

int nvmlDeviceGetMarginTemperature(device_t *gpu, margin_t *out) {
    ENTER(gpu);
    if (gpu->parent || !has(gpu, "margin")) return NOT_SUPPORTED;
    out->margin = (int)get(gpu, "margin", 0);
    return SUCCESS;
}

#endif
