/* runtime/weights.c - follows a model's bindings: matrices as they are in the file, small vectors
 * as floats. Where the bytes lie is the plan's choice. */
#include "runtime/weights.h"

#include "kernels/sl_kernels.h"
#include "runtime/base/sl_numa.h"

#include <assert.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

/* Requests ahead of demand: what the disk reads in the time that attention takes, some 2 MiB, so
 * that a demand that comes meanwhile hardly waits. */
#define AHEAD_DEPTH 8u

static sl_status open_store(weights *w, const sl_plan *plan)
{
    sl_gguf *g = w->m->gguf;
    uint32_t n = sl_gguf_n_files(g);
    int *fds = calloc(n, sizeof *fds);
    uint64_t *bytes = calloc(n, sizeof *bytes);
    const char **paths = calloc(n, sizeof *paths);
    sl_status st =
        fds && bytes && paths ? SL_OK : sl_fail(w->ctx, SL_E_NOMEM, "table of %u files", n);
    for (uint32_t f = 0; st == SL_OK && f < n; f++) {
        fds[f] = sl_gguf_fd(g, f);
        bytes[f] = sl_gguf_file_bytes(g, f);
        paths[f] = sl_gguf_path(g, f);
    }
    /* What the page cache holds is copied by several threads; the disk is asked by one. */
    sl_store_params p = { .direct = plan->direct, .threads = !plan->direct,
                          .depth = plan->read_depth, .request_bytes = plan->read_bytes,
                          .ahead_depth = AHEAD_DEPTH };
    if (plan->weights == SL_WEIGHTS_STREAMED) p.poll_s = STREAM_AWAKE_S;
    /* An expert is three reads; a layer is asked for, another ahead, and some are guesses. */
    p.max_reads = SL_MAX(4096, 3 * 3 * w->m->hp.n_expert);
    if (plan->read_depth) p.ahead_depth = SL_MIN(AHEAD_DEPTH, plan->read_depth);
    if (st == SL_OK) st = sl_store_create(w->ctx, fds, bytes, paths, n, &p, &w->store);
    free(fds);
    free(bytes);
    free(paths);
    return st;
}

const void **weights_own(weights *w, const binding *b)
{
    const sl_model *m = w->m;
    const char *dst = (const char *)b->dst;
    if (b->layer != BIND_NO_LAYER)
        return (const void **)((char *)w->layers + (dst - (const char *)m->layers));
    return (const void **)((char *)&w->ends + (dst - (const char *)&m->ends));
}

static sl_slice slice_of(const sl_tensor *t)
{
    return (sl_slice){ .file = t->file, .type = t->type, .offset = t->offset, .bytes = t->bytes };
}

static bool streamed(const weights *w, const binding *b)
{
    if (b->kind != BIND_BYTES) return false;
    if (b->layer != BIND_NO_LAYER) return b->layer >= w->n_dense_layers;
    return w->embed_on_disk && b->dst == &w->m->ends.weights.embed.data;
}

/* Bindings of a tensor stand close together, but for the head that is the embedding. */
uint32_t weights_first(const weights *w, uint32_t i)
{
    const binding *b = w->m->bindings;
    for (uint32_t e = 0; e < i; e++)
        if (b[e].kind == BIND_BYTES && b[e].tensor == b[i].tensor) return e;
    return i;
}

/* ---- matrices that stay ---- */

/* The weights that open reads, for its progress. */
static uint64_t bytes_to_read(const weights *w, const sl_plan *plan)
{
    const sl_model *m = w->m;
    uint64_t bytes = 0, n = (uint64_t)m->hp.n_layer * m->hp.n_expert;
    for (uint64_t i = 0; plan->weights == SL_WEIGHTS_RESIDENT && i < n; i++)
        bytes += m->experts[i].gate.bytes + m->experts[i].up.bytes + m->experts[i].down.bytes;
    for (uint32_t i = 0; i < m->n_bindings; i++) {
        const binding *b = &m->bindings[i];
        if (b->kind == BIND_BYTES && !streamed(w, b) && weights_first(w, i) == i)
            bytes += b->tensor->bytes;
    }
    return bytes;
}

static void tell_progress(weights *w, uint64_t more)
{
    const sl_model *m = w->m;
    uint64_t done = SL_MIN(w->open_read + more, w->open_bytes);
    if (m->progress) m->progress(m->progress_user, done, w->open_bytes);
}

/* Reads of matrices have their bytes as tags. */
static sl_status reap(weights *w, uint32_t *open, uint32_t until)
{
    sl_read_done done[64];
    while (*open > until) {
        uint32_t n = sl_store_reap(w->store, done, SL_LEN(done), 1);
        for (uint32_t i = 0; i < n; i++) {
            if (done[i].status != SL_OK) return sl_fail(w->ctx, SL_E_IO, "%s", done[i].error);
            w->open_read += done[i].tag;
        }
        *open -= n;
        tell_progress(w, 0);
    }
    return SL_OK;
}

static sl_status read_dense(weights *w, uint64_t bytes)
{
    const sl_model *m = w->m;
    uint32_t open = 0;
    void *p = NULL;
    SL_TRY(sl_mem_alloc(w->ctx, SL_ACC_DENSE, SL_MAX(bytes, (uint64_t)2 << 20), &p));
    sl_mem_interleave(p, bytes);    /* every thread reads them */
    char *at = w->dense = p;
    w->dense_bytes = bytes;
    for (uint32_t i = 0; i < m->n_bindings; i++) {
        const binding *b = &m->bindings[i];
        uint32_t first = weights_first(w, i);
        if (b->kind != BIND_BYTES || streamed(w, b)) continue;
        if (first != i) {
            const binding *f = &m->bindings[first];
            *weights_own(w, b) = (const char *)*weights_own(w, f) - f->skip + b->skip;
            continue;
        }
        sl_read r = { .slice = slice_of(b->tensor), .dst = at, .tag = b->tensor->bytes };
        SL_TRY(reap(w, &open, 1024));
        SL_TRY(sl_store_submit(w->ctx, w->store, &r, 1));
        open++;
        *weights_own(w, b) = at + sl_store_lead(r.slice) + b->skip;
        at += sl_store_room(r.slice);
        assert(at <= w->dense + bytes);
    }
    return reap(w, &open, 0);
}

static sl_status map_dense(weights *w)
{
    for (uint32_t i = 0; i < w->m->n_bindings; i++) {
        const binding *b = &w->m->bindings[i];
        const void *src;
        if (b->kind != BIND_BYTES) continue;
        SL_TRY(sl_store_map(w->ctx, w->store, slice_of(b->tensor), &src));
        *weights_own(w, b) = (const char *)src + b->skip;
    }
    return SL_OK;
}

/* ---- vectors ---- */

/* attn_kv_b rows of head h: nope of keys, then v_head of values, each kv_lora wide. */
static void split_kv_b(const binding *b, sl_dequant_fn dequant, const char *src, float *row,
                       float *dst)
{
    const sl_attn *a = b->attn;
    uint32_t lora = a->v_dim, per_head = a->nope + a->v_head;
    bool keys = b->kind == BIND_KV_B_KEYS;
    uint64_t row_bytes = b->tensor->bytes / b->tensor->ne[1];
    for (uint32_t h = 0; h < a->n_head; h++)
        for (uint32_t i = 0; i < (keys ? a->nope : a->v_head); i++) {
            const char *at = src + ((uint64_t)h * per_head + (keys ? i : a->nope + i)) * row_bytes;
            if (!keys) {
                dequant(at, dst + ((uint64_t)h * a->v_head + i) * lora, lora);
                continue;
            }
            dequant(at, row, lora);
            for (uint32_t c = 0; c < lora; c++)
                dst[((uint64_t)h * lora + c) * a->nope + i] = row[c];
        }
}

static sl_status read_floats(weights *w)
{
    const sl_model *m = w->m;
    uint64_t n_floats = 0, most = 0;
    sl_kernels k;
    void *p = NULL, *raw = NULL;
    sl_kernels_init(&k, 0);
    for (uint32_t i = 0; i < m->n_bindings; i++) {
        if (m->bindings[i].kind == BIND_BYTES) continue;
        n_floats += (m->bindings[i].n + 15) / 16 * 16;
        most = SL_MAX(most, m->bindings[i].tensor->bytes);
    }
    SL_TRY(sl_mem_alloc(w->ctx, SL_ACC_DENSE, n_floats * sizeof(float) + 1, &p));
    float *at = w->floats = p;
    w->floats_bytes = n_floats * sizeof(float);
    most = (most + 63) / 64 * 64;
    SL_TRY(sl_mem_alloc(w->ctx, SL_ACC_SCRATCH, most + (m->hp.kv_lora + 1) * sizeof(float), &raw));
    float *row = (float *)(void *)((char *)raw + most);
    sl_status st = SL_OK;
    for (uint32_t i = 0; st == SL_OK && i < m->n_bindings; i++) {
        const binding *b = &m->bindings[i];
        sl_dequant_fn dequant = k.dequant[b->tensor->type];
        if (b->kind == BIND_BYTES) continue;
        assert(dequant);
        st = sl_store_read(w->ctx, w->store, slice_of(b->tensor), raw);
        if (st != SL_OK) break;
        if (b->kind == BIND_FLOATS) dequant((const char *)raw + b->skip, at, b->n);
        else split_kv_b(b, dequant, raw, row, at);
        *weights_own(w, b) = at;
        at += (b->n + 15) / 16 * 16;    /* every vector starts a cache line */
    }
    sl_mem_free(w->ctx, raw);
    return st;
}

/* Header and vectors came through the page cache, with what the kernel read ahead of them, and
 * would count against the budget; nothing else comes that way. A file that is cached for others is
 * left alone. */
static void drop_cached(const weights *w)
{
    const double ours = 0.02;
    sl_gguf *g = w->m->gguf;
    if (sl_store_cached_share(w->store) > ours) return;
    for (uint32_t f = 0; f < sl_gguf_n_files(g); f++)
        (void)posix_fadvise(sl_gguf_fd(g, f), 0, 0, POSIX_FADV_DONTNEED);
}

/* ---- matrices that come and go ---- */

static sl_status list_sections(weights *w)
{
    const sl_model *m = w->m;
    uint32_t n_layer = m->hp.n_layer, n = 0, l = w->n_dense_layers;
    w->first_binding = calloc(n_layer + 1ull, sizeof *w->first_binding);
    w->section_at = calloc(m->n_bindings + 1ull, sizeof *w->section_at);
    w->slices = calloc(m->n_bindings + 1ull, sizeof *w->slices);
    w->first_slice = calloc(n_layer - l + 1ull, sizeof *w->first_slice);
    if (!w->first_binding || !w->section_at || !w->slices || !w->first_slice)
        return sl_fail(w->ctx, SL_E_NOMEM, "tables of sections");
    uint64_t at = 0;
    for (uint32_t i = 0; i < m->n_bindings; i++) {
        const binding *b = &m->bindings[i];
        if (b->layer == BIND_NO_LAYER || b->layer < w->n_dense_layers) continue;
        for (; l <= b->layer; l++, at = 0) {
            w->first_binding[l] = i;
            w->first_slice[l - w->n_dense_layers] = n;
        }
        uint32_t first = weights_first(w, i);
        if (b->kind != BIND_BYTES) continue;
        w->section_at[i] = first == i ? at + sl_store_lead(slice_of(b->tensor))
                                      : w->section_at[first];
        if (first != i) continue;
        w->slices[n++] = slice_of(b->tensor);
        at += sl_store_room(slice_of(b->tensor));
    }
    for (; l <= n_layer; l++) {
        w->first_binding[l] = m->n_bindings;
        w->first_slice[l - w->n_dense_layers] = n;
    }
    return SL_OK;
}

sl_status weights_use(weights *w, uint32_t l)
{
    const char *base;
    if (l < w->n_dense_layers) return SL_OK;
    SL_TRY(sl_stream_dense(w->ctx, w->stream, l, &base));
    for (uint32_t i = w->first_binding[l]; i < w->first_binding[l + 1]; i++) {
        const binding *b = &w->m->bindings[i];
        if (b->kind == BIND_BYTES) *weights_own(w, b) = base + w->section_at[i] + b->skip;
    }
    return SL_OK;
}

void weights_done(weights *w, uint32_t l)
{
    if (l >= w->n_dense_layers) sl_stream_dense_done(w->stream, l);
}

/* ---- */

static void on_fill(void *user, uint64_t done, uint64_t all)
{
    (void)all;
    tell_progress(user, done);
}

sl_status weights_init(sl_ctx *ctx, const sl_model *m, const sl_plan *plan, weights *w)
{
    *w = (weights){ .ctx = ctx, .m = m, .n_dense_layers = plan->n_dense_layers, .ends = m->ends,
                    .embed_on_disk = plan->embed_rows_bytes > 0 };
    w->layers = calloc(m->hp.n_layer, sizeof *w->layers);
    if (!w->layers) return sl_fail(ctx, SL_E_NOMEM, "table of %u layers", m->hp.n_layer);
    memcpy(w->layers, m->layers, m->hp.n_layer * sizeof *w->layers);
    w->ends.weights.layers = w->layers;
    SL_TRY(open_store(w, plan));
    SL_TRY(read_floats(w));
    w->open_bytes = bytes_to_read(w, plan);
    SL_TRY(plan->weights == SL_WEIGHTS_MAPPED ? map_dense(w) : read_dense(w, plan->dense_bytes));
    if (plan->direct) drop_cached(w);
    SL_TRY(list_sections(w));
    sl_stream_params s = { .plan = plan, .shape = &m->shape, .n_expert = m->hp.n_expert,
                           .n_used = m->hp.n_used,
                           .experts = m->experts, .policy = (sl_policy)plan->policy,
                           .no_ahead = plan->no_ahead };
    s.row_bytes = m->ends.weights.embed.row_bytes;
    for (uint32_t i = 0; i < m->n_bindings; i++)
        if (m->bindings[i].dst == &m->ends.weights.embed.data)
            s.table = slice_of(m->bindings[i].tensor);
    if (w->n_dense_layers < m->hp.n_layer) {
        s.dense = w->slices;
        s.dense_first = w->first_slice;
    }
    SL_TRY(sl_stream_create(ctx, w->store, &s, &w->stream));
    if (plan->weights != SL_WEIGHTS_RESIDENT) return SL_OK;
    return sl_stream_fill(ctx, w->stream, on_fill, w);
}

void weights_fini(weights *w)
{
    sl_stream_destroy(&w->stream);
    sl_store_destroy(&w->store);
    if (w->dense) sl_mem_free(w->ctx, w->dense);
    if (w->floats) sl_mem_free(w->ctx, w->floats);
    free(w->layers);
    free(w->first_binding);
    free(w->section_at);
    free(w->slices);
    free(w->first_slice);
    *w = (weights){ 0 };
}

const float *weights_rope_freqs(const weights *w, uint32_t n_ctx)
{
    const ends *e = &w->ends;
    if (e->rope_freqs) return e->rope_freqs;
    return n_ctx > w->m->hp.rope.n_ctx_orig ? e->rope_long : e->rope_short;
}
