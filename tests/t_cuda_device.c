/* tests/t_cuda_device.c - the cuda device against the cpu device: its own host code, on the runtime
 * of tests/fake_cuda.h with the real kernels compiled for the CPU, or (tests/gpu/run.sh builds it
 * with T_REAL_GPU) on a card. Small random models, passes that mix prompts and single rows, runs of
 * experts in one call, in many, and stored early; routing is the CPU's. Logits are within 2e-3 of
 * the largest for F32 and F16; quantised, they are off those of float32 activations at most twice
 * as far as the CPU's own. Then what goes wrong: no driver, no card, no memory, no pinning, an
 * error in the middle: one line, and nothing is left. */
#include "tests/t_device_model.h"

#if T_HAVE_SHIM || T_REAL_GPU
#if !T_REAL_GPU
#include "tests/fake_cuda.h"
#endif

typedef enum cutting { ONE_CALL, CALL_EACH, STORED } cutting;

/* One device with its copy of a model. */
struct side {
    sl_ctx *ctx;
    sl_pool *pool;
    sl_device *dev;
    const sl_device_ops *o;
    const struct model *m;
    sl_weights w;
    sl_layer layers[LAYERS];
    sl_ffn experts[LAYERS][8];
    sl_batch b;
    sl_kv_view kv[LAYERS];
    float *stored;              /* [ROWS * 9][D] */
    bool accel;
};

static uint32_t tables[SEQS][N / BLOCK + 1];
static const uint32_t *blocks[SEQS];

#define DO(call) T_NEED((call) == SL_OK, "%s", sl_error(s->ctx))

static void *take(struct side *s, size_t bytes)
{
    void *p = NULL;
    DO(s->o->alloc(s->dev, SL_ACC_SCRATCH, SL_MAX(bytes, 1), &p));
    return p;
}

/* What `before` has so far is done before `behind` goes on; before the driver does. */
static void order(struct side *s, sl_queue before, sl_queue behind)
{
    sl_event ev;
    DO(s->o->record(s->dev, before, &ev));
    DO(s->o->wait(s->dev, behind, ev));
}

static void finish(struct side *s, sl_queue q)
{
    sl_event ev;
    DO(s->o->record(s->dev, q, &ev));
    DO(s->o->sync(s->dev, ev));
}

static const void *up(struct side *s, const void *p, size_t bytes)
{
    if (!p || !s->accel) return p;
    void *to = take(s, bytes);
    DO(s->o->copy(s->dev, SL_Q_WEIGHTS, to, p, bytes));
    return to;
}

static sl_mat mat_up(struct side *s, sl_mat m)
{
    m.data = up(s, m.data, m.row_bytes * m.rows * m.count);
    m.bias = up(s, m.bias, sizeof(float) * m.rows * m.count);
    return m;
}

static sl_norm norm_up(struct side *s, sl_norm n, uint32_t count)
{
    n.weight = up(s, n.weight, sizeof(float) * count);
    n.bias = up(s, n.bias, sizeof(float) * count);
    return n;
}

static sl_ffn ffn_up(struct side *s, const sl_ffn *f)
{
    return (sl_ffn){ mat_up(s, f->gate), mat_up(s, f->up), mat_up(s, f->down) };
}

static void layer_up(struct side *s, uint32_t i)
{
    const sl_layer *from = &s->m->layers[i];
    const sl_attn *f = &from->attn;
    sl_layer *l = &s->layers[i];
    sl_attn *a = &l->attn;
    uint32_t heads = f->qk_norm == SL_QK_NORM_FULL ? f->n_head : 1;
    uint32_t kv = f->qk_norm == SL_QK_NORM_FULL ? f->n_head_kv : 1;
    *l = *from;
    a->norm = norm_up(s, f->norm, D);
    if (f->kind == SL_ATTN_GQA) {
        a->q_norm = norm_up(s, f->q_norm, heads * f->k_dim);
        a->k_norm = norm_up(s, f->k_norm, kv * f->k_dim);
    } else {
        a->kv_a_norm = norm_up(s, f->kv_a_norm, f->k_b.rows);
        if (f->q_a.rows) a->q_a_norm = norm_up(s, f->q_a_norm, f->q_a.rows);
    }
    sl_mat *mats[] = { &a->q, &a->k, &a->v, &a->o, &a->q_a, &a->kv_a, &a->k_b, &a->v_b };
    for (size_t e = 0; e < SL_LEN(mats); e++) *mats[e] = mat_up(s, *mats[e]);
    a->sinks = up(s, f->sinks, sizeof(float) * f->n_head);
    l->ffn_norm = norm_up(s, from->ffn_norm, D);
    l->ffn = ffn_up(s, &from->ffn);
    l->shared = ffn_up(s, &from->shared);
    l->shared_gate = mat_up(s, from->shared_gate);
    l->router = mat_up(s, from->router);
    l->routing.sel_bias = up(s, from->routing.sel_bias, sizeof(float) * from->routing.n_expert);
    for (uint32_t e = 0; l->moe && e < from->routing.n_expert; e++)
        s->experts[i][e] = ffn_up(s, &s->m->experts[i][e]);
}

static sl_status open_side(struct side *s, const struct model *m, bool accel, bool float_acts)
{
    sl_accel a = { .kind = SL_ACCEL_CUDA };
    memset(s, 0, sizeof *s);
    s->ctx = sl_ctx_create(NULL, NULL);
    s->m = m;
    s->accel = accel;
    sl_device_params p = { .max_rows = ROWS, .max_logits = ROWS, .widths = m->widths,
                           .cpu_mask = ~0u, .float_acts = float_acts };
    if (accel) {
        SL_TRY(sl_accel_find(s->ctx, &a));
        SL_TRY(sl_device_create_accel(s->ctx, &a, &p, &s->dev));
    } else {
        SL_TRY(sl_pool_create(s->ctx, 1, &s->pool));
        p.pool = s->pool;
        SL_TRY(sl_device_create_cpu(s->ctx, &p, &s->dev));
    }
    s->o = s->dev->ops;
    return SL_OK;
}

static void fill_side(struct side *s)
{
    const struct shape *sh = s->m->s;
    const sl_widths *w = &s->m->widths;
    size_t elem = sh->kv_type == SL_F16 ? 2 : 4, n_blocks = SEQS * (N / BLOCK + 1);
    for (uint32_t i = 0; i < LAYERS; i++) {
        layer_up(s, i);
        s->kv[i] = (sl_kv_view){ .k_bytes = w->k * elem, .blocks = blocks, .block_rows = BLOCK,
                                 .v_bytes = sh->kind == SL_ATTN_MLA ? 0 : w->v * elem,
                                 .type = sh->kv_type };
        s->kv[i].k = take(s, n_blocks * BLOCK * s->kv[i].k_bytes);
        s->kv[i].v = take(s, n_blocks * BLOCK * s->kv[i].v_bytes);
    }
    s->w = s->m->w;
    s->w.layers = s->layers;
    s->w.head = mat_up(s, s->m->w.head);
    s->w.out_norm = norm_up(s, s->m->w.out_norm, D);
    if (s->accel) finish(s, SL_Q_WEIGHTS);
    sl_batch *b = &s->b;
    float **f[] = { &b->x, &b->h, &b->y, &b->q, &b->k, &b->v, &b->att, &b->cos, &b->sin,
                    &b->expert_w, &b->shared_w, &b->logits, &s->stored };
    size_t n[] = { D, D, D, w->q, w->k, w->v, w->att, w->n_rot / 2, w->n_rot / 2, w->n_used, 1,
                   VOCAB, 9 * D };
    for (size_t i = 0; i < SL_LEN(f); i++) *f[i] = take(s, ROWS * n[i] * sizeof(float));
    b->expert_id = take(s, (size_t)ROWS * w->n_used * 4);
}

static void close_side(struct side *s)
{
    sl_mem_report r;
    sl_device_destroy(&s->dev);
    sl_pool_destroy(&s->pool);
    sl_mem_get(s->ctx, &r);
    T_CHECK(!r.total, "%llu bytes of host memory are left", (unsigned long long)r.total);
    sl_ctx_destroy(&s->ctx);
}

static void down(struct side *s, void *to, const void *from, size_t bytes)
{
    order(s, SL_Q_COMPUTE, SL_Q_DOWN);
    DO(s->o->copy(s->dev, SL_Q_DOWN, to, from, bytes));
    finish(s, SL_Q_DOWN);
}

/* What the router chose, in host memory. */
struct routed {
    uint32_t id[ROWS * 8];
    float w[ROWS * 8], shared[ROWS];
};

static void route(struct side *s, const sl_layer *l, struct routed *r)
{
    uint32_t n = s->b.n_rows, used = l->routing.n_used;
    DO(s->o->route(s->dev, l, s->b.h, n, s->b.expert_id, s->b.expert_w, s->b.shared_w));
    down(s, r->id, s->b.expert_id, (size_t)n * used * 4);
    down(s, r->w, s->b.expert_w, (size_t)n * used * 4);
    down(s, r->shared, s->b.shared_w, (size_t)n * 4);
}

/* The layer's runs on these choices: experts ascending, then the shared one. */
static uint32_t make_runs(const struct side *s, const sl_layer *l, const struct routed *c,
                          sl_expert_run *runs)
{
    static uint32_t rows[ROWS * 9];
    static float w[ROWS * 9];
    uint32_t n = 0, at = 0, used = l->routing.n_used;
    if (!l->moe) {
        runs[n++] = (sl_expert_run){ .ffn = l->ffn };
        return n;
    }
    for (uint32_t e = 0; e < l->routing.n_expert; e++) {
        sl_expert_run *r = &runs[n];
        *r = (sl_expert_run){ .ffn = s->experts[l->index][e], .rows = rows + at, .weights = w + at,
                              .index = e };
        for (uint32_t i = 0; i < s->b.n_rows; i++)
            for (uint32_t j = 0; j < used; j++)
                if (c->id[i * used + j] == e) {
                    rows[at] = i;
                    w[at++] = c->w[i * used + j];
                    r->n_rows++;
                }
        n += r->n_rows > 0;
    }
    if (l->shared.gate.rows)
        runs[n++] = (sl_expert_run){ .ffn = l->shared, .n_rows = s->b.n_rows, .index = 1000,
                                     .weights = l->shared_gate.rows ? c->shared : NULL };
    return n;
}

static void experts(struct side *s, const sl_layer *l, const struct routed *c, cutting cut)
{
    sl_expert_run runs[10];
    uint32_t n = make_runs(s, l, c, runs), at = 0;
    if (cut == ONE_CALL) {
        DO(s->o->experts(s->dev, l, runs, n, SL_EXPERTS_FIRST | SL_EXPERTS_LAST, &s->b));
        return;
    }
    for (uint32_t i = 0; cut == STORED && i < n; i++) {     /* the last one is not stored */
        sl_expert_run *r = &runs[(i + 1) % n];
        if (r == &runs[n - 1]) continue;
        r->part = SL_RUN_STORE;
        r->out = s->stored + (size_t)at * D;
        at += r->rows ? r->n_rows : s->b.n_rows;
        DO(s->o->experts(s->dev, l, r, 1, i ? 0 : SL_EXPERTS_FIRST, &s->b));
        r->part = SL_RUN_ADD;
    }
    for (uint32_t i = 0; cut == CALL_EACH && i < n; i++)
        DO(s->o->experts(s->dev, l, runs + i, 1, i ? 0 : SL_EXPERTS_FIRST, &s->b));
    DO(s->o->experts(s->dev, l, runs, cut == STORED ? n : 0, SL_EXPERTS_LAST, &s->b));
}

/* Logits against the truth (the cpu device with float32 activations), relative to the largest: how
 * far the card's are, and the cpu device's own. agree, choices: of the card's routers and the
 * cpu's. */
struct outcome {
    double off, own;
    uint32_t agree, choices;
};

enum { CPU, TRUTH, GPU, SIDES };

static double distance(const float *a, const float *b, uint32_t n)
{
    double top = 0, off = 0;
    for (uint32_t i = 0; i < n; i++) {
        double o = fabs((double)a[i] - b[i]);
        top = fmax(top, fabs(b[i]));
        if (!(o <= off)) off = o;
    }
    return off / top;
}

/* One pass on all; the cpu's routers choose for all. */
static void pass(struct side *sides, const sl_batch *rows, cutting cut, struct outcome *ret)
{
    static struct routed routed[SIDES];
    static float logits[SIDES][ROWS * VOCAB];
    uint32_t n = rows->n_rows, half = sides->w.rope.n_rot / 2;
    for (struct side *s = sides; s < sides + SIDES; s++) {
        sl_batch *b = &s->b;
        b->n_rows = n, b->n_logits = rows->n_logits, b->token = rows->token, b->pos = rows->pos;
        b->seq = rows->seq, b->logit_row = rows->logit_row;
        if (!s->accel) {
            DO(s->o->embed(s->dev, &s->w, b));
            continue;
        }
        order(s, SL_Q_COMPUTE, SL_Q_UP);
        DO(s->o->copy(s->dev, SL_Q_UP, b->x, sides[CPU].b.x, (size_t)n * D * 4));
        DO(s->o->copy(s->dev, SL_Q_UP, b->cos, sides[CPU].b.cos, (size_t)n * half * 4));
        DO(s->o->copy(s->dev, SL_Q_UP, b->sin, sides[CPU].b.sin, (size_t)n * half * 4));
        order(s, SL_Q_UP, SL_Q_COMPUTE);
        finish(s, SL_Q_UP);     /* the cpu device goes on in x */
    }
    for (uint32_t i = 0; i < LAYERS; i++) {
        for (struct side *s = sides; s < sides + SIDES; s++) {
            const sl_layer *l = &s->layers[i];
            DO(s->o->qkv(s->dev, &s->w, l, &s->b));
            DO(s->o->attend(s->dev, l, &s->kv[i], &s->b));
            DO(s->o->post(s->dev, l, &s->b));
            if (l->moe) route(s, l, &routed[s - sides]);
            experts(s, l, &routed[CPU], cut);
        }
        uint32_t used = sides->layers[i].moe ? sides->layers[i].routing.n_used : 0;
        for (uint32_t e = 0; e < n * used; e++)
            ret->agree += routed[GPU].id[e] == routed[CPU].id[e];
        ret->choices += n * used;
    }
    for (struct side *s = sides; s < sides + SIDES; s++) {
        DO(s->o->head(s->dev, &s->w, &s->b));
        down(s, logits[s - sides], s->b.logits, (size_t)s->b.n_logits * VOCAB * 4);
    }
    double off = distance(logits[GPU], logits[TRUTH], rows->n_logits * VOCAB);
    double own = distance(logits[CPU], logits[TRUTH], rows->n_logits * VOCAB);
    if (!(off <= ret->off)) ret->off = off;
    if (!(own <= ret->own)) ret->own = own;
}

/* A prompt and the first rows of two other sequences; then chunks; then single rows. */
static void run_model(struct side *sides, cutting cut, struct outcome *ret)
{
    static int32_t token[ROWS];
    static uint32_t pos[ROWS], seq[ROWS], rows[ROWS];
    static const uint32_t plan[][3] = { { 40, 3, 0 }, { 0, 30, 1 }, { 1, 1, 1 }, { 9, 1, 9 },
                                        { 1, 1, 1 } };
    uint32_t done[3] = { 0 };
    for (size_t i = 0; i < SL_LEN(plan); i++) {
        uint32_t n = 0, logits = 0;
        for (uint32_t q = 0; q < 3; q++)
            for (uint32_t e = 0; e < plan[i][q]; e++, n++) {
                token[n] = (int32_t)t_below(VOCAB);
                seq[n] = 2 - q;
                pos[n] = done[q]++;
                if (n % 3 == 0) rows[logits++] = n;
            }
        sl_batch b = { .n_rows = n, .n_logits = logits, .token = token, .pos = pos, .seq = seq,
                       .logit_row = rows };
        pass(sides, &b, cut, ret);
    }
}

static void check_model(const struct shape *sh, cutting last)
{
    static struct model m;
    static struct side sides[SIDES];
    bool exact = sh->type == SL_F32 || sh->type == SL_F16;
    make_model(&m, sh);
    for (int cut = ONE_CALL; cut <= (int)last; cut++) {
        struct outcome r = { 0, 0, 0, 0 };
        for (int k = 0; k < SIDES; k++) {
            T_NEED(open_side(&sides[k], &m, k == GPU, k == TRUTH) == SL_OK, "%s",
                   sl_error(sides[k].ctx));
            fill_side(&sides[k]);
        }
        run_model(sides, (cutting)cut, &r);
        T_CHECK(r.off <= (exact ? 2e-3 : 2 * r.own),
                "%s, experts cut %d: logits off by %g of the largest, the cpu's by %g", sh->name,
                cut, r.off, r.own);
        T_CHECK(!exact || r.agree * 100 >= r.choices * 99, "%s: routers agree on %u of %u",
                sh->name, r.agree, r.choices);
        printf("%-28s %-5s cut %d: logits within %.2g (cpu %.2g), routers agree on %u of %u\n",
               sh->name, sl_type_get(sh->type)->name, cut, r.off, r.own, r.agree, r.choices);
        for (int k = 0; k < SIDES; k++) close_side(&sides[k]);
    }
    free_model(&m);
}

static void models(void)
{
    for (size_t i = 0; i < SL_LEN(shapes); i++) {
        struct shape sh = shapes[i];
        check_model(&sh, STORED);
        if (sh.type != SL_F32) continue;
        sh.type = SL_F16;
        check_model(&sh, ONE_CALL);
    }
}

#if !T_REAL_GPU
/* ---- what goes wrong ---- */

static void nothing_left(const char *what)
{
    fake_cuda_left left;
    fake_cuda_count(&left);
    T_CHECK(!left.allocs && !left.streams && !left.events && !left.registered,
            "%s: %zu allocations, %zu streams, %zu events, %zu registered are left", what,
            left.allocs, left.streams, left.events, left.registered);
}

static void refuses(const struct model *m, const char *what, sl_status want, const char *says)
{
    struct side s;
    sl_status st = open_side(&s, m, true, false);
    T_CHECK(st == want, "%s: %s", what, sl_status_name(st));
    T_CHECK(strstr(sl_error(s.ctx), says) && !strchr(sl_error(s.ctx), '\n'), "%s: \"%s\"", what,
            sl_error(s.ctx));
    close_side(&s);
    nothing_left(what);
    fake_cuda_reset();
}

static void log_line(void *user, sl_level level, const char *msg)
{
    if (level == SL_WARN) snprintf(user, 256, "%s", msg);
}

static void without_pinning(void)
{
    sl_accel a = { .kind = SL_ACCEL_CUDA };
    char warned[256] = "";
    sl_ctx *ctx = sl_ctx_create(log_line, warned);
    sl_device *dev = NULL;
    sl_device_params p = { .max_rows = 4, .widths = { .d_model = D, .cols = D, .n_head = 1,
                                                      .head_dim = D } };
    void *host = NULL, *mem = NULL;
    float back[64];
    static float mine[64];
    fake_cuda.no_pinning = 1;
    T_NEED(sl_accel_find(ctx, &a) == SL_OK && sl_device_create_accel(ctx, &a, &p, &dev) == SL_OK,
           "%s", sl_error(ctx));
    T_CHECK(strstr(warned, "copies will be slower"), "warned: %s", warned);
    T_NEED(dev->ops->alloc_host(dev, SL_ACC_SCRATCH, 256, &host) == SL_OK
           && dev->ops->alloc(dev, SL_ACC_SCRATCH, 256, &mem) == SL_OK, "%s", sl_error(ctx));
    T_CHECK(dev->ops->pin(dev, mine, sizeof mine) == SL_E_UNSUPPORTED, "pinned all the same");
    for (int i = 0; i < 64; i++) ((float *)host)[i] = (float)i;
    T_CHECK(dev->ops->copy(dev, SL_Q_UP, mem, host, 256) == SL_OK
            && dev->ops->copy(dev, SL_Q_DOWN, back, mem, 256) == SL_OK, "%s", sl_error(ctx));
    T_CHECK(!memcmp(back, host, 256), "what came back differs");
    sl_device_memory use;
    dev->ops->memory(dev, &use);
    T_CHECK(!use.pinned_bytes && use.bytes[SL_ACC_SCRATCH] == 512, "%llu pinned, %llu taken",
            (unsigned long long)use.pinned_bytes, (unsigned long long)use.bytes[SL_ACC_SCRATCH]);
    T_CHECK(dev->ops->alloc(dev, SL_ACC_KV, use.limit_bytes, &mem) == SL_E_NOMEM, "no limit");
    sl_device_destroy(&dev);
    sl_ctx_destroy(&ctx);
    nothing_left("without pinning");
    fake_cuda_reset();
}

/* Every launch of a layer may be the one that fails: the stage or the sync behind it says so, and
 * all later calls do. */
static void failing_launches(const struct model *m)
{
    for (int n = 1; n < 12; n++) {
        static struct side s;
        static const uint32_t pos[1] = { 0 }, seq[1] = { 0 };
        sl_event ev;
        T_NEED(open_side(&s, m, true, false) == SL_OK, "%s", sl_error(s.ctx));
        fill_side(&s);
        fake_cuda.fail_launch = n;
        s.b.n_rows = 1, s.b.pos = pos, s.b.seq = seq;
        sl_status st = s.o->qkv(s.dev, &s.w, &s.layers[0], &s.b);
        if (st == SL_OK) st = s.o->attend(s.dev, &s.layers[0], &s.kv[0], &s.b);
        if (st == SL_OK) st = s.o->post(s.dev, &s.layers[0], &s.b);
        if (st == SL_OK) st = s.o->head(s.dev, &s.w, &s.b);
        T_CHECK(st == SL_E_DEVICE || n > 9, "launch %d: %s", n, sl_status_name(st));
        if (st == SL_E_DEVICE) {
            char first[256];
            snprintf(first, sizeof first, "%s", sl_error(s.ctx));
            T_CHECK(strstr(first, "launch failure"), "launch %d: %s", n, first);
            T_CHECK(s.o->record(s.dev, SL_Q_COMPUTE, &ev) == SL_E_DEVICE
                    && !strcmp(first, sl_error(s.ctx)), "launch %d: then %s", n, sl_error(s.ctx));
        }
        close_side(&s);
        nothing_left("a launch that failed");
        fake_cuda_reset();
    }
}

static void faults(void)
{
    static struct model m;
    make_model(&m, &shapes[0]);
    fake_cuda.no_driver = 1;
    refuses(&m, "no driver", SL_E_UNSUPPORTED, "driver");
    fake_cuda.n_cards = 0;
    refuses(&m, "no card", SL_E_UNSUPPORTED, "no CUDA-capable device");
    fake_cuda.mem_bytes = 100 << 20;
    refuses(&m, "a small card", SL_E_ARG, "MiB");
    without_pinning();
    failing_launches(&m);
    free_model(&m);
}
#endif

int main(void)
{
#if T_REAL_GPU
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    sl_accel a = { .kind = SL_ACCEL_CUDA };
    if (sl_accel_find(ctx, &a) != SL_OK) return t_skip(sl_error(ctx));
    sl_ctx_destroy(&ctx);
#endif
    t_begin();
    sl_kernels_init(&reference, 0);
    for (uint32_t i = 0; i < SEQS * (N / BLOCK + 1); i++)
        tables[i % SEQS][i / SEQS] = SEQS * (N / BLOCK + 1) - 1 - i;
    for (uint32_t i = 0; i < SEQS; i++) blocks[i] = tables[i];
    models();
#if !T_REAL_GPU
    faults();
#endif
    return t_end();
}
#else
int main(void)
{
    return t_skip("no C++ compiler, with which CUDA kernels run on the CPU");
}
#endif
