/* tests/t_stream.c - experts and dense weights on their way from files that the test makes: every
 * byte that is given out, for few and many slots, one and two classes of them, in order and as they
 * land, sections in rings of 1 to 5 layers, passes that end in the middle, lookahead, faults; over
 * every way to read; and the invariants after every call. */
#include "offload/sl_stream.h"

#include "tests/t.h"

#include <errno.h>

enum {
    LAYERS = 6, EXPERTS = 12, USED = 3, MAX_ROWS = 9, N_SEQ = 4,
    MAX_DENSE = 4,              /* slices of a layer */
    ROW_BYTES = 1300, N_ROWS = 2000,        /* of a table that lies over the rest */
    FILES = 2, FILE_BYTES = 3 << 20,
    PASSES = 12
};

struct way { const char *name; bool direct, threads; };

static const struct way ways[] = {
    { "ring, direct", true, false }, { "ring, page cache", false, false },
    { "threads, direct", true, true }, { "threads, page cache", false, true },
};

/* How one stream is set up. */
struct setup {
    const struct way *way;
    uint32_t n_slots;           /* of each class */
    uint32_t n_classes;         /* 1: slots of the largest size */
    uint32_t n_dense;           /* layers whose dense weights stay */
    bool no_ahead;
    sl_policy policy;
    sl_weights_place place;
    char name[120];
};

/* The store's faults. */
struct faults {
    sl_store_fault_kind kind;
    uint32_t in, given;         /* one of `in` requests */
};

static sl_ctx *ctx;
static unsigned char *content[FILES];
static int fds[FILES];
static char paths[FILES][256];
static sl_layer_shape layers[LAYERS];
static sl_shape shape = { .n_layer = LAYERS, .layers = layers };
static sl_expert_slices experts[LAYERS * EXPERTS];
static const sl_slice table = { .file = 1, .offset = 777, .bytes = ROW_BYTES * N_ROWS };
static sl_slice dense[LAYERS * MAX_DENSE];
static uint32_t dense_first[LAYERS + 1];

/* ---- the model ---- */

static void make_files(const char *folder)
{
    for (uint32_t f = 0; f < FILES; f++) {
        content[f] = malloc(FILE_BYTES);
        T_NEED(content[f], "memory");
        for (uint32_t i = 0; i < FILE_BYTES; i++)
            content[f][i] = (unsigned char)((i + f * 77u) * 2654435761u >> 13);
        snprintf(paths[f], sizeof paths[f], "%s/sl-stream-XXXXXX", folder);
        fds[f] = mkstemp(paths[f]);
        T_NEED(fds[f] >= 0, "file in %s: %s", folder, strerror(errno));
        for (size_t at = 0; at < FILE_BYTES;) {
            ssize_t n = write(fds[f], content[f] + at, FILE_BYTES - at);
            T_NEED(n > 0, "write %s: %s", paths[f], strerror(errno));
            at += (size_t)n;
        }
    }
}

static sl_slice next_slice(uint64_t *at, uint64_t bytes)
{
    uint32_t file = (uint32_t)(at[0] > at[1]);
    sl_slice s = { .file = file, .offset = at[file], .bytes = bytes };
    at[file] += bytes + t_below(3000);
    T_NEED(at[file] <= FILE_BYTES, "the model outgrows its files");
    return s;
}

/* Layer 0 has no experts; even layers have larger ones than odd layers. */
static void make_model(void)
{
    uint64_t at[FILES] = { 100, 100 };
    uint32_t n = 0;
    for (uint32_t l = 0; l < LAYERS; l++) {
        sl_layer_shape *ls = &layers[l];
        uint64_t big = l % 2 ? 1 : 3;
        dense_first[l] = n;
        for (uint32_t i = t_below(MAX_DENSE) + 1; i > 0; i--) {
            dense[n] = next_slice(at, 1 + t_below(30000));
            ls->section_bytes += sl_shape_room(dense[n++].bytes);
        }
        if (!l) continue;
        ls->n_expert = EXPERTS;
        ls->n_used = USED;
        ls->slot_bytes = 2 * sl_shape_room(3001 * big) + sl_shape_room(5000 * big);
        for (uint32_t x = 0; x < EXPERTS; x++)
            experts[l * EXPERTS + x] = (sl_expert_slices){
                .gate = next_slice(at, 3001 * big), .up = next_slice(at, 3001 * big),
                .down = next_slice(at, 5000 * big) };
    }
    dense_first[LAYERS] = n;
}

static sl_plan make_plan(const struct setup *u)
{
    sl_plan p = { .weights = u->place, .n_classes = u->n_classes, .n_seq = N_SEQ,
                  .n_dense_layers = u->n_dense };
    for (uint32_t l = u->n_dense; l < LAYERS; l++)
        p.section_bytes = SL_MAX(p.section_bytes, layers[l].section_bytes);
    for (uint32_t l = 1; l < LAYERS; l++) {
        sl_slot_class *k = &p.cls[u->n_classes == 2 ? l % 2 : 0];
        k->slot_bytes = SL_MAX(k->slot_bytes, layers[l].slot_bytes);
        k->n_experts += EXPERTS;
    }
    for (uint32_t c = 0; c < u->n_classes; c++)
        p.cls[c].n_slots = SL_MIN(u->n_slots, p.cls[c].n_experts);
    return p;
}

static void open_stream(struct setup *u, const sl_store_faults *seam, sl_store **store,
                        sl_stream **s)
{
    static const uint64_t bytes[FILES] = { FILE_BYTES, FILE_BYTES };
    const char *const names[FILES] = { paths[0], paths[1] };
    sl_store_params p = { .direct = u->way->direct, .threads = u->way->threads, .depth = 8,
                          .request_bytes = 8192, .ahead_bytes = 4096, .faults = seam };
    sl_plan plan = make_plan(u);
    sl_stream_params sp = { .plan = &plan, .shape = &shape, .n_expert = EXPERTS, .n_used = USED,
                            .experts = experts, .policy = u->policy, .no_ahead = u->no_ahead };
    if (u->place == SL_WEIGHTS_STREAMED) {
        plan.max_rows = MAX_ROWS * 20;
        plan.embed_rows_bytes = sl_plan_rows_bytes(ROW_BYTES, plan.max_rows);
        sp.table = table;
        sp.row_bytes = ROW_BYTES;
    }
    static uint32_t first[LAYERS + 1];      /* outlives the call, as it must */
    for (uint32_t l = u->n_dense; l <= LAYERS; l++) first[l - u->n_dense] = dense_first[l];
    if (u->n_dense < LAYERS) {
        sp.dense = dense;
        sp.dense_first = first;
    }
    snprintf(u->name, sizeof u->name, "%s, %u slots of %u sizes, %u of %d layers stay, %s%s",
             u->way->name, u->n_slots, u->n_classes, u->n_dense, LAYERS,
             u->place == SL_WEIGHTS_STREAMED ? sl_policy_name(u->policy) :
             u->place == SL_WEIGHTS_MAPPED ? "mapped" : "resident", u->no_ahead ? "" : ", ahead");
    T_NEED(sl_store_create(ctx, fds, bytes, names, FILES, &p, store) == SL_OK, "%s", sl_error(ctx));
    T_NEED(sl_stream_create(ctx, *store, &sp, s) == SL_OK, "%s", sl_error(ctx));
    sl_stream_check(*s);
}

/* ---- what is given out ---- */

static void check_bytes(const struct setup *u, const char *what, sl_slice s, const void *got)
{
    T_CHECK(!memcmp(got, content[s.file] + s.offset, s.bytes),
            "%s: %s: %llu bytes at offset %llu of file %u differ", u->name, what,
            (unsigned long long)s.bytes, (unsigned long long)s.offset, s.file);
}

static void check_expert(const struct setup *u, uint32_t layer, uint32_t id,
                         const sl_expert_data *d)
{
    const sl_expert_slices *x = &experts[layer * EXPERTS + id];
    check_bytes(u, "gate", x->gate, d->gate);
    check_bytes(u, "up", x->up, d->up);
    check_bytes(u, "down", x->down, d->down);
}

static uint32_t random_rows(uint32_t *expert_id, uint32_t *seq, uint32_t *ids, uint32_t *ret_n)
{
    bool chosen[EXPERTS] = { false };
    uint32_t n_rows = 1 + t_below(t_below(3) ? 2 : MAX_ROWS), n = 0, skew = t_below(EXPERTS);
    for (uint32_t r = 0; r < n_rows; r++) {
        seq[r] = r * N_SEQ / n_rows;
        for (uint32_t j = 0; j < USED; j++) {
            bool again = true;
            uint32_t *id = &expert_id[r * USED + j];
            while (again) {
                *id = t_below(2) ? t_below(EXPERTS) : (skew + t_below(4)) % EXPERTS;
                again = false;
                for (uint32_t k = 0; k < j; k++) again |= expert_id[r * USED + k] == *id;
            }
            chosen[*id] = true;
        }
    }
    for (uint32_t x = 0; x < EXPERTS; x++)
        if (chosen[x]) ids[n++] = x;
    *ret_n = n;
    return n_rows;
}

/* Guesses for any later layer, right ones among them by chance. */
static void look_ahead(sl_stream *s, uint32_t layer)
{
    uint32_t ids[4], n = 0, next = layer + 1 + t_below(2);
    if (next >= LAYERS || t_below(2)) return;
    for (uint32_t x = t_below(4); x < EXPERTS && n < SL_LEN(ids); x += 1 + t_below(4)) ids[n++] = x;
    sl_stream_ahead(s, next, ids, n, t_below(2));
    sl_stream_check(s);
}

static void one_layer(const struct setup *u, sl_stream *s, uint32_t layer, const struct faults *f)
{
    uint32_t expert_id[MAX_ROWS * USED], seq[MAX_ROWS], ids[EXPERTS], index[EXPERTS], n, got;
    uint32_t given = 0, failed = 0;
    bool seen[EXPERTS] = { false };
    sl_expert_data data[EXPERTS];
    sl_stream_stats a, b;
    sl_stream_ask ask = { .layer = layer, .ids = ids, .expert_id = expert_id, .seq = seq,
                          .n_used = USED, .in_order = t_below(2) };
    ask.n_rows = random_rows(expert_id, seq, ids, &n);
    ask.n = n;
    sl_stream_get_stats(s, &a);
    sl_stream_begin(s, &ask);
    sl_stream_check(s);
    look_ahead(s, layer);
    while ((got = sl_stream_ready(s, index, data)) > 0) {
        sl_stream_check(s);
        T_NEED(given + got <= n, "%s: %u of %u given out", u->name, given + got, n);
        for (uint32_t i = 0; i < got; i++) {
            T_NEED(index[i] < n && !seen[index[i]] && (!i || index[i] > index[i - 1]),
                   "%s: index %u of %u", u->name, index[i], n);
            T_CHECK(!ask.in_order || index[i] == given + i, "%s: %u is not next", u->name,
                    index[i]);
            seen[index[i]] = true;
            if (data[i].gate) check_expert(u, layer, ids[index[i]], &data[i]);
            else failed++;
        }
        given += got;
        look_ahead(s, layer);
        for (uint32_t i = 0; i < got; i++) {
            /* still there, whatever was read meanwhile */
            if (data[i].gate) check_expert(u, layer, ids[index[i]], &data[i]);
            if (data[i].gate) sl_stream_done(s, index[i]);
            sl_stream_check(s);
        }
    }
    sl_stream_get_stats(s, &b);
    T_CHECK(given == n, "%s: %u of %u given out", u->name, given, n);
    T_CHECK(!failed || (f && f->given), "%s: %u fail without a fault: %s", u->name, failed,
            sl_stream_error(s));
    T_CHECK(!failed || strstr(sl_stream_error(s), "slice of"), "%s: %s", u->name,
            sl_stream_error(s));
    T_CHECK(b.failed - a.failed == failed && b.hits + b.misses - a.hits - a.misses == n,
            "%s: statistics", u->name);
}

/* False: the layer could not be read. */
static bool one_section(const struct setup *u, sl_stream *s, uint32_t layer,
                        const struct faults *f)
{
    const char *at = NULL;
    if (sl_stream_dense(ctx, s, layer, &at) != SL_OK) {
        char want[20];
        snprintf(want, sizeof want, "layer %u: ", layer);
        T_CHECK(f && f->given && strstr(sl_error(ctx), want) && strstr(sl_error(ctx), "slice of"),
                "%s: %s", u->name, sl_error(ctx));
        sl_stream_check(s);
        return false;
    }
    for (uint32_t i = dense_first[layer]; i < dense_first[layer + 1]; i++) {
        check_bytes(u, "dense", dense[i], at + sl_store_lead(dense[i]));
        at += sl_store_room(dense[i]);
    }
    sl_stream_check(s);
    return true;
}

/* Passes through all layers, some of which end in the middle of one. */
/* Rows of the table, some of them twice, while other reads are on their way. */
static void some_rows(const struct setup *u, sl_stream *s, const struct faults *f)
{
    int32_t ids[MAX_ROWS * 20];
    bool failed[MAX_ROWS * 20];
    const void *rows;
    uint32_t n = 1 + t_below(t_below(2) ? 4 : MAX_ROWS * 20);
    for (uint32_t i = 0; i < n; i++) ids[i] = (int32_t)t_below(N_ROWS);
    sl_stream_rows(s, ids, n, &rows, failed);
    for (uint32_t i = 0; i < n; i++) {
        sl_slice row = { .file = table.file, .bytes = ROW_BYTES,
                         .offset = table.offset + (uint64_t)ids[i] * ROW_BYTES };
        T_CHECK(!failed[i] || f, "%s: row %d failed", u->name, ids[i]);
        if (!failed[i]) check_bytes(u, "row", row, (const char *)rows + (size_t)i * ROW_BYTES);
    }
}

static void passes(const struct setup *u, sl_stream *s, const struct faults *f, uint32_t n)
{
    for (uint32_t p = 0; p < n; p++) {
        uint32_t end = t_below(3) ? LAYERS : t_below(LAYERS);
        if (u->place == SL_WEIGHTS_STREAMED) some_rows(u, s, f);
        for (uint32_t l = 0; l < LAYERS; l++) {
            if (l >= u->n_dense && !one_section(u, s, l, f)) break;
            if (l == end) break;
            if (layers[l].n_expert) one_layer(u, s, l, f);
            if (l >= u->n_dense) sl_stream_dense_done(s, l);
            sl_stream_check(s);
        }
    }
}

static void check_streamed(const struct way *w)
{
    static const uint32_t slots[] = { 2, 3, USED + 1, 9, 17, LAYERS * EXPERTS };
    static const uint32_t stay[] = { LAYERS, LAYERS - 1, LAYERS - 2, 1, 0 };
    for (uint32_t i = 0; i < SL_LEN(slots); i++)
        for (uint32_t j = 0; j < SL_LEN(stay); j++) {
            struct setup u = { .way = w, .n_slots = slots[i], .n_classes = 1 + t_below(2),
                               .n_dense = stay[j], .no_ahead = t_below(3) == 0,
                               .policy = (sl_policy)t_below(SL_POLICY_STATIC),
                               .place = SL_WEIGHTS_STREAMED };
            sl_store *store = NULL;
            sl_stream *s = NULL;
            sl_stream_stats st;
            open_stream(&u, NULL, &store, &s);
            passes(&u, s, NULL, PASSES);
            sl_stream_get_stats(s, &st);
            T_CHECK(st.failed == 0 && st.misses && st.read_bytes && st.stall_s >= 0, "%s: stats",
                    u.name);
            T_CHECK(u.no_ahead ? !st.ahead_bytes : st.ahead_used_bytes <= st.ahead_bytes,
                    "%s: %llu bytes ahead", u.name, (unsigned long long)st.ahead_bytes);
            sl_stream_destroy(&s);
            sl_store_destroy(&store);
        }
}

struct progress { uint64_t last, all; uint32_t calls; };

static void on_progress(void *user, uint64_t done, uint64_t all)
{
    struct progress *p = user;
    T_CHECK(done >= p->last && done <= all && (!p->all || all == p->all), "progress %llu of %llu",
            (unsigned long long)done, (unsigned long long)all);
    p->last = done;
    p->all = all;
    p->calls++;
}

/* A slot for every expert, and the file's own pages. */
static void check_all_there(const struct way *w)
{
    static const sl_weights_place places[] = { SL_WEIGHTS_RESIDENT, SL_WEIGHTS_MAPPED };
    for (uint32_t i = 0; i < SL_LEN(places); i++) {
        struct setup u = { .way = w, .n_slots = LAYERS * EXPERTS, .n_dense = LAYERS,
                           .n_classes = places[i] == SL_WEIGHTS_MAPPED ? 0 : 2, .no_ahead = true,
                           .place = places[i] };
        sl_store *store = NULL;
        sl_stream *s = NULL;
        struct progress p = { 0 };
        if (places[i] == SL_WEIGHTS_MAPPED) u.n_classes = 1;
        open_stream(&u, NULL, &store, &s);
        if (places[i] == SL_WEIGHTS_RESIDENT) {
            T_NEED(sl_stream_fill(ctx, s, on_progress, &p) == SL_OK, "%s", sl_error(ctx));
            T_CHECK(p.calls > 1 && p.last == p.all && p.all, "%u calls of progress", p.calls);
        }
        T_CHECK(!sl_stream_wants_guess(s), "%s: wants to look ahead", u.name);
        passes(&u, s, NULL, PASSES);
        sl_stream_destroy(&s);
        sl_store_destroy(&store);
    }
}

/* ---- faults ---- */

static sl_store_fault ask_fault(void *user, uint32_t file, uint64_t offset, uint64_t bytes)
{
    struct faults *f = user;
    (void)file, (void)offset, (void)bytes;
    if (!f->in || t_below(f->in)) return (sl_store_fault){ SL_FAULT_NONE, 0, 0 };
    f->given++;
    return (sl_store_fault){ f->kind, t_below(3) ? 1 + t_below(5000) : 0, 1e-4 };
}

static void check_faults(const struct way *w, sl_store_fault_kind kind)
{
    struct setup u = { .way = w, .n_slots = 2 + t_below(9), .n_classes = 1 + t_below(2),
                       .n_dense = LAYERS / 2, .policy = SL_POLICY_DEFAULT,
                       .place = SL_WEIGHTS_STREAMED };
    struct faults f = { .kind = kind, .in = 40 };
    sl_store_faults seam = { ask_fault, &f };
    sl_store *store = NULL;
    sl_stream *s = NULL;
    open_stream(&u, NULL, &store, &s);
    sl_store_set_faults(store, &seam);
    while (f.given < 200) passes(&u, s, &f, 1);
    sl_store_set_faults(store, NULL);       /* as if nothing had been */
    for (uint32_t l = LAYERS / 2; l < LAYERS; l++) {
        if (!one_section(&u, s, l, &f)) continue;       /* read while there were faults */
        sl_stream_dense_done(s, l);
    }
    sl_stream_stats a, b;
    sl_stream_get_stats(s, &a);
    passes(&u, s, &f, PASSES);
    sl_stream_get_stats(s, &b);
    T_CHECK(kind != SL_FAULT_EIO || a.failed, "%s: none of %u faults failed", u.name, f.given);
    sl_stream_destroy(&s);
    sl_store_destroy(&store);
}

/* Reads that are on their way when it ends. */
static void check_left_open(const struct way *w)
{
    for (int k = 0; k < 20; k++) {
        struct setup u = { .way = w, .n_slots = 20, .n_classes = 2, .n_dense = t_below(LAYERS + 1),
                           .place = SL_WEIGHTS_STREAMED };
        uint32_t ids[4] = { 1, 3, 5, 9 }, seq = 0;
        const char *at;
        sl_store *store = NULL;
        sl_stream *s = NULL;
        open_stream(&u, NULL, &store, &s);
        if (u.n_dense < LAYERS) T_CHECK(!sl_stream_dense(ctx, s, u.n_dense, &at), "dense");
        sl_stream_ahead(s, 3, ids, 4, k % 2);
        sl_stream_ask ask = { .layer = 2, .ids = ids, .n = 3, .expert_id = ids, .seq = &seq,
                              .n_rows = 1, .n_used = USED };
        sl_stream_begin(s, &ask);
        sl_stream_check(s);
        sl_stream_destroy(&s);
        sl_store_destroy(&store);
    }
}

int main(void)
{
    static const sl_store_fault_kind kinds[] = {
        SL_FAULT_EIO, SL_FAULT_AGAIN, SL_FAULT_SHORT, SL_FAULT_END, SL_FAULT_DELAY,
    };
    sl_mem_report mem;
    alarm(240);     /* a hang fails */
    t_begin();
    const char *folder = getenv("SLUICE_BUILD_DIR");    /* rather a disk than /tmp */
    ctx = sl_ctx_create(NULL, NULL);
    make_files(folder ? folder : ".");
    make_model();
    for (uint32_t i = 0; i < SL_LEN(ways); i++) {
        check_streamed(&ways[i]);
        check_all_there(&ways[i]);
        check_left_open(&ways[i]);
        for (uint32_t k = 0; k < SL_LEN(kinds); k++) check_faults(&ways[i], kinds[k]);
    }
    for (uint32_t f = 0; f < FILES; f++) {
        close(fds[f]);
        unlink(paths[f]);
        free(content[f]);
    }
    sl_mem_get(ctx, &mem);
    T_CHECK(!mem.total, "%llu bytes left behind", (unsigned long long)mem.total);
    sl_ctx_destroy(&ctx);
    return t_end();
}
