/* offload/trace.c - routing traces: JSON lines written, read and played through a cache.
 * Reading holds everything in one block whose size the text bounds: a row has a line of its own,
 * and an expert's number stands behind a comma or a bracket of its own. */
#include "offload/sl_trace.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/sl_json.h"

#define MAX_EXPERTS ((uint64_t)1 << 24)     /* of all layers */
#define MAX_BYTES ((uint64_t)1 << 34)       /* of a file */
#define BUFFER ((size_t)1 << 18)            /* of a writer */
#define MODEL_BYTES sizeof ((sl_trace *)NULL)->model
#define RECENT_SEQS 256u                    /* that a row's sequence is looked for among */

/* ---- writing ---- */

struct sl_trace_writer {
    FILE *out;
    char *path;
};

sl_status sl_trace_create(sl_ctx *ctx, const char *path, const sl_trace_info *info,
                          sl_trace_writer **ret)
{
    sl_trace_writer *w = calloc(1, sizeof *w);
    json_t *model = json_stringn(info->model, strnlen(info->model, MODEL_BYTES - 1));
    if (!model) model = json_string("");    /* no UTF-8, or a character was cut in two */
    json_t *head = json_pack("{s:s, s:i, s:o, s:I, s:I, s:I}", "trace", "sluice-routing",
                             "version", 1, "model", model, "layers", (json_int_t)info->n_layer,
                             "experts", (json_int_t)info->n_expert,
                             "used", (json_int_t)info->n_used);
    char *line = head ? json_dumps(head, 0) : NULL;
    json_decref(head);
    sl_status st = SL_OK;
    if (!w || !line || !(w->path = strdup(path)))
        st = sl_fail(ctx, SL_E_NOMEM, "routing trace %s", path);
    else if (!(w->out = fopen(path, "w")))
        st = sl_fail(ctx, SL_E_IO, "open %s: %s", path, strerror(errno));
    if (st == SL_OK) {
        setvbuf(w->out, NULL, _IOFBF, BUFFER);
        fputs(line, w->out);
        fputc('\n', w->out);
        *ret = w;
    } else if (w) {
        free(w->path);
        free(w);
    }
    free(line);
    return st;
}

void sl_trace_add(sl_trace_writer *w, uint64_t pass, uint32_t seq, uint32_t pos, uint32_t layer,
                  const uint32_t *ids, uint32_t n)
{
    fprintf(w->out, "{\"pass\": %" PRIu64 ", \"sequence\": %" PRIu32 ", \"layer\": %" PRIu32
                    ", \"position\": %" PRIu32 ", \"experts\": [", pass, seq, layer, pos);
    for (uint32_t i = 0; i < n; i++) fprintf(w->out, "%s%" PRIu32, i ? ", " : "", ids[i]);
    fputs("]}\n", w->out);
}

sl_status sl_trace_close(sl_ctx *ctx, sl_trace_writer **w)
{
    if (!*w) return SL_OK;
    sl_status st = SL_OK;
    bool bad = ferror((*w)->out);
    if (fclose((*w)->out) || bad)
        st = sl_fail(ctx, SL_E_IO, "the routing trace %s could not be written whole", (*w)->path);
    free((*w)->path);
    free(*w);
    *w = NULL;
    return st;
}

/* ---- reading ---- */

/* A trace under way. */
typedef struct builder {
    sl_ctx *ctx;
    sl_trace t;                 /* first: the block begins with it */
    sl_trace_step *steps;
    uint32_t *experts, *seq, *pos;
    uint32_t *seq_names;        /* [n_seq]: the file's numbers */
    uint64_t n_rows, n_ids;
} builder;

static sl_status row_error(const sl_json *row, const char *what)
{
    return sl_fail(row->ctx, SL_E_FORMAT, "%s: expected %s", row->file, what);
}

static sl_status read_header(builder *b, const sl_json *h)
{
    char kind[32];
    uint32_t version;
    SL_TRY(sl_json_str(h, "trace", kind, sizeof kind));
    if (strcmp(kind, "sluice-routing"))
        return sl_fail(b->ctx, SL_E_FORMAT, "%s: trace: expected \"sluice-routing\", found \"%s\"",
                       h->file, kind);
    SL_TRY(sl_json_u32(h, "version", 1, 1, &version));
    SL_TRY(sl_json_str(h, "model", b->t.model, sizeof b->t.model));
    SL_TRY(sl_json_u32(h, "layers", 1, 1 << 16, &b->t.n_layer));
    SL_TRY(sl_json_u32(h, "experts", 1, 1 << 16, &b->t.n_expert));
    if ((uint64_t)b->t.n_layer * b->t.n_expert >= MAX_EXPERTS)
        return row_error(h, "fewer than 2^24 experts in all layers");
    return sl_json_u32(h, "used", 1, b->t.n_expert, &b->t.n_used);
}

/* The sequence's number in the order of appearance. */
static uint32_t seq_index(builder *b, uint32_t name)
{
    for (uint32_t i = 0; i < b->t.n_seq && i < RECENT_SEQS; i++)
        if (b->seq_names[b->t.n_seq - 1 - i] == name) return b->t.n_seq - 1 - i;
    b->seq_names[b->t.n_seq] = name;
    return b->t.n_seq++;
}

/* The step that the row belongs to: the last one, or a new one behind it. */
static sl_status find_step(builder *b, const sl_json *row, uint64_t pass, uint32_t layer,
                           uint32_t n_used)
{
    sl_trace_step *last = b->t.n_steps ? &b->steps[b->t.n_steps - 1] : NULL;
    if (last && last->pass == pass && last->layer == layer) {
        if (n_used != last->n_used) return row_error(row, "as many experts as in the row before");
        last->n_rows++;
        return SL_OK;
    }
    if (last && (pass < last->pass || (pass == last->pass && layer < last->layer)))
        return row_error(row, "ascending passes, and ascending layers in a pass");
    b->steps[b->t.n_steps++] =
        (sl_trace_step){ .pass = pass, .layer = layer, .n_rows = 1, .n_used = n_used,
                         .experts = b->experts + b->n_ids, .seq = b->seq + b->n_rows,
                         .pos = b->pos + b->n_rows };
    return SL_OK;
}

static sl_status read_row(builder *b, const sl_json *row)
{
    uint64_t pass;
    uint32_t layer, seq, pos, *ids = b->experts + b->n_ids;
    sl_json list;
    size_t n;
    SL_TRY(sl_json_u64(row, "pass", 0, INT64_MAX, &pass));
    SL_TRY(sl_json_u32(row, "sequence", 0, UINT32_MAX, &seq));
    SL_TRY(sl_json_u32(row, "layer", 0, b->t.n_layer - 1, &layer));
    SL_TRY(sl_json_u32(row, "position", 0, UINT32_MAX, &pos));
    SL_TRY(sl_json_array(row, "experts", 1, b->t.n_used, &list, &n));
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(list.v, i);
        json_int_t id = json_is_integer(v) ? json_integer_value(v) : -1;
        if (id < 0 || id >= b->t.n_expert) return sl_json_expected(&list, "numbers of experts");
        for (size_t j = 0; j < i; j++)
            if (ids[j] == (uint32_t)id) return sl_json_expected(&list, "distinct experts");
        ids[i] = (uint32_t)id;
    }
    SL_TRY(find_step(b, row, pass, layer, (uint32_t)n));
    b->seq[b->n_rows] = seq_index(b, seq);
    b->pos[b->n_rows++] = pos;
    b->n_ids += n;
    return SL_OK;
}

/* Every line; the first is the header, empty ones are not looked at. */
static sl_status read_lines(builder *b, const char *name, const char *text, size_t n)
{
    uint64_t line = 0;
    bool header = false;
    char place[300];
    for (size_t at = 0; at < n;) {
        const char *end = memchr(text + at, '\n', n - at);
        size_t bytes = (end ? (size_t)(end - text) : n) - at;
        sl_json j;
        snprintf(place, sizeof place, "%.256s: line %" PRIu64, name, ++line);
        if (bytes) {
            SL_TRY(sl_json_parse(b->ctx, place, text + at, bytes, &j));
            sl_status st = header ? read_row(b, &j) : read_header(b, &j);
            json_decref(j.v);
            SL_TRY(st);
            header = true;
        }
        at += bytes + 1;
    }
    return header ? SL_OK : sl_fail(b->ctx, SL_E_FORMAT, "%.256s: no routing trace: empty", name);
}

sl_status sl_trace_parse(sl_ctx *ctx, const char *name, const char *text, size_t n, sl_trace **ret)
{
    uint64_t rows = 1, ids = 1;
    for (size_t i = 0; i < n; i++) {
        rows += text[i] == '\n';
        ids += text[i] == ',' || text[i] == '[';
    }
    builder *b = NULL;
    uint64_t bytes = sizeof *b + rows * (sizeof *b->steps + 3 * sizeof(uint32_t))
                     + ids * sizeof(uint32_t);
    if (rows >= UINT32_MAX) return sl_fail(ctx, SL_E_FORMAT, "%s: too many rows", name);
    SL_TRY(sl_mem_alloc(ctx, SL_ACC_TABLES, bytes, (void **)&b));
    b->ctx = ctx;
    b->steps = (sl_trace_step *)(b + 1);
    b->experts = (uint32_t *)(b->steps + rows);
    b->seq = b->experts + ids;
    b->pos = b->seq + rows;
    b->seq_names = b->pos + rows;
    b->t.steps = b->steps;
    sl_status st = read_lines(b, name, text, n);
    if (st == SL_OK) *ret = &b->t;
    else sl_mem_free(ctx, b);
    return st;
}

void sl_trace_free(sl_ctx *ctx, sl_trace **t)
{
    if (*t) sl_mem_free(ctx, (char *)*t - offsetof(builder, t));
    *t = NULL;
}

sl_status sl_trace_load(sl_ctx *ctx, const char *path, sl_trace **ret)
{
    FILE *in = fopen(path, "r");
    if (!in) return sl_fail(ctx, SL_E_IO, "open %s: %s", path, strerror(errno));
    char *text = NULL;
    size_t n = 0, room = 0;
    sl_status st = SL_OK;
    while (st == SL_OK && !feof(in) && !ferror(in)) {
        size_t more = SL_MAX(room, BUFFER);
        char *grown = room + more <= MAX_BYTES ? realloc(text, room + more) : NULL;
        if (!grown) st = sl_fail(ctx, SL_E_NOMEM, "read %s: above %zu bytes", path, room);
        else {
            text = grown;
            room += more;
            n += fread(text + n, 1, room - n, in);
        }
    }
    if (ferror(in)) st = sl_fail(ctx, SL_E_IO, "read %s: %s", path, strerror(errno));
    fclose(in);
    if (st == SL_OK) st = sl_trace_parse(ctx, path, text, n, ret);
    free(text);
    return st;
}

/* ---- playing ---- */

/* A cache, and what the last step found in it. */
typedef struct play {
    sl_ecache *cache;
    uint32_t *ids, *slots;      /* [n_expert] */
    uint64_t *seen;             /* [n_expert]: number of the step that had it */
    uint64_t number;
    uint32_t n_uses, n_hits;    /* distinct experts of the last step */
} play;

static void play_end(play *p)
{
    free(p->seen);
    sl_ecache_destroy(&p->cache);
}

/* Sizes are the trace's, whatever the parameters say. */
static sl_status play_begin(sl_ctx *ctx, const sl_trace *t, const sl_ecache_params *params,
                            play *ret)
{
    sl_ecache_params p = *params;
    p.n_layer = t->n_layer;
    p.n_expert = t->n_expert;
    p.n_used = t->n_used;
    p.n_seq = SL_MAX(t->n_seq, 1);
    *ret = (play){ .seen = calloc(t->n_expert, sizeof *ret->seen + 2 * sizeof *ret->ids) };
    if (!ret->seen)
        return sl_fail(ctx, SL_E_NOMEM, "playing a trace of %u experts", t->n_expert);
    ret->ids = (uint32_t *)(ret->seen + t->n_expert);
    ret->slots = ret->ids + t->n_expert;
    sl_status st = sl_ecache_create(ctx, &p, &ret->cache);
    if (st != SL_OK) play_end(ret);
    return st;
}

static void play_step(play *p, const sl_trace_step *s)
{
    uint32_t n = 0, evicted;
    p->n_hits = 0;
    p->number++;
    sl_ecache_touch(p->cache, s->layer, s->experts, s->seq, s->n_rows, s->n_used);
    for (uint64_t i = 0; i < (uint64_t)s->n_rows * s->n_used; i++) {
        uint32_t id = s->experts[i];
        if (p->seen[id] == p->number) continue;
        p->seen[id] = p->number;
        p->slots[n] = sl_ecache_find(p->cache, s->layer, id);
        if (p->slots[n] != SL_ECACHE_NONE) {
            sl_ecache_pin(p->cache, p->slots[n]);
            p->n_hits++;
        }
        p->ids[n++] = id;
    }
    for (uint32_t i = 0; i < n; i++)
        if (p->slots[i] == SL_ECACHE_NONE)
            p->slots[i] = sl_ecache_take(p->cache, s->layer, p->ids[i], &evicted);
    for (uint32_t i = 0; i < n; i++)
        if (p->slots[i] != SL_ECACHE_NONE) sl_ecache_unpin(p->cache, p->slots[i]);
    p->n_uses = n;
}

sl_status sl_trace_play(sl_ctx *ctx, const sl_trace *t, const sl_ecache_params *params,
                        uint64_t from_pass, sl_trace_hits *ret)
{
    play p;
    sl_trace_hits hits = { 0, 0 };
    SL_TRY(play_begin(ctx, t, params, &p));
    for (uint32_t i = 0; i < t->n_steps; i++) {
        play_step(&p, &t->steps[i]);
        if (t->steps[i].pass < from_pass) continue;
        hits.uses += p.n_uses;
        hits.hits += p.n_hits;
    }
    play_end(&p);
    *ret = hits;
    return SL_OK;
}

/* ---- what a forecast needs ---- */

/* Layers of the trace that have experts, and turns of one row: added. */
static sl_status count_layers(sl_ctx *ctx, const sl_trace *t, uint32_t *ret_layers,
                              uint64_t *ret_turns)
{
    bool *has = calloc(t->n_layer, sizeof *has);
    if (!has) return sl_fail(ctx, SL_E_NOMEM, "table of %u layers", t->n_layer);
    for (uint32_t i = 0; i < t->n_steps; i++) {
        *ret_layers += !has[t->steps[i].layer];
        has[t->steps[i].layer] = true;
        *ret_turns += t->steps[i].n_rows == 1;
    }
    free(has);
    return SL_OK;
}

/* Hits of so many slots, and the variance of a turn's misses over that of as many coins. */
static sl_status play_slots(sl_ctx *ctx, const sl_trace *t, sl_policy policy, uint32_t n_slots,
                            uint64_t n_turns, sl_miss_point *ret)
{
    play p;
    sl_ecache_params params = { .n_classes = 1, .class_slots = &n_slots, .policy = policy };
    double uses = 0, misses = 0, squares = 0, n = 0;
    uint64_t turns = 0;
    SL_TRY(play_begin(ctx, t, &params, &p));
    for (uint32_t i = 0; i < t->n_steps; i++) {
        play_step(&p, &t->steps[i]);
        if (t->steps[i].n_rows > 1) continue;
        if (++turns <= n_turns / 2 && sl_ecache_n_used(p.cache) < n_slots) continue;
        double missed = p.n_uses - p.n_hits;
        n++;
        uses += p.n_uses;
        misses += missed;
        squares += missed * missed;
    }
    play_end(&p);
    double rate = uses > 0 ? misses / uses : 1, coins = uses > 0 ? uses / n * rate * (1 - rate) : 0;
    double variance = n > 0 ? squares / n - misses / n * (misses / n) : 0;
    ret->hit = 1 - rate;
    ret->spread = coins > 0 ? SL_MAX(variance / coins, 1) : 1;
    return SL_OK;
}

/* Blocks of n consecutive rows of a layer: how many different experts each uses, on average. Rows
 * of one pass, as long as there are passes of so many: what is drawn varies less than a prompt. */
typedef struct block { uint32_t n_rows, n_experts, first; } block;

static double distinct_share(const sl_trace *t, uint32_t n, block *blocks, uint32_t *seen)
{
    double sum = 0, n_blocks = 0;
    uint32_t most = 0;
    for (uint32_t i = 0; i < t->n_steps; i++) most = SL_MAX(most, t->steps[i].n_rows);
    uint32_t number = 1;        /* of a block; in seen: the last one that had the expert */
    memset(blocks, 0, t->n_layer * sizeof *blocks);
    memset(seen, 0, (size_t)t->n_layer * t->n_expert * sizeof *seen);
    for (uint32_t i = 0; i < t->n_steps; i++) {
        const sl_trace_step *s = &t->steps[i];
        block *b = &blocks[s->layer];
        if (n <= most && s->n_rows < n) continue;
        if (n <= most) *b = (block){ 0, 0, 0 };
        uint32_t *layer = seen + (size_t)s->layer * t->n_expert;
        for (uint32_t r = 0; r < s->n_rows; r++) {
            if (!b->n_rows) b->first = number++;
            for (uint32_t k = 0; k < s->n_used; k++) {
                uint32_t *x = &layer[s->experts[(size_t)r * s->n_used + k]];
                b->n_experts += *x != b->first;
                *x = b->first;
            }
            if (++b->n_rows < n) continue;
            sum += b->n_experts;
            n_blocks++;
            *b = (block){ 0, 0, 0 };
        }
    }
    return n_blocks > 0 ? sum / n_blocks / t->n_expert : 0;
}

static sl_status find_distinct(sl_ctx *ctx, const sl_trace *t, sl_miss_model *m)
{
    block *blocks = NULL;
    uint64_t bytes = t->n_layer * sizeof *blocks
                   + (uint64_t)t->n_layer * t->n_expert * sizeof(uint32_t);
    SL_TRY(sl_mem_alloc(ctx, SL_ACC_TABLES, bytes, (void **)&blocks));
    for (uint32_t i = 0; i < SL_MISS_POINTS - 1; i++) {
        uint32_t rows = 2u << i;
        double share = distinct_share(t, rows, blocks, (uint32_t *)(void *)(blocks + t->n_layer));
        if (!(share > 0)) break;
        m->distinct[m->n_distinct++] = (sl_distinct_point){ rows, share };
    }
    sl_mem_free(ctx, blocks);
    return SL_OK;
}

sl_status sl_trace_miss_model(sl_ctx *ctx, const sl_trace *t, sl_policy policy, sl_miss_model *ret)
{
    static const double shares[] = { 0.03, 0.06, 0.1,  0.15, 0.2, 0.27,
                                     0.35, 0.45, 0.55, 0.67, 0.8, 0.92 };
    sl_miss_model m = { .traced = true };
    uint32_t n_layers = 0;
    uint64_t n_turns = 0;
    SL_TRY(count_layers(ctx, t, &n_layers, &n_turns));
    double all = (double)n_layers * t->n_expert;
    for (size_t i = 0; i < SL_LEN(shares) && n_turns; i++) {
        uint32_t n_slots = (uint32_t)(shares[i] * all);
        sl_miss_point *p = &m.at[m.n_points];
        if (n_slots < t->n_used || (m.n_points && p[-1].share >= n_slots / all)) continue;
        p->share = n_slots / all;
        SL_TRY(play_slots(ctx, t, policy, n_slots, n_turns, p));
        m.n_points++;
    }
    SL_TRY(find_distinct(ctx, t, &m));
    *ret = m;
    return SL_OK;
}

/* Rows [from, from + max) of a step; whether there are any. */
static bool cut_step(const sl_trace_step *s, uint64_t from, uint32_t max, sl_trace_step *ret)
{
    if (from >= s->n_rows) return false;
    *ret = *s;
    ret->n_rows = (uint32_t)SL_MIN(s->n_rows - from, max);
    ret->experts += from * s->n_used;
    ret->seq += from;
    ret->pos += from;
    return true;
}

static void count_misses(play *p, const sl_trace *t, const sl_plan *plan,
                         const uint32_t *layer_class, uint64_t from_pass, sl_misses *ret)
{
    uint32_t end;
    for (uint32_t i = 0; i < t->n_steps; i = end) {
        uint32_t most = 1;
        for (end = i; end < t->n_steps && t->steps[end].pass == t->steps[i].pass; end++)
            most = SL_MAX(most, t->steps[end].n_rows);
        for (uint64_t row = 0; row < most; row += plan->max_rows)
            for (uint32_t k = i; k < end; k++) {
                sl_trace_step cut;
                if (!cut_step(&t->steps[k], row, plan->max_rows, &cut)) continue;
                play_step(p, &cut);
                uint32_t missed = SL_MIN(p->n_uses - p->n_hits, (uint32_t)SL_MAX_MISSED);
                if (most > 1 || cut.pass < from_pass) continue;
                ret->turns[layer_class[cut.layer]][missed]++;
            }
    }
}

sl_status sl_trace_misses(sl_ctx *ctx, const sl_trace *t, const sl_shape *shape,
                          const sl_plan *plan, uint64_t from_pass, sl_misses *ret)
{
    assert(plan->weights == SL_WEIGHTS_STREAMED && plan->n_classes && plan->max_rows);
    if (t->n_layer != shape->n_layer)
        return sl_fail(ctx, SL_E_ARG, "a routing trace of %u layers for a model of %u", t->n_layer,
                       shape->n_layer);
    for (uint32_t i = 0; i < t->n_steps; i++) {
        const sl_trace_step *s = &t->steps[i];
        const sl_layer_shape *l = &shape->layers[s->layer];
        for (uint64_t k = 0; k < (uint64_t)s->n_rows * s->n_used; k++)
            if (s->experts[k] >= l->n_expert)
                return sl_fail(ctx, SL_E_ARG, "a routing trace with expert %u of layer %u: the "
                               "model has %u", s->experts[k], s->layer, l->n_expert);
    }
    uint32_t slots[SL_SLOT_CLASSES], *layer_class = calloc(t->n_layer, sizeof *layer_class);
    if (!layer_class) return sl_fail(ctx, SL_E_NOMEM, "table of %u layers", t->n_layer);
    for (uint32_t c = 0; c < plan->n_classes; c++) slots[c] = plan->cls[c].n_slots;
    for (uint32_t l = 0; l < t->n_layer; l++)
        layer_class[l] = shape->layers[l].n_expert ? sl_plan_class(plan, &shape->layers[l])
                                                   : SL_ECACHE_NO_CLASS;
    sl_ecache_params params = { .layer_class = layer_class, .n_classes = plan->n_classes,
                                .class_slots = slots, .policy = (sl_policy)plan->policy };
    play p;
    sl_misses misses = { .turns = { { 0 } } };
    sl_status st = play_begin(ctx, t, &params, &p);
    if (st == SL_OK) {
        count_misses(&p, t, plan, layer_class, from_pass, &misses);
        play_end(&p);
        *ret = misses;
    }
    free(layer_class);
    return st;
}
