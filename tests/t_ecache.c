/* tests/t_ecache.c - the expert cache: its invariants under random operations and every policy,
 * hand-made sequences whose victims are known, and what create refuses; Belady's bound, which
 * policies are compared with, against a search of every choice. */
#include "offload/sl_ecache.h"

#include "tests/belady.h"
#include "tests/t.h"

#define NONE SL_ECACHE_NONE

static sl_ctx *ctx;

static sl_ecache *make(const sl_ecache_params *p)
{
    sl_ecache *c = NULL;
    T_NEED(sl_ecache_create(ctx, p, &c) == SL_OK, "%s", sl_error(ctx));
    return c;
}

/* One row uses the expert: what the engine does, one expert at a time. True: it was there. */
static bool use(sl_ecache *c, uint32_t layer, uint32_t id, uint32_t *ret_evicted)
{
    uint32_t slot = sl_ecache_find(c, layer, id);
    bool hit = slot != NONE;
    *ret_evicted = NONE;
    sl_ecache_touch(c, layer, &id, NULL, 1, 1);
    if (hit) sl_ecache_pin(c, slot);
    else slot = sl_ecache_take(c, layer, id, ret_evicted);
    T_CHECK(slot != NONE && sl_ecache_find(c, layer, id) == slot, "expert %u of layer %u", id,
            layer);
    sl_ecache_check(c);
    sl_ecache_unpin(c, slot);
    return hit;
}

/* What a sequence of single uses in one layer evicts: 'a'..'z' are experts; "." a hit, "-" a miss
 * into a free slot, else the victim. */
static void check_sequence(const char *name, const sl_ecache_params *p, const char *uses,
                           const char *want)
{
    sl_ecache *c = make(p);
    char got[100] = "";
    for (size_t i = 0; uses[i]; i++) {
        uint32_t out;
        bool hit = use(c, 0, (uint32_t)(uses[i] - 'a'), &out);
        got[i] = hit ? '.' : out == NONE ? '-' : (char)('a' + out);
    }
    T_CHECK(!strcmp(got, want), "%s, uses %s: got %s, want %s", name, uses, got, want);
    sl_ecache_destroy(&c);
    T_CHECK(!c, "destroy");
}

static void known_sequences(void)
{
    static const uint32_t two = 2, three = 3;
    static const float popular[4] = { 0.4f, 0.1f, 0.3f, 0.2f };
    sl_ecache_params p = { .n_layer = 1, .n_expert = 6, .n_used = 1, .n_seq = 1,
                           .n_classes = 1, .class_slots = &two,
                           .policy = SL_POLICY_LRU };
    check_sequence("lru", &p, "abacbaac", "--.bac.b");
    p.class_slots = &three;
    check_sequence("lru", &p, "abcadbe", "---.bca");
    /* half-life long against the sequence: plain counts, an older use counting a little less */
    p.policy = SL_POLICY_LFU;
    p.half_life = 1000;
    check_sequence("lfu", &p, "aabbbcdcdba", "-.-..-cda.c");
    p.class_slots = &two;
    /* a half-life of one row: the last use outweighs all before it, LRU but for ties */
    p.half_life = 0.5f;
    check_sequence("lfu as lru", &p, "abacbaac", "--.bac.b");
    p = (sl_ecache_params){ .n_layer = 1, .n_expert = 4, .n_used = 1, .n_seq = 1,
                            .n_classes = 1, .class_slots = &two,
                            .policy = SL_POLICY_STATIC, .popularity = popular };
    check_sequence("static", &p, "bdacbad", "--bdc.b");
}

/* A pass of many rows counts as so many passes of one, whatever their order. */
static void rows_are_tokens(void)
{
    static const uint32_t slots = 2;
    sl_ecache_params p = { .n_layer = 1, .n_expert = 4, .n_used = 2, .n_seq = 1, .n_classes = 1,
                           .class_slots = &slots, .policy = SL_POLICY_LFU, .half_life = 16 };
    sl_ecache *c = make(&p);
    uint32_t ids[40][2], out;
    for (uint32_t r = 0; r < 40; r++) {     /* 0: 40 rows, 1: 30, 2: 10 */
        ids[r][0] = 0;
        ids[r][1] = 1 + (r % 4 == 3);
    }
    sl_ecache_touch(c, 0, ids[0], NULL, 40, 2);
    for (uint32_t i = 0; i < 2; i++) sl_ecache_unpin(c, sl_ecache_take(c, 0, i, &out));
    uint32_t s = sl_ecache_take(c, 0, 2, &out);
    T_CHECK(out == 1, "the victim of a prompt is expert %u", out);
    sl_ecache_unpin(c, s);
    sl_ecache_take(c, 0, 1, &out);
    T_CHECK(out == 2, "bypass: the victim is expert %u", out);
    sl_ecache_destroy(&c);
}

/* The choices go 0 -> 1 -> 2 -> 0: what follows the last one has the most value, whatever came
 * longest ago. Each sequence follows its own: the second is one step ahead. */
static uint32_t victim_of_cycle(sl_policy policy, uint32_t n_seq)
{
    static const uint32_t slots = 3, seq[] = { 1, 0 };
    sl_ecache_params p = { .n_layer = 1, .n_expert = 4, .n_used = 1, .n_seq = 2, .n_classes = 1,
                           .class_slots = &slots, .policy = policy };
    uint32_t out = NONE;
    sl_ecache *c = make(&p);
    for (uint32_t i = 0; i < 3; i++) sl_ecache_unpin(c, sl_ecache_take(c, 0, i, &out));
    for (uint32_t t = 0; t < 31; t++) {     /* ends with 0, and 1 in the second sequence */
        uint32_t ids[] = { t % 3, (t + 1) % 3 };
        sl_ecache_touch(c, 0, ids, seq, n_seq, 1);
        sl_ecache_check(c);
    }
    sl_ecache_take(c, 0, 3, &out);
    sl_ecache_destroy(&c);
    return out;
}

static void markov_learns_what_follows(void)
{
    uint32_t v = victim_of_cycle(SL_POLICY_LFU, 1);
    T_CHECK(v == 1, "lfu evicts the one used longest ago, not %u", v);
    v = victim_of_cycle(SL_POLICY_MARKOV, 1);
    T_CHECK(v == 2, "markov, after 0: evicts %u", v);
    v = victim_of_cycle(SL_POLICY_LFU, 2);
    T_CHECK(v == 2, "lfu of two sequences: evicts %u", v);
    v = victim_of_cycle(SL_POLICY_MARKOV, 2);
    T_CHECK(v == 0, "markov, after 0 and 1: evicts %u", v);
}

/* What is needed by the next layer outlives what is needed a whole pass later. */
static void markov_weighs_the_distance(void)
{
    static const uint32_t slots = 3, ids[] = { 0, 1 };
    sl_ecache_params p = { .n_layer = 4, .n_expert = 4, .n_used = 2, .n_seq = 1, .n_classes = 1,
                           .class_slots = &slots };
    for (uint32_t at = 0; at < 4; at++) {
        sl_ecache *c = make(&p);
        uint32_t out, slot[3];
        for (uint32_t l = 0; l < 4000 + at + 1; l++) sl_ecache_touch(c, l % 4, ids, NULL, 1, 2);
        for (uint32_t i = 0; i < 3; i++) slot[i] = sl_ecache_take(c, (at + 2 + i) % 4, 0, &out);
        for (uint32_t i = 0; i < 3; i++) sl_ecache_unpin(c, slot[i]);
        sl_ecache_take(c, (at + 1) % 4, 0, &out);
        T_CHECK(out == at * 4, "at layer %u: the victim is of layer %u", at, out / 4);
        sl_ecache_check(c);
        sl_ecache_destroy(&c);
    }
}

static void pools_and_classes(void)
{
    /* layers 0 and 3 in class 1, layer 1 in class 0, layer 2 without experts */
    static const uint32_t classes[] = { 1, 0, SL_ECACHE_NO_CLASS, 1 }, slots[] = { 2, 5 };
    sl_ecache_params p = { .n_layer = 4, .n_expert = 8, .n_used = 1, .n_seq = 1,
                           .layer_class = classes, .n_classes = 2,
                           .class_slots = slots, .per_layer = true };
    sl_ecache *c = make(&p);
    uint32_t out, n = 0;
    for (uint32_t i = 0; i < 8; i++) {      /* nothing unpinned: 2, then 3 + 2 slots */
        uint32_t a = sl_ecache_take(c, 1, i, &out), b = sl_ecache_take(c, 3, i, &out);
        T_CHECK(i < 2 ? a < 2 : a == NONE, "class 0, take %u: slot %u", i, a);
        T_CHECK(i < 2 ? b >= 5 && b < 7 : b == NONE, "class 1, second layer: slot %u", b);
        n += sl_ecache_take(c, 0, i, &out) != NONE;
        sl_ecache_check(c);
    }
    T_CHECK(n == 3 && sl_ecache_n_used(c) == 7 && sl_ecache_n_slots(c) == 7, "first layer: %u", n);
    sl_ecache_drop(c, 6);
    sl_ecache_check(c);
    T_CHECK(sl_ecache_take(c, 3, 7, &out) == 6 && out == NONE, "a dropped slot is free");
    sl_ecache_destroy(&c);
}

static void check_refused(sl_ecache_params p, const char *why)
{
    sl_ecache *c = NULL;
    T_CHECK(sl_ecache_create(ctx, &p, &c) == SL_E_ARG && !c, "%s", why);
}

static void refusals(void)
{
    static const uint32_t slots[] = { 3, 0 }, bad_class[] = { 0, 2 };
    static const uint32_t huge[] = { UINT32_MAX, UINT32_MAX };
    const sl_ecache_params ok = { .n_layer = 2, .n_expert = 4, .n_used = 4, .n_seq = 1,
                                  .n_classes = 1,
                                  .class_slots = slots };
    sl_ecache_params p = ok;
    p.n_layer = 0;
    check_refused(p, "no layers");
    p = ok, p.n_expert = p.n_used = 1 << 23;
    check_refused(p, "too many experts");
    p = ok, p.n_used = 5;
    check_refused(p, "5 of 4 experts");
    p = ok, p.n_seq = 0;
    check_refused(p, "no sequences");
    p = ok, p.n_classes = 0;
    check_refused(p, "no classes");
    p = ok, p.class_slots = slots + 1;
    check_refused(p, "no slots");
    p = ok, p.class_slots = huge, p.n_classes = 2;
    check_refused(p, "too many slots");
    p = ok, p.layer_class = bad_class, p.n_classes = 2;
    check_refused(p, "no such class");
    p = ok, p.n_layer = 4, p.per_layer = true;
    check_refused(p, "3 slots for 4 layers");
    p = ok, p.policy = SL_POLICY_STATIC;
    check_refused(p, "static without a table");
    p = ok, p.policy = SL_N_POLICIES;
    check_refused(p, "no such policy");
    sl_policy policy;
    for (int i = 0; i < SL_N_POLICIES; i++)
        T_CHECK(sl_policy_parse(sl_policy_name((sl_policy)i), &policy) && policy == (sl_policy)i,
                "policy %d", i);
    T_CHECK(!sl_policy_parse("LRU", &policy) && !sl_policy_parse("", &policy), "unknown names");
}

/* A layer's step as the engine makes it, with reads that fail now and then. */
static void random_layer(sl_ecache *c, uint32_t layer, uint32_t n_expert)
{
    uint32_t rows[8 * 5], seq[8], ids[40], slots[40], n = 0, out;
    uint32_t n_rows = 1 + t_below(8), n_used = 1 + t_below(SL_MIN(n_expert, 5));
    for (uint32_t r = 0; r < n_rows; r++) {
        seq[r] = t_below(3);
        uint32_t from = t_below(n_expert);
        for (uint32_t j = 0; j < n_used; j++) rows[r * n_used + j] = (from + j) % n_expert;
    }
    sl_ecache_touch(c, layer, rows, seq, n_rows, n_used);
    for (uint32_t i = 0; i < n_rows * n_used; i++) {
        uint32_t j = 0;
        while (j < n && ids[j] != rows[i]) j++;
        if (j == n) ids[n++] = rows[i];
    }
    for (uint32_t i = 0; i < n; i++) {
        slots[i] = sl_ecache_find(c, layer, ids[i]);
        if (slots[i] != NONE) sl_ecache_pin(c, slots[i]);
    }
    for (uint32_t i = 0; i < n; i++) {
        if (slots[i] != NONE) continue;
        uint32_t used = sl_ecache_n_used(c);
        slots[i] = sl_ecache_take(c, layer, ids[i], &out);
        sl_ecache_check(c);
        if (slots[i] == NONE) continue;
        T_CHECK(sl_ecache_n_used(c) == used + (out == NONE), "slots in use");
        for (uint32_t j = 0; j < i; j++)
            T_CHECK(out != layer * n_expert + ids[j], "a pinned expert was evicted");
        T_CHECK(sl_ecache_expert_in(c, slots[i]) == layer * n_expert + ids[i], "expert_in");
        if (t_below(10)) continue;
        sl_ecache_drop(c, slots[i]);
        T_CHECK(sl_ecache_find(c, layer, ids[i]) == NONE, "dropped");
        sl_ecache_check(c);
        slots[i] = NONE;
    }
    for (uint32_t i = 0; i < n; i++)
        if (slots[i] != NONE) sl_ecache_unpin(c, slots[i]);
}

static void random_operations(void)
{
    for (uint32_t round = 0; round < 60; round++) {
        uint32_t n_layer = 1 + t_below(6), n_expert = 1 + t_below(40);
        uint32_t classes[6], slots[2];
        float popular[6 * 40];
        for (uint32_t i = 0; i < SL_LEN(popular); i++) popular[i] = t_unit();
        for (uint32_t l = 0; l < n_layer; l++)
            classes[l] = l && !t_below(6) ? SL_ECACHE_NO_CLASS : t_below(2);
        for (uint32_t k = 0; k < 2; k++) slots[k] = n_layer + t_below(n_layer * n_expert);
        sl_ecache_params p = { .n_layer = n_layer, .n_expert = n_expert,
                               .n_used = SL_MIN(n_expert, 5), .n_seq = 3, .layer_class = classes,
                               .n_classes = 2, .class_slots = slots, .per_layer = t_below(2),
                               .policy = (sl_policy)(round % SL_N_POLICIES),
                               .popularity = popular };
        sl_ecache *c = make(&p);
        for (uint32_t pass = 0; pass < 30; pass++)
            for (uint32_t l = 0; l < n_layer; l++)
                if (classes[l] != SL_ECACHE_NO_CLASS) random_layer(c, l, n_expert);
        sl_ecache_destroy(&c);
    }
}

/* Passes of 64 rows want nearly all 8 experts of each of 6 layers, some more often than others.
 * With 20 slots, each needed for a moment by an expert that is computed, the best that a cycle of
 * 48 can have is 19 hits. */
static void many_rows_lose_nothing(void)
{
    enum { LAYERS = 6, EXPERTS = 8, USED = 2, ROWS = 64, SLOTS = 20 };
    sl_ecache_params p = { .n_layer = LAYERS, .n_expert = EXPERTS, .n_used = USED, .n_seq = 1,
                           .n_classes = 1, .class_slots = (uint32_t[]){ SLOTS } };
    sl_ecache *c = make(&p);
    uint32_t hits = 0, uses = 0, ids[ROWS * USED], out;
    for (uint32_t pass = 0; pass < 60; pass++)
        for (uint32_t l = 0; l < LAYERS; l++) {
            bool wanted[EXPERTS] = { false }, hit[EXPERTS] = { false };
            for (uint32_t r = 0; r < ROWS; r++) {
                ids[r * USED] = SL_MIN(t_below(EXPERTS), t_below(EXPERTS));
                ids[r * USED + 1] = (ids[r * USED] + 1 + t_below(EXPERTS - 1)) % EXPERTS;
            }
            for (uint32_t i = 0; i < ROWS * USED; i++) wanted[ids[i]] = true;
            sl_ecache_touch(c, l, ids, NULL, ROWS, USED);
            for (uint32_t e = 0; e < EXPERTS; e++) {
                uint32_t slot = wanted[e] ? sl_ecache_find(c, l, e) : NONE;
                if ((hit[e] = slot != NONE)) sl_ecache_pin(c, slot);
                hits += pass >= 10 && hit[e];
                uses += pass >= 10 && wanted[e];
            }
            for (uint32_t e = 0; e < EXPERTS; e++) {
                if (!wanted[e]) continue;
                uint32_t slot = hit[e] ? sl_ecache_find(c, l, e) : sl_ecache_take(c, l, e, &out);
                T_NEED(slot != NONE, "no slot");
                sl_ecache_unpin(c, slot);
            }
        }
    T_CHECK(hits >= 18 * 50 && hits <= uses, "%.1f hits a pass of %.1f uses", hits / 50.0,
            uses / 50.0);
    sl_ecache_destroy(&c);
}

/* Most hits of the uses from at on, when `held` (a bit per object) is in the cache: every choice of
 * a victim is tried, and with bypass also none. */
static uint32_t most_hits(const uint32_t *uses, uint32_t n, uint32_t at, uint32_t held,
                          uint32_t capacity, bool bypass)
{
    uint32_t best = 0;
    if (at == n) return 0;
    uint32_t use = 1u << uses[at];
    if (held & use) return 1 + most_hits(uses, n, at + 1, held, capacity, bypass);
    if ((uint32_t)__builtin_popcount(held) < capacity)
        best = most_hits(uses, n, at + 1, held | use, capacity, bypass);
    for (uint32_t v = 0; v < 8; v++)
        if (held >> v & 1)
            best = SL_MAX(best, most_hits(uses, n, at + 1, (held & ~(1u << v)) | use, capacity,
                                          bypass));
    return bypass ? SL_MAX(best, most_hits(uses, n, at + 1, held, capacity, bypass)) : best;
}

/* Two slots of LFU with a half-life of one row, so that shares are sums of halves. */
static void few_are_admitted(void)
{
    sl_ecache *c = NULL;
    uint32_t slots = 2, gone;
    sl_ecache_params p = { .n_layer = 2, .n_expert = 4, .n_used = 1, .n_seq = 1, .n_classes = 1,
                           .class_slots = &slots, .policy = SL_POLICY_LFU, .half_life = 1 };
    T_NEED(sl_ecache_create(ctx, &p, &c) == SL_OK, "%s", sl_error(ctx));
    T_CHECK(sl_ecache_admits(c, 0, 0, 9), "a free slot is for anyone");
    for (uint32_t x = 0; x < 2; x++) sl_ecache_unpin(c, sl_ecache_take(c, 0, x, &gone));
    for (uint32_t x = 0; x < 3; x++) sl_ecache_touch(c, 0, &x, NULL, 1, 1);
    /* shares 1/8, 1/4, 1/2, 0: expert 2 beats the first by 3/8 */
    T_CHECK(sl_ecache_admits(c, 0, 2, 0.375) && !sl_ecache_admits(c, 0, 2, 0.376), "the margin");
    T_CHECK(!sl_ecache_admits(c, 0, 3, 0), "one that nobody used");
    T_CHECK(!sl_ecache_admits(c, 1, 2, 0.1) && sl_ecache_admits(c, 1, 2, -1), "another layer's");
    sl_ecache_pin(c, sl_ecache_find(c, 0, 0));
    T_CHECK(sl_ecache_admits(c, 0, 2, 0.25) && !sl_ecache_admits(c, 0, 2, 0.26), "the next one");
    sl_ecache_pin(c, sl_ecache_find(c, 0, 1));
    T_CHECK(!sl_ecache_admits(c, 0, 2, -1), "all are pinned");
    sl_ecache_unpin(c, sl_ecache_find(c, 0, 0));
    T_CHECK(sl_ecache_find(c, 0, sl_ecache_expert_in(c, sl_ecache_take(c, 0, 2, &gone))) != NONE
            && gone == 0, "the first made way");
    sl_ecache_check(c);
    sl_ecache_destroy(&c);
}

static void belady_is_the_most(void)
{
    for (uint32_t round = 0; round < 300; round++) {
        uint32_t uses[11], n = 1 + t_below(SL_LEN(uses)), objects = 1 + t_below(6);
        uint32_t capacity = 1 + t_below(3);
        for (uint32_t i = 0; i < n; i++) uses[i] = t_below(objects);
        for (int bypass = 0; bypass < 2; bypass++) {
            uint64_t got = belady_hits(uses, n, objects, capacity, bypass, 0);
            uint32_t want = most_hits(uses, n, 0, 0, capacity, bypass);
            T_CHECK(got == want, "%u uses of %u objects, %u slots, bypass %d: %llu hits, want %u",
                    n, objects, capacity, bypass, (unsigned long long)got, want);
        }
    }
    static const uint32_t uses[] = { 0, 1, 2, 0, 1, 2 };
    T_CHECK(belady_hits(uses, 6, 3, 1, true, 0) == 1, "one slot");
    T_CHECK(belady_hits(uses, 6, 3, 3, true, 4) == 2, "only the last two count");
    T_CHECK(belady_hits(uses, 6, 3, 0, true, 0) == 0, "no slot");
}

int main(void)
{
    t_begin();
    ctx = sl_ctx_create(NULL, NULL);
    known_sequences();
    rows_are_tokens();
    markov_learns_what_follows();
    markov_weighs_the_distance();
    many_rows_lose_nothing();
    pools_and_classes();
    refusals();
    random_operations();
    few_are_admitted();
    belady_is_the_most();
    sl_mem_report r;
    sl_mem_get(ctx, &r);
    T_CHECK(!r.total, "%llu bytes left behind", (unsigned long long)r.total);
    sl_ctx_destroy(&ctx);
    return t_end();
}
