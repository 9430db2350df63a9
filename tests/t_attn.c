/* tests/t_attn.c - the stage `attend` of the cpu device alone: against softmax attention in double
 * over the keys and values as stored, at block boundaries, with windows, sinks and values that are
 * prefixes of keys; and the same bits for a prefill, chunks, single rows, interleaved sequences and
 * 2 threads. Key/value memory and the output end on unmapped pages. */
#include "offload/sl_device.h"
#include "tests/t.h"

#include <math.h>

#define SEQS 3
#define MAX_N 1060          /* three spans: a single row of the last is shared out to threads */
#define MAX_WIDTH 1200      /* elements of a row of q, k, v or att */

struct shape {
    uint32_t n_head, n_head_kv, k_dim, v_dim, window, block_rows;
    bool sinks, prefix;     /* prefix: the value is the first v_dim elements of the key */
    sl_type type;
    float scale;
};

static const struct shape shapes[] = {
    { 1, 1, 8, 8, 0, 16, false, false, SL_F32, 1 },
    { 6, 2, 20, 12, 0, 32, false, false, SL_F32, 0.5f },
    { 9, 3, 64, 64, 0, 64, false, false, SL_F16, 0.125f },
    { 8, 8, 32, 32, 5, 16, true, false, SL_F16, 0.3f },
    { 4, 1, 16, 24, 64, 1, true, false, SL_F32, 0.3f },
    { 10, 1, 16, 16, 65, 16, false, false, SL_F16, 0.3f },
    { 2, 2, 16, 16, 1, 8, false, false, SL_F32, 1 },
    { 16, 1, 72, 64, 0, 32, false, true, SL_F16, 0.1f },
    { 20, 1, 40, 33, 100, 64, true, true, SL_F32, 0.2f },
    { 4, 2, 16, 16, 0, 16, false, false, SL_F32, 300 },     /* scores of +-5000 */
    { 12, 2, 80, 48, 0, 32, false, false, SL_BF16, 0.1f },
    { 8, 1, 64, 32, 70, 32, true, false, SL_Q8_0, 0.2f },
    { 4, 2, 32, 16, 0, 32, false, false, SL_F16, 0.4f },
    { 8, 2, 32, 32, 600, 32, true, false, SL_Q8_0, 0.4f },
};

struct rig {
    const struct shape *s;
    sl_ctx *ctx;
    sl_pool *pool;
    sl_device *dev;
    sl_layer layer;
    sl_kv_view kv;
    size_t k_mem, v_mem;
    uint32_t tables[SEQS][MAX_N], n_blocks;
    const uint32_t *blocks[SEQS];
    float sinks[64];
};

/* Rows of all sequences, the same for every way of cutting them. */
static float in_q[SEQS][MAX_N][MAX_WIDTH], in_k[SEQS][MAX_N][MAX_WIDTH],
    in_v[SEQS][MAX_N][MAX_WIDTH];
static float base[SEQS][MAX_N][MAX_WIDTH], other[SEQS][MAX_N][MAX_WIDTH];

static uint64_t row_bytes(sl_type type, uint32_t n)
{
    const sl_type_info *t = sl_type_get(type);
    return (uint64_t)n / t->block_elems * t->block_bytes;
}

static void open_rig(struct rig *r, const struct shape *s, uint32_t threads, unsigned mask)
{
    uint32_t per_seq = (MAX_N + s->block_rows - 1) / s->block_rows;
    uint32_t shift = t_below(SEQS * per_seq);
    *r = (struct rig){ .s = s, .ctx = sl_ctx_create(NULL, NULL), .n_blocks = SEQS * per_seq };
    T_NEED(sl_pool_create(r->ctx, threads, &r->pool) == SL_OK, "%s", sl_error(r->ctx));
    sl_device_params p = { .pool = r->pool, .max_rows = SEQS * MAX_N, .cpu_mask = mask };
    p.widths = (sl_widths){
        .d_model = 8, .cols = 8, .n_head = s->n_head, .head_dim = SL_MAX(s->k_dim, s->v_dim)
    };
    T_NEED(sl_device_create_cpu(r->ctx, &p, &r->dev) == SL_OK, "%s", sl_error(r->ctx));
    r->kv = (sl_kv_view){ .k_bytes = row_bytes(s->type, s->n_head_kv * s->k_dim),
                          .blocks = r->blocks,
                          .v_bytes = s->prefix ? 0 : row_bytes(s->type, s->n_head_kv * s->v_dim),
                          .block_rows = s->block_rows,
                          .type = s->type };
    r->k_mem = r->n_blocks * s->block_rows * r->kv.k_bytes;
    r->v_mem = r->n_blocks * s->block_rows * r->kv.v_bytes;
    r->kv.k = t_guarded(r->k_mem);
    memset(r->kv.k, 0xff, r->k_mem);    /* NaN: what nobody wrote must not be read */
    if (r->v_mem) {
        r->kv.v = t_guarded(r->v_mem);
        memset(r->kv.v, 0xff, r->v_mem);
    }
    for (uint32_t i = 0; i < r->n_blocks; i++)
        r->tables[i % SEQS][i / SEQS] = (i + shift) % r->n_blocks;
    for (uint32_t i = 0; i < SEQS; i++) r->blocks[i] = r->tables[i];
    for (uint32_t i = 0; i < s->n_head; i++) r->sinks[i] = (float)i * 0.5f - 2;
    r->layer.attn = (sl_attn){ .n_head = s->n_head, .n_head_kv = s->n_head_kv, .k_dim = s->k_dim,
                               .v_dim = s->v_dim, .window = s->window, .scale = s->scale,
                               .sinks = s->sinks ? r->sinks : NULL };
}

static void close_rig(struct rig *r)
{
    sl_device_destroy(&r->dev);
    sl_pool_destroy(&r->pool);
    t_guarded_free(r->kv.k, r->k_mem);
    if (r->v_mem) t_guarded_free(r->kv.v, r->v_mem);
    sl_ctx_destroy(&r->ctx);
}

/* One pass over rows (seq[i], pos[i]); outputs go to ret. */
static void pass(struct rig *r, const uint32_t *seq, const uint32_t *pos, uint32_t n,
                 float (*ret)[MAX_N][MAX_WIDTH])
{
    const struct shape *s = r->s;
    size_t nq = s->n_head * s->k_dim, nk = s->n_head_kv * s->k_dim, nv = s->n_head_kv * s->v_dim;
    size_t na = s->n_head * s->v_dim, width[4] = { nq, nk, nv, na };
    float *buf[4];
    for (int i = 0; i < 4; i++) buf[i] = t_guarded(n * width[i] * sizeof(float));
    for (uint32_t i = 0; i < n; i++) {
        memcpy(buf[0] + i * nq, in_q[seq[i]][pos[i]], nq * sizeof(float));
        memcpy(buf[1] + i * nk, in_k[seq[i]][pos[i]], nk * sizeof(float));
        memcpy(buf[2] + i * nv, in_v[seq[i]][pos[i]], nv * sizeof(float));
    }
    sl_batch b = { .n_rows = n, .pos = pos, .seq = seq, .q = buf[0], .k = buf[1],
                   .v = s->prefix ? NULL : buf[2], .att = buf[3] };
    T_NEED(r->dev->ops->attend(r->dev, &r->layer, &r->kv, &b) == SL_OK, "%s", sl_error(r->ctx));
    for (uint32_t i = 0; i < n; i++)
        memcpy(ret[seq[i]][pos[i]], buf[3] + i * na, na * sizeof(float));
    for (int i = 0; i < 4; i++) t_guarded_free(buf[i], n * width[i] * sizeof(float));
}

/* Sequence 0, positions [0, n), `chunk` rows a pass. */
static void alone(struct rig *r, uint32_t n, uint32_t chunk, float (*ret)[MAX_N][MAX_WIDTH])
{
    static uint32_t seq[MAX_N], pos[MAX_N];
    for (uint32_t at = 0; at < n; at += chunk) {
        uint32_t m = SL_MIN(chunk, n - at);
        for (uint32_t i = 0; i < m; i++) seq[i] = 0, pos[i] = at + i;
        pass(r, seq, pos, m, ret);
    }
}

/* All sequences, up to n positions each, in passes of runs of random length and order. */
static void mixed(struct rig *r, uint32_t n, float (*ret)[MAX_N][MAX_WIDTH])
{
    static uint32_t seq[SEQS * MAX_N], pos[SEQS * MAX_N];
    uint32_t done[SEQS] = { 0 };
    while (done[0] < n || done[1] < n || done[2] < n) {
        uint32_t rows = 0;
        for (uint32_t runs = 1 + t_below(5); runs > 0; runs--) {
            uint32_t s = t_below(SEQS), len = 1 + t_below(t_below(4) ? 3 : 40);
            for (uint32_t i = 0; i < len && done[s] < n; i++, rows++)
                seq[rows] = s, pos[rows] = done[s]++;
        }
        if (rows) pass(r, seq, pos, rows, ret);
    }
}

/* What memory holds of a row of n floats. */
static void stored(const sl_kernels *k, sl_type type, const float *from, float *ret, uint32_t n)
{
    static char row[4 * MAX_WIDTH];
    k->kv_put(type, from, row, n);
    k->dequant[type](row, ret, n);
}

static void check_exact(const struct rig *r, const sl_kernels *kern, uint32_t n)
{
    const struct shape *s = r->s;
    uint32_t group = s->n_head / s->n_head_kv;
    static double score[MAX_N];
    static float key[MAX_N][MAX_WIDTH], value[MAX_N][MAX_WIDTH];
    for (uint32_t p = 0; p < n; p++) {
        stored(kern, s->type, in_k[0][p], key[p], s->n_head_kv * s->k_dim);
        stored(kern, s->type, in_v[0][p], value[p], s->n_head_kv * s->v_dim);
    }
    for (uint32_t p = 0; p < n; p++)
        for (uint32_t h = 0; h < s->n_head; h++) {
            uint32_t first = s->window && p >= s->window ? p - s->window + 1 : 0, kvh = h / group;
            double max = s->sinks ? (double)r->sinks[h] : -INFINITY, sum, worst = 0;
            for (uint32_t j = first; j <= p; j++) {
                score[j] = 0;
                for (uint32_t e = 0; e < s->k_dim; e++)
                    score[j] += (double)in_q[0][p][h * s->k_dim + e] * s->scale
                                * key[j][kvh * s->k_dim + e];
                max = fmax(max, score[j]);
            }
            sum = s->sinks ? exp(r->sinks[h] - max) : 0;
            for (uint32_t j = first; j <= p; j++) sum += score[j] = exp(score[j] - max);
            for (uint32_t e = 0; e < s->v_dim; e++) {
                double want = 0;
                for (uint32_t j = first; j <= p; j++)
                    want += score[j] / sum * (s->prefix ? key[j][kvh * s->k_dim + e]
                                                        : value[j][kvh * s->v_dim + e]);
                worst = fmax(worst, fabs(base[0][p][h * s->v_dim + e] - want));
            }
            /* A score of size S is off by S * 2^-24 and some, and so is its weight, relatively. */
            T_CHECK(worst < 2e-6 * (1 + s->scale * s->k_dim), "shape %td row %u head %u: off by %g",
                    s - shapes, p, h, worst);
        }
}

static void same_bits(const struct rig *r, uint32_t n, const char *what)
{
    size_t bytes = (size_t)r->s->n_head * r->s->v_dim * sizeof(float);
    for (uint32_t p = 0; p < n; p++)
        T_CHECK(memcmp(base[0][p], other[0][p], bytes) == 0, "shape %td row %u: %s", r->s - shapes,
                p, what);
}

static void check_shape(const struct shape *s, uint32_t n, const sl_kernels *kern)
{
    static const struct {
        uint32_t threads;
        unsigned mask;
    } ways[] = { { 1, ~0u }, { 2, ~0u }, { 1, 0 } };
    struct rig r;
    for (uint32_t q = 0; q < SEQS; q++)
        for (uint32_t p = 0; p < n; p++)
            for (uint32_t i = 0; i < MAX_WIDTH; i++)
                in_q[q][p][i] = t_unit(), in_k[q][p][i] = t_unit(), in_v[q][p][i] = t_unit();
    open_rig(&r, s, 1, ~0u);
    alone(&r, n, n, base);
    check_exact(&r, kern, n);
    close_rig(&r);
    for (size_t w = 0; w < SL_LEN(ways); w++) {
        static const uint32_t chunks[] = { 1, 7, 64, MAX_N };
        for (size_t c = 0; c < SL_LEN(chunks); c++) {
            open_rig(&r, s, ways[w].threads, ways[w].mask);
            alone(&r, n, chunks[c], other);
            same_bits(&r, n, "chunks");
            close_rig(&r);
        }
        open_rig(&r, s, ways[w].threads, ways[w].mask);
        mixed(&r, n, other);
        same_bits(&r, n, "beside other sequences");
        close_rig(&r);
    }
}

int main(void)
{
    static const uint32_t lengths[] = { 1, 64, 65, 129 };
    sl_kernels kern;
    t_begin();
    sl_kernels_init(&kern, 0);
    for (size_t i = 0; i < SL_LEN(shapes); i++)
        check_shape(shapes + i, lengths[i % SL_LEN(lengths)], &kern);
    check_shape(shapes + 3, 330, &kern);
    check_shape(shapes + 4, 330, &kern);
    check_shape(shapes + 2, 200, &kern);
    check_shape(shapes + 12, 1060, &kern);      /* more than two spans */
    check_shape(shapes + 13, 700, &kern);
    check_shape(shapes + 7, 130, &kern);
    return t_end();
}
