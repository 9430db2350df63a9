/* runtime/model_load.c - follows a model's bindings: weights stay where the file is mapped, small
 * vectors become floats of our own. */
#include "runtime/model.h"

#include "kernels/sl_kernels.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static sl_status open_store(sl_ctx *ctx, sl_model *m)
{
    uint32_t n = sl_gguf_n_files(m->gguf);
    int *fds = calloc(n, sizeof *fds);
    uint64_t *bytes = calloc(n, sizeof *bytes);
    const char **paths = calloc(n, sizeof *paths);
    sl_status st = fds && bytes && paths ? SL_OK : sl_fail(ctx, SL_E_NOMEM, "table of %u files", n);
    for (uint32_t f = 0; st == SL_OK && f < n; f++) {
        fds[f] = sl_gguf_fd(m->gguf, f);
        bytes[f] = sl_gguf_file_bytes(m->gguf, f);
        paths[f] = sl_gguf_path(m->gguf, f);
    }
    if (st == SL_OK) st = sl_store_create(ctx, fds, bytes, paths, n, NULL, &m->store);
    free(fds);
    free(bytes);
    free(paths);
    return st;
}

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

static sl_status follow(sl_ctx *ctx, sl_model *m, const sl_kernels *k, const binding *b, float *row,
                        float **at)
{
    const sl_tensor *t = b->tensor;
    const void *src;
    sl_slice s = { .file = t->file, .type = t->type, .offset = t->offset, .bytes = t->bytes };
    SL_TRY(sl_store_map(ctx, m->store, s, &src));
    if (b->kind == BIND_BYTES) {
        *b->dst = (const char *)src + b->skip;
        return SL_OK;
    }
    assert(k->dequant[t->type]);
    if (b->kind == BIND_FLOATS) k->dequant[t->type]((const char *)src + b->skip, *at, b->n);
    else split_kv_b(b, k->dequant[t->type], src, row, *at);
    *b->dst = *at;
    *at += (b->n + 15) / 16 * 16;   /* every vector starts a cache line */
    return SL_OK;
}

static sl_status follow_all(sl_ctx *ctx, sl_model *m)
{
    uint64_t n_floats = 0;
    sl_kernels k;
    void *p = NULL, *row = NULL;
    sl_kernels_init(&k, 0);
    for (uint32_t i = 0; i < m->n_bindings; i++)
        if (m->bindings[i].kind != BIND_BYTES) n_floats += (m->bindings[i].n + 15) / 16 * 16;
    SL_TRY(sl_mem_alloc(ctx, SL_ACC_DENSE, n_floats * sizeof(float) + 1, &p));
    m->floats = p;
    SL_TRY(sl_mem_alloc(ctx, SL_ACC_SCRATCH, (m->hp.kv_lora + 1) * sizeof(float), &row));
    float *at = m->floats;
    sl_status st = SL_OK;
    for (uint32_t i = 0; st == SL_OK && i < m->n_bindings; i++)
        st = follow(ctx, m, &k, &m->bindings[i], row, &at);
    sl_mem_free(ctx, row);
    return st;
}

static sl_status map_experts(sl_ctx *ctx, sl_model *m)
{
    size_t n = (size_t)m->hp.n_layer * m->hp.n_expert;
    void *p = NULL;
    if (!n) return SL_OK;
    SL_TRY(sl_mem_alloc(ctx, SL_ACC_TABLES, n * sizeof *m->expert_data, &p));
    m->expert_data = p;
    for (size_t i = 0; i < n; i++) {
        if (!m->layers[i / m->hp.n_expert].moe) continue;
        SL_TRY(sl_store_map(ctx, m->store, m->experts[i].gate, &m->expert_data[i].gate));
        SL_TRY(sl_store_map(ctx, m->store, m->experts[i].up, &m->expert_data[i].up));
        SL_TRY(sl_store_map(ctx, m->store, m->experts[i].down, &m->expert_data[i].down));
    }
    return SL_OK;
}

sl_status model_load(sl_ctx *ctx, sl_model *m)
{
    if (m->store) return SL_OK;
    sl_status st = open_store(ctx, m);
    if (st == SL_OK) st = follow_all(ctx, m);
    if (st == SL_OK) st = map_experts(ctx, m);
    if (st == SL_OK) return SL_OK;
    sl_store_destroy(&m->store);
    sl_mem_free(ctx, m->floats);
    sl_mem_free(ctx, m->expert_data);
    m->floats = NULL;
    m->expert_data = NULL;
    return st;
}

const float *model_rope_freqs(const sl_model *m, uint32_t n_ctx)
{
    if (m->rope_freqs) return m->rope_freqs;
    return n_ctx > m->hp.rope.n_ctx_orig ? m->rope_long : m->rope_short;
}
