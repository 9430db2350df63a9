/* tests/t_trace.c - routing traces: what was written is read back, malformed files are refused with
 * the line, and playing one through a cache counts hits as by hand. */
#include "offload/sl_trace.h"

#include "tests/t.h"

#define HEAD "{\"trace\": \"sluice-routing\", \"version\": 1, \"model\": \"m\", \"layers\": 3, " \
             "\"experts\": 8, \"used\": 2}\n"
#define ROW(pass, seq, layer, pos, ids) \
    "{\"pass\": " #pass ", \"sequence\": " #seq ", \"layer\": " #layer ", \"position\": " #pos \
    ", \"experts\": " ids "}\n"

static sl_ctx *ctx;

/* Random passes, written and read back. */
static void round_trip(void)
{
    enum { L = 5, E = 70, K = 6, PASSES = 40, ROWS = 9 };
    static uint32_t ids[PASSES][L][ROWS][K], seq[PASSES][ROWS], n_rows[PASSES], seen[1000];
    char path[] = "/tmp/sl-trace-XXXXXX";
    int fd = mkstemp(path);
    T_NEED(fd >= 0, "mkstemp");
    close(fd);
    sl_trace_info info = { "A \"model\"\nof two lines", L, E, K };
    sl_trace_writer *w = NULL;
    T_NEED(sl_trace_create(ctx, path, &info, &w) == SL_OK, "%s", sl_error(ctx));
    for (uint32_t p = 0; p < PASSES; p++) {
        n_rows[p] = 1 + t_below(ROWS);
        for (uint32_t r = 0; r < n_rows[p]; r++) seq[p][r] = 7 + t_below(3);
        for (uint32_t l = 1; l < L; l++)            /* layer 0 has no experts */
            for (uint32_t r = 0; r < n_rows[p]; r++) {
                uint32_t from = t_below(E);
                for (uint32_t j = 0; j < K; j++) ids[p][l][r][j] = (from + 11 * j) % E;
                sl_trace_add(w, 3 * p, seq[p][r], p + r, l, ids[p][l][r], K);
            }
    }
    T_CHECK(sl_trace_close(ctx, &w) == SL_OK && !w, "%s", sl_error(ctx));
    sl_trace *t = NULL;
    T_NEED(sl_trace_load(ctx, path, &t) == SL_OK, "%s", sl_error(ctx));
    T_CHECK(t->n_layer == L && t->n_expert == E && t->n_used == K && t->n_seq == 3
            && !strcmp(t->model, info.model) && t->n_steps == PASSES * (L - 1),
            "%u steps of %u sequences, model %s", t->n_steps, t->n_seq, t->model);
    memset(seen, 0xff, sizeof seen);
    for (uint32_t i = 0; i < t->n_steps; i++) {
        const sl_trace_step *s = &t->steps[i];
        uint32_t p = i / (L - 1), l = 1 + i % (L - 1);
        T_CHECK(s->pass == 3 * p && s->layer == l && s->n_rows == n_rows[p] && s->n_used == K,
                "step %u", i);
        for (uint32_t r = 0; r < n_rows[p]; r++) {
            T_CHECK(!memcmp(s->experts + r * K, ids[p][l][r], sizeof ids[p][l][r]), "experts");
            T_CHECK(s->pos[r] == p + r, "position");
            uint32_t *name = &seen[s->seq[r]];
            if (*name == UINT32_MAX) *name = seq[p][r];
            T_CHECK(*name == seq[p][r], "sequence");
        }
    }
    sl_trace_free(ctx, &t);
    T_CHECK(!t, "free");
    unlink(path);
}

static void check_bad(const char *text, const char *want)
{
    sl_trace *t = NULL;
    size_t n = strlen(text);
    char *copy = t_guarded(n);
    memcpy(copy, text, n);
    sl_status st = sl_trace_parse(ctx, "FILE", copy, n, &t);
    T_CHECK(st == SL_E_FORMAT && !t, "accepted, or status %d: %s", (int)st, text);
    T_CHECK(strstr(sl_error(ctx), "FILE") && strstr(sl_error(ctx), want), "message: %s, for %s",
            sl_error(ctx), text);
    t_guarded_free(copy, n);
}

static void malformed(void)
{
    check_bad("", "empty");
    check_bad("\n\n", "empty");
    check_bad("GGUF\x03", "line 1");
    check_bad("[]", "object");
    check_bad("{}", "trace");
    check_bad("{\"trace\": \"other\"}", "sluice-routing");
    check_bad("{\"trace\": \"sluice-routing\", \"version\": 2}", "version");
    check_bad("{\"trace\": \"sluice-routing\", \"version\": 1, \"model\": 5}", "model");
    check_bad("{\"trace\": \"sluice-routing\", \"version\": 1, \"model\": \"\", \"layers\": 65536, "
              "\"experts\": 65536, \"used\": 2}", "2^24");
    check_bad("{\"trace\": \"sluice-routing\", \"version\": 1, \"model\": \"\", \"layers\": 6, "
              "\"experts\": 4, \"used\": 5}", "used");
    check_bad(HEAD HEAD, "line 2");
    check_bad(HEAD "{\"pass\": 0, \"sequence\": 1, \"lay", "line 2");
    check_bad(HEAD ROW(-1, 0, 0, 0, "[1]"), "pass");
    check_bad(HEAD ROW(0, -1, 0, 0, "[1]"), "sequence");
    check_bad(HEAD ROW(0, 0, 3, 0, "[1]"), "layer");
    check_bad(HEAD ROW(0, 0, 0, 1e3, "[1]"), "position");
    check_bad(HEAD ROW(0, 0, 0, 0, "[]"), "experts");
    check_bad(HEAD ROW(0, 0, 0, 0, "[1, 2, 3]"), "experts");
    check_bad(HEAD ROW(0, 0, 0, 0, "[8]"), "numbers of experts");
    check_bad(HEAD ROW(0, 0, 0, 0, "[-1]"), "numbers of experts");
    check_bad(HEAD ROW(0, 0, 0, 0, "[4294967297]"), "numbers of experts");
    check_bad(HEAD ROW(0, 0, 0, 0, "[\"1\"]"), "numbers of experts");
    check_bad(HEAD ROW(0, 0, 0, 0, "[[1]]"), "numbers of experts");
    check_bad(HEAD ROW(0, 0, 0, 0, "[1, 1]"), "distinct");
    check_bad(HEAD ROW(0, 0, 0, 0, "7"), "experts");
    check_bad(HEAD ROW(0, 0, 0, 0, "[1, 2]") ROW(0, 0, 0, 1, "[1]"), "line 3");
    check_bad(HEAD ROW(0, 0, 1, 0, "[1]") ROW(0, 0, 0, 0, "[1]"), "ascending");
    check_bad(HEAD ROW(4, 0, 1, 0, "[1]") "\n" ROW(3, 0, 2, 0, "[1]"), "line 4");
    sl_trace *t = NULL;
    T_CHECK(sl_trace_load(ctx, "/no/such/file", &t) == SL_E_IO && !t, "missing file");
    T_CHECK(sl_trace_load(ctx, "/tmp", &t) == SL_E_IO && !t, "a directory");
    sl_trace_writer *w = NULL;
    sl_trace_info info = { "m\xff", 1, 1, 1 };
    T_CHECK(sl_trace_create(ctx, "/no/such/file", &info, &w) == SL_E_IO && !w, "unwritable");
    T_NEED(sl_trace_create(ctx, "/dev/full", &info, &w) == SL_OK, "%s", sl_error(ctx));
    for (uint32_t i = 0; i < 10000; i++) sl_trace_add(w, i, 0, i, 0, &(uint32_t){ 0 }, 1);
    T_CHECK(sl_trace_close(ctx, &w) == SL_E_IO && !w, "a full disk");
    T_CHECK(sl_trace_close(ctx, &w) == SL_OK, "nothing to close");
}

/* A header alone, and rows whose fields come in another order and with others among them. */
static void accepted(void)
{
    sl_trace *t = NULL;
    T_CHECK(sl_trace_parse(ctx, "f", HEAD, strlen(HEAD), &t) == SL_OK && !t->n_steps, "%s",
            sl_error(ctx));
    sl_trace_free(ctx, &t);
    static const char text[] = "\n" HEAD "\n{\"experts\": [7, 0], \"x\": {}, \"layer\": 2, "
                               "\"position\": 9, \"sequence\": 4294967295, \"pass\": 5}";
    T_NEED(sl_trace_parse(ctx, "f", text, sizeof text - 1, &t) == SL_OK, "%s", sl_error(ctx));
    T_CHECK(t->n_steps == 1 && t->n_seq == 1 && t->steps[0].pass == 5 && t->steps[0].layer == 2
            && t->steps[0].pos[0] == 9 && t->steps[0].experts[0] == 7
            && t->steps[0].experts[1] == 0, "fields in another order");
    sl_trace_free(ctx, &t);
}

/* Two rows in a pass; expert 1 of layer 0 is used by both and counts once. */
static void played(void)
{
    static const char text[] = HEAD ROW(0, 1, 0, 0, "[1, 2]") ROW(0, 1, 0, 1, "[3, 1]")
                               ROW(0, 1, 1, 0, "[5, 0]") ROW(0, 1, 1, 1, "[5, 6]")
                               ROW(1, 1, 0, 2, "[1, 4]") ROW(1, 1, 1, 2, "[5, 0]");
    uint32_t slots;
    sl_ecache_params p = { .n_classes = 1, .class_slots = &slots, .policy = SL_POLICY_LRU };
    sl_trace *t = NULL;
    sl_trace_hits h;
    T_NEED(sl_trace_parse(ctx, "f", text, sizeof text - 1, &t) == SL_OK, "%s", sl_error(ctx));
    slots = 6;
    T_CHECK(sl_trace_play(ctx, t, &p, 0, &h) == SL_OK && h.uses == 10 && h.hits == 3,
            "six slots: %llu hits", (unsigned long long)h.hits);
    T_CHECK(sl_trace_play(ctx, t, &p, 1, &h) == SL_OK && h.uses == 4 && h.hits == 3,
            "from pass 1: %llu of %llu", (unsigned long long)h.hits, (unsigned long long)h.uses);
    slots = 1;
    T_CHECK(sl_trace_play(ctx, t, &p, 0, &h) == SL_OK && h.uses == 10 && h.hits == 0,
            "one slot: %llu hits", (unsigned long long)h.hits);
    slots = 0;
    T_CHECK(sl_trace_play(ctx, t, &p, 0, &h) == SL_E_ARG, "no slot");
    sl_trace_free(ctx, &t);
}

/* Layer 1 of 3 has experts. A prompt of four rows uses 0 to 3; then one row a pass. */
#define ONE(pos, ids) ROW(pos, 0, 1, pos, ids)
static const char one_by_one[] =
    HEAD ROW(0, 0, 1, 0, "[0, 1]") ROW(0, 0, 1, 1, "[0, 1]") ROW(0, 0, 1, 2, "[2, 3]")
    ROW(0, 0, 1, 3, "[0, 1]") ONE(4, "[0, 1]") ONE(5, "[2, 3]") ONE(6, "[0, 1]")
    ONE(7, "[4, 5]") ONE(8, "[0, 1]") ONE(9, "[2, 3]");

/* Of 4 slots the least recently used go: 4 and 5 miss and take those of 2 and 3, which miss. */
static void forecasts(void)
{
    sl_trace *t;
    T_NEED(sl_trace_parse(ctx, "t", one_by_one, sizeof one_by_one - 1, &t) == SL_OK, "%s",
           sl_error(ctx));
    sl_layer_shape layers[3] = { [1] = { .n_expert = 8, .n_used = 2, .slot_bytes = 9 } };
    sl_shape shape = { .n_layer = 3, .layers = layers };
    sl_plan plan = { .weights = SL_WEIGHTS_STREAMED, .n_classes = 1, .cls = { { 9, 4, 8 } },
                     .max_rows = 4, .policy = SL_POLICY_LRU };
    sl_misses m;
    for (plan.max_rows = 4; plan.max_rows; plan.max_rows /= 2) {
        T_NEED(sl_trace_misses(ctx, t, &shape, &plan, 0, &m) == SL_OK, "%s", sl_error(ctx));
        T_CHECK(m.turns[0][0] == 4 && m.turns[0][1] == 0 && m.turns[0][2] == 2,
                "%u rows a pass: none, one, two missing: %llu, %llu, %llu", plan.max_rows,
                (unsigned long long)m.turns[0][0], (unsigned long long)m.turns[0][1],
                (unsigned long long)m.turns[0][2]);
    }
    plan.max_rows = 4;
    T_NEED(sl_trace_misses(ctx, t, &shape, &plan, 8, &m) == SL_OK, "%s", sl_error(ctx));
    T_CHECK(m.turns[0][0] == 1 && m.turns[0][2] == 1, "the last two passes");
    shape.n_layer = 2;
    T_CHECK(sl_trace_misses(ctx, t, &shape, &plan, 0, &m) == SL_E_ARG, "another model");
    shape.n_layer = 3;
    layers[1].n_expert = 5;
    T_CHECK(sl_trace_misses(ctx, t, &shape, &plan, 0, &m) == SL_E_ARG, "fewer experts");

    sl_miss_model c;
    T_NEED(sl_trace_miss_model(ctx, t, SL_POLICY_LRU, &c) == SL_OK, "%s", sl_error(ctx));
    T_CHECK(c.traced && c.n_points == 6 && c.at[0].share == 0.25 && c.at[2].share == 0.5,
            "2 to 7 slots, once each: %u points", c.n_points);
    T_CHECK(c.at[2].hit == 1 - 4 / 12.0 && c.at[2].spread > 1.999 && c.at[2].spread < 2.001,
            "4 slots: hits %g, spread %g", c.at[2].hit, c.at[2].spread);
    /* two rows of the prompt use 2 and 4 experts, all four 4; no pass has 8: any rows then */
    T_CHECK(c.n_distinct == 3 && c.distinct[0].rows == 2 && c.distinct[0].share == 3 / 8.0
                && c.distinct[1].share == 4 / 8.0 && c.distinct[2].share == 6 / 8.0,
            "%u points: %g, %g, %g", c.n_distinct, c.distinct[0].share, c.distinct[1].share,
            c.distinct[2].share);
    sl_trace_free(ctx, &t);
}

int main(void)
{
    t_begin();
    ctx = sl_ctx_create(NULL, NULL);
    round_trip();
    malformed();
    accepted();
    played();
    forecasts();
    sl_mem_report r;
    sl_mem_get(ctx, &r);
    T_CHECK(!r.total, "%llu bytes left behind", (unsigned long long)r.total);
    sl_ctx_destroy(&ctx);
    return t_end();
}
