/* perfmodel/schedule.c - the engine's schedule (runtime/engine.c, build_pass) on numbers alone.
 * Invariants:
 *   Q1  running[0 .. n) stand in order of submission; past < known
 *   Q2  n_free and the running sequences' blocks are all blocks
 * Cost: a pass takes O(sequences). Nothing allocates after create. */
#include "perfmodel/sl_queue.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

typedef struct job {
    uint32_t past, known, computed;     /* as in runtime/engine.h */
    uint32_t prompt, left;
    uint32_t blocks, rows;
    bool has_room, draws;
} job;

struct sl_schedule {
    const sl_plan *plan;
    const sl_workload *queue;
    job *running;               /* [n_seq] */
    sl_rows *rows;              /* [n_seq] */
    uint32_t n, n_rows, n_logits;       /* sequences; rows of the pass */
    uint32_t n_free;            /* blocks */
    uint64_t next;              /* request */
    sl_schedule_stats stats;
};

sl_status sl_schedule_create(sl_ctx *ctx, const sl_plan *plan, const sl_workload *queue,
                             sl_schedule **ret)
{
    assert(plan->n_seq && plan->max_rows && plan->max_logits && queue->n_lengths);
    sl_schedule *s = calloc(1, sizeof *s);
    if (s) {
        *s = (sl_schedule){ .plan = plan, .queue = queue, .n_free = plan->n_kv_blocks };
        s->running = calloc(plan->n_seq, sizeof *s->running);
        s->rows = calloc(plan->n_seq, sizeof *s->rows);
    }
    if (!s || !s->running || !s->rows) {
        sl_schedule_destroy(&s);
        return sl_fail(ctx, SL_E_NOMEM, "a schedule of %u sequences", plan->n_seq);
    }
    *ret = s;
    return SL_OK;
}

void sl_schedule_destroy(sl_schedule **sp)
{
    sl_schedule *s = *sp;
    if (!s) return;
    free(s->running);
    free(s->rows);
    free(s);
    *sp = NULL;
}

static void submit(sl_schedule *s)
{
    const sl_lens_length *l = &s->queue->lengths[s->next++ % s->queue->n_lengths];
    assert(l->prompt && l->prompt <= s->plan->n_ctx);
    s->running[s->n++] =
        (job){ .known = l->prompt, .prompt = l->prompt, .left = l->gen, .draws = l->gen > 0 };
}

/* ---- blocks ---- */

static uint32_t missing(const sl_schedule *s, const job *j, uint32_t n)
{
    uint32_t rows = s->plan->kv_block_rows, want = n / rows + (n % rows != 0);
    return want - SL_MIN(j->blocks, want);
}

static bool reserve(sl_schedule *s, job *j, uint32_t n)
{
    uint32_t more = missing(s, j, n);
    if (more > s->n_free) return false;
    s->n_free -= more;
    j->blocks += more;
    return true;
}

static void preempt(sl_schedule *s, job *j)
{
    s->n_free += j->blocks;
    j->blocks = 0;
    j->past = 0;
    j->has_room = false;
    s->stats.preemptions++;
}

static bool grow(sl_schedule *s, uint32_t at)
{
    job *j = &s->running[at];
    while (missing(s, j, j->past + 1) > s->n_free) {
        uint32_t k = s->n;
        while (k > at + 1 && !s->running[k - 1].blocks) k--;
        preempt(s, &s->running[k - 1]);
        if (k == at + 1) return false;
    }
    return true;
}

static bool admit(sl_schedule *s, job *j, uint32_t n_decoding)
{
    if (j->has_room) return true;
    uint32_t spare = s->n_rows ? n_decoding : 0;
    if ((uint64_t)missing(s, j, j->known) + spare > s->n_free) return false;
    j->has_room = reserve(s, j, j->known);
    return j->has_room;
}

/* ---- a pass ---- */

static bool decoding(const job *j)
{
    return j->past >= j->prompt && j->known - j->past == 1;
}

static void add_rows(sl_schedule *s, job *j)
{
    uint32_t rows = SL_MIN(j->known - j->past, s->plan->max_rows - s->n_rows);
    bool last = j->past + rows == j->known;
    if (last && j->draws && s->n_logits == s->plan->max_logits) rows--;
    last = j->past + rows == j->known;
    if (!rows || !reserve(s, j, j->past + rows)) return;
    s->n_logits += last && j->draws;
    s->n_rows += rows;
    j->rows = rows;
}

static void build(sl_schedule *s)
{
    uint32_t n_decoding = 0;
    bool full = false;
    s->n_rows = s->n_logits = 0;
    for (uint32_t i = 0; i < s->n; i++) s->running[i].rows = 0;
    for (uint32_t i = 0; i < s->n && s->n_rows < s->plan->max_rows; i++) {
        if (!decoding(&s->running[i]) || !grow(s, i)) continue;
        add_rows(s, &s->running[i]);
        n_decoding++;
    }
    for (uint32_t i = 0; i < s->n && s->n_rows < s->plan->max_rows; i++) {
        job *j = &s->running[i];
        if (j->rows || decoding(j) || (full && !j->has_room)) continue;
        if (admit(s, j, n_decoding)) add_rows(s, j);
        else full = true;
    }
}

static bool make_room(sl_schedule *s)
{
    for (uint32_t n = s->n; n-- > 1; ) {
        if (!s->running[n].blocks) continue;
        preempt(s, &s->running[n]);
        return true;
    }
    return false;
}

/* The pass is over. Returns whether the sequence goes on. */
static bool advance(sl_schedule *s, job *j)
{
    if (!j->rows) return true;
    uint32_t end = j->past + j->rows, from = SL_MAX(j->computed, j->past);
    if (from < j->prompt && end > from) s->stats.prompt_tokens += SL_MIN(end, j->prompt) - from;
    s->stats.recomputed_rows += SL_MIN(j->computed, end) - SL_MIN(j->computed, j->past);
    j->past = end;
    j->computed = SL_MAX(j->computed, end);
    if (j->past < j->known) return true;
    bool fits = j->known < s->plan->n_ctx;
    if (j->draws) {
        j->left--;
        s->stats.drawn_tokens++;
    }
    if (j->draws && fits) j->known++;
    if (j->draws && fits && j->left) return true;
    s->n_free += j->blocks;
    s->stats.finished++;
    return false;
}

uint32_t sl_schedule_next(sl_schedule *s, const sl_rows **ret)
{
    uint32_t n = 0, left = 0;
    while (s->n < s->plan->n_seq && s->next < s->queue->n_requests) submit(s);
    if (!s->n) return 0;
    build(s);
    while (!s->n_rows && make_room(s)) build(s);
    assert(s->n_rows);          /* one sequence always has room */
    s->stats.running = s->n;
    s->stats.passes++;
    s->stats.rows += s->n_rows;
    for (uint32_t i = 0; i < s->n; i++) {
        const job *j = &s->running[i];
        if (j->rows)
            s->rows[n++] = (sl_rows){ .first = j->past, .n = j->rows,
                                      .draws = j->draws && j->past + j->rows == j->known };
    }
    for (uint32_t i = 0; i < s->n; i++)
        if (advance(s, &s->running[i])) s->running[left++] = s->running[i];
    s->n = left;
    *ret = s->rows;
    return n;
}

sl_schedule_stats sl_schedule_get_stats(const sl_schedule *s) { return s->stats; }
