/* offload/cuda_tables.c - small host arrays of stages on their way to the device. */
#include "offload/cuda_host.h"

#include <assert.h>
#include <string.h>

sl_status cuda_tables_begin(cuda_device *d, size_t bytes)
{
    cuda_tables *t = &d->tables;
    if (bytes > t->part_bytes)
        return sl_fail(d->ctx, SL_E_ARG, "cuda: a stage has %zu bytes of tables, room is for %zu",
                       bytes, t->part_bytes);
    if (bytes > t->part_bytes - t->at) {
        cudaStream_t q = d->queue[SL_Q_COMPUTE];
        SL_TRY(cuda_check(d, cudaEventRecord(t->left[t->part], q), "record an event"));
        t->used[t->part] = true;
        t->part = (t->part + 1) % CUDA_PARTS;
        if (t->used[t->part])
            SL_TRY(cuda_check(d, cudaEventSynchronize(t->left[t->part]), "wait for a table"));
        t->at = 0;
    }
    t->start = t->at;
    return SL_OK;
}

void *cuda_tables_room(cuda_device *d, size_t bytes, const void **ret_dev)
{
    cuda_tables *t = &d->tables;
    size_t at = t->part * t->part_bytes + t->at;
    t->at += cuda_padded(bytes);
    assert(t->at <= t->part_bytes && "more than cuda_tables_begin was told");
    *ret_dev = t->dev + at;
    return t->host + at;
}

const void *cuda_tables_put(cuda_device *d, const void *from, size_t bytes)
{
    const void *dev;
    memcpy(cuda_tables_room(d, bytes, &dev), from, bytes);
    return dev;
}

sl_status cuda_tables_send(cuda_device *d)
{
    cuda_tables *t = &d->tables;
    size_t at = t->part * t->part_bytes + t->start;
    if (t->at == t->start) return SL_OK;
    return cuda_check(d, cudaMemcpyAsync(t->dev + at, t->host + at, t->at - t->start,
                                         cudaMemcpyHostToDevice, d->queue[SL_Q_COMPUTE]),
                      "copy a table");
}
