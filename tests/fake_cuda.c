/* tests/fake_cuda.c - see tests/fake_cuda.h. */
#include "tests/fake_cuda.h"

#include "tests/cuda_shim_run.h"
#include "tests/fake_cuda/cuda_runtime_api.h"
#include "tests/t.h"

#include <pthread.h>

enum { MAX_BLOCKS = 4096 };

fake_cuda_faults fake_cuda = { .n_cards = 1, .mem_bytes = (size_t)4 << 30 };
static size_t used_bytes;
static int launches;
static cudaError_t last;        /* of cudaGetLastError */
static cudaError_t broken;      /* every call's, once a launch failed */
static struct { char *p; size_t bytes; int device; } blocks[MAX_BLOCKS];   /* driver thread only */
static fake_cuda_left left;

struct CUevent_st {
    pthread_mutex_t lock;
    pthread_cond_t turned;
    unsigned long recorded, done;
};

typedef enum op_kind { COPY, SET, LAUNCH, RECORD, WAIT, END } op_kind;
typedef struct op {
    struct op *next;
    op_kind kind;
    void *to;
    const void *from;
    size_t bytes;
    struct CUevent_st *event;
    unsigned long serial;
    unsigned grid[3], block[3];
    void (*call)(void *);
    _Alignas(16) char arg[];
} op;

struct CUstream_st {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t turned;
    op *first, **end;
    unsigned long submitted, done;
};

static cudaError_t result(cudaError_t err)
{
    if (fake_cuda.no_driver) err = cudaErrorInsufficientDriver;
    else if (broken) err = broken;
    if (err) last = err;
    return err;
}

/* ---- streams and events ---- */

static void event_done(struct CUevent_st *e, unsigned long serial)
{
    pthread_mutex_lock(&e->lock);
    e->done = serial;
    pthread_cond_broadcast(&e->turned);
    pthread_mutex_unlock(&e->lock);
}

static void event_wait(struct CUevent_st *e, unsigned long serial)
{
    pthread_mutex_lock(&e->lock);
    while (e->done < serial) pthread_cond_wait(&e->turned, &e->lock);
    pthread_mutex_unlock(&e->lock);
}

static void run_op(op *o)
{
    switch (o->kind) {
    case COPY: memcpy(o->to, o->from, o->bytes); break;
    case SET: memset(o->to, (int)o->serial, o->bytes); break;
    case LAUNCH: shim_run(o->grid, o->block, o->call, o->arg); break;
    case RECORD: event_done(o->event, o->serial); break;
    case WAIT: event_wait(o->event, o->serial); break;
    case END: break;
    }
}

static void *run_stream(void *arg)
{
    struct CUstream_st *s = arg;
    for (bool going = true; going; ) {
        pthread_mutex_lock(&s->lock);
        while (!s->first) pthread_cond_wait(&s->turned, &s->lock);
        op *o = s->first;
        s->first = o->next;
        if (!s->first) s->end = &s->first;
        pthread_mutex_unlock(&s->lock);
        going = o->kind != END;
        run_op(o);
        free(o);
        pthread_mutex_lock(&s->lock);
        s->done++;
        pthread_cond_broadcast(&s->turned);
        pthread_mutex_unlock(&s->lock);
    }
    shim_end();
    return NULL;
}

static unsigned long submit(struct CUstream_st *s, const op *from, const void *arg, size_t bytes)
{
    op *o = malloc(sizeof *o + bytes);
    T_NEED(o, "memory for a launch");
    *o = *from;
    if (bytes) memcpy(o->arg, arg, bytes);
    o->next = NULL;
    pthread_mutex_lock(&s->lock);
    *s->end = o;
    s->end = &o->next;
    unsigned long n = ++s->submitted;
    pthread_cond_broadcast(&s->turned);
    pthread_mutex_unlock(&s->lock);
    return n;
}

static void finish(struct CUstream_st *s, unsigned long n)
{
    pthread_mutex_lock(&s->lock);
    while (s->done < n) pthread_cond_wait(&s->turned, &s->lock);
    pthread_mutex_unlock(&s->lock);
}

static int on_launch(void *stream, const unsigned grid[3], const unsigned block[3],
                     void (*call)(void *), const void *arg, size_t bytes)
{
    if (fake_cuda.fail_launch && ++launches >= fake_cuda.fail_launch)
        broken = cudaErrorLaunchFailure;
    if (result(cudaSuccess)) return (int)last;
    op o = { .kind = LAUNCH, .call = call };
    memcpy(o.grid, grid, sizeof o.grid);
    memcpy(o.block, block, sizeof o.block);
    submit(stream, &o, arg, bytes);
    return 0;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *ret, unsigned flags)
{
    T_NEED(flags == cudaStreamNonBlocking, "streams that do not wait for the default one");
    if (result(cudaSuccess)) return last;
    struct CUstream_st *s = calloc(1, sizeof *s);
    T_NEED(s, "memory");
    s->end = &s->first;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->turned, NULL);
    T_NEED(!pthread_create(&s->thread, NULL, run_stream, s), "a thread");
    shim_on_launch = on_launch;
    left.streams++;
    *ret = s;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    finish(s, s->submitted);
    return result(cudaSuccess);
}

cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    op o = { .kind = END };
    submit(s, &o, NULL, 0);
    pthread_join(s->thread, NULL);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->turned);
    free(s);
    left.streams--;
    return result(cudaSuccess);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *ret, unsigned flags)
{
    T_NEED(flags == cudaEventDisableTiming, "events without timing");
    if (result(cudaSuccess)) return last;
    struct CUevent_st *e = calloc(1, sizeof *e);
    T_NEED(e, "memory");
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->turned, NULL);
    left.events++;
    *ret = e;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    if (result(cudaSuccess)) return last;
    op o = { .kind = RECORD, .event = e, .serial = ++e->recorded };
    submit(s, &o, NULL, 0);
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags)
{
    op o = { .kind = WAIT, .event = e, .serial = e->recorded };
    (void)flags;
    if (result(cudaSuccess)) return last;
    submit(s, &o, NULL, 0);
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    event_wait(e, e->recorded);
    return result(cudaSuccess);
}

cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    pthread_mutex_destroy(&e->lock);
    pthread_cond_destroy(&e->turned);
    free(e);
    left.events--;
    return result(cudaSuccess);
}

/* ---- memory ---- */

static int find(const void *p, int device)
{
    for (int i = 0; i < MAX_BLOCKS; i++) {
        const char *b = blocks[i].p;
        if (b && blocks[i].device == device && (const char *)p >= b
            && (const char *)p < b + blocks[i].bytes)
            return i;
    }
    return -1;
}

static void keep(void *p, size_t bytes, int device)
{
    for (int i = 0; i < MAX_BLOCKS; i++)
        if (!blocks[i].p) {
            blocks[i].p = p;
            blocks[i].bytes = bytes;
            blocks[i].device = device;
            return;
        }
    T_NEED(0, "more than %d pieces of memory", MAX_BLOCKS);
}

cudaError_t cudaMalloc(void **ret, size_t bytes)
{
    if (result(cudaSuccess)) return last;
    if (!bytes || bytes > fake_cuda.mem_bytes - used_bytes)
        return result(cudaErrorMemoryAllocation);
    *ret = t_guarded((bytes + 255) / 256 * 256);
    memset(*ret, 0xa5, bytes);
    keep(*ret, bytes, 1);
    used_bytes += bytes;
    left.allocs++;
    left.bytes += bytes;
    return cudaSuccess;
}

cudaError_t cudaFree(void *p)
{
    int i = find(p, 1);
    T_NEED(i >= 0 && blocks[i].p == p, "cudaFree of what is not there");
    size_t bytes = blocks[i].bytes;
    t_guarded_free(p, (bytes + 255) / 256 * 256);
    blocks[i].p = NULL;
    used_bytes -= bytes;
    left.allocs--;
    left.bytes -= bytes;
    return result(cudaSuccess);
}

cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned flags)
{
    (void)flags;
    if (result(cudaSuccess)) return last;
    if (fake_cuda.no_pinning) return result(cudaErrorOperatingSystem);
    for (int i = 0; i < MAX_BLOCKS; i++) {      /* the driver pins pages, each once */
        uintptr_t page = 4096, b = (uintptr_t)blocks[i].p, at = (uintptr_t)p;
        if (!b || blocks[i].device) continue;
        T_NEED(at / page > (b + blocks[i].bytes - 1) / page || (at + bytes - 1) / page < b / page,
               "host memory of one page registered twice");
    }
    keep(p, bytes, 0);
    left.registered++;
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *p)
{
    int i = find(p, 0);
    T_NEED(i >= 0 && blocks[i].p == p, "cudaHostUnregister of what is not there");
    blocks[i].p = NULL;
    left.registered--;
    return result(cudaSuccess);
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t s)
{
    if (result(cudaSuccess)) return last;
    T_NEED(find(p, 1) >= 0, "memset of host memory");
    op o = { .kind = SET, .to = p, .bytes = bytes, .serial = (unsigned long)value };
    submit(s, &o, NULL, 0);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t s)
{
    bool up = find(to, 1) >= 0, down = find(from, 1) >= 0;
    if (result(cudaSuccess)) return last;
    T_NEED(up || down, "a copy inside host memory");
    T_NEED(kind == cudaMemcpyDefault || (up && down) == (kind == cudaMemcpyDeviceToDevice),
           "a copy of another kind");
    op o = { .kind = COPY, .to = to, .from = from, .bytes = bytes };
    unsigned long n = submit(s, &o, NULL, 0);
    /* host memory that is not pinned holds the caller up */
    if ((!up && find(to, 0) < 0) || (!down && find(from, 0) < 0)) finish(s, n);
    return cudaSuccess;
}

/* ---- the rest ---- */

cudaError_t cudaGetDeviceCount(int *n)
{
    *n = fake_cuda.n_cards;
    return result(fake_cuda.n_cards ? cudaSuccess : cudaErrorNoDevice);
}

cudaError_t cudaSetDevice(int index)
{
    return result(index < fake_cuda.n_cards ? cudaSuccess : cudaErrorInvalidValue);
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attr, int index)
{
    (void)index;
    T_NEED(attr == cudaDevAttrMultiProcessorCount, "another attribute");
    *value = 4;
    return result(cudaSuccess);
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *ret, int index)
{
    if (index >= fake_cuda.n_cards) return result(cudaErrorInvalidValue);
    snprintf(ret->name, sizeof ret->name, "Fake card %d", index);
    return result(cudaSuccess);
}

cudaError_t cudaMemGetInfo(size_t *ret_left, size_t *all)
{
    *all = fake_cuda.mem_bytes;
    *ret_left = fake_cuda.mem_bytes - used_bytes;
    return result(cudaSuccess);
}

cudaError_t cudaGetLastError(void)
{
    cudaError_t err = last;
    last = cudaSuccess;
    return err;
}

const char *cudaGetErrorString(cudaError_t err)
{
    switch (err) {
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInsufficientDriver: return "CUDA driver version is insufficient";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorLaunchFailure: return "unspecified launch failure";
    case cudaErrorOperatingSystem: return "OS call failed or operation not supported";
    default: return "some error";
    }
}

void fake_cuda_reset(void)
{
    fake_cuda = (fake_cuda_faults){ .n_cards = 1, .mem_bytes = (size_t)4 << 30 };
    launches = 0;
    last = broken = cudaSuccess;
}

void fake_cuda_count(fake_cuda_left *ret)
{
    *ret = left;
}
