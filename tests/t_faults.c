/* tests/t_faults.c - a disk that fails while several sequences are decoded from streamed weights:
 * those whose weights could not be read end with one line that names the slice, the others' logits
 * are those of a run without faults, and everything works afterwards. The model is a tiny one of
 * random weights. Also a file that shrinks, and one that is replaced, while it is read; and faults
 * while an emulated accelerator shares the work. */
#include "runtime/engine.h"

#include "tests/t_run.h"
#include "tests/t_tiny.h"

#include <fcntl.h>

enum {
    N_SEQ = 4, PROMPT = 7, PREDICT = 12, N_CTX = PROMPT + PREDICT,
    N_VOCAB = 500,
    SELDOM = 150, OFTEN = 850   /* faults of each kind; a fifth of them under sanitizers */
};

struct faults {
    sl_store_fault_kind kind;   /* given in one of `in` requests */
    uint32_t in, given;
    uint64_t from, to;          /* and only where requests touch this part of the file */
};

typedef struct fixture {
    t_run run;
    sl_seq seq[N_SEQ];          /* 0: none */
    uint32_t which[N_SEQ];      /* whose prompt it is */
    struct faults faults;
    sl_store_faults seam;
    uint32_t n_done, n_failed;
} fixture;

static char path[256];
static bool with_device;
static int32_t prompts[N_SEQ][PROMPT];
static uint64_t want[N_SEQ][N_CTX];     /* hashes of the logits at each position */

static uint64_t hash(const float *v, uint32_t n)
{
    uint64_t h = 14695981039346656037u;     /* FNV-1a, by words */
    for (uint32_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &v[i], sizeof bits);
        h = (h ^ bits) * 1099511628211u;
    }
    return h;
}

static sl_store_fault ask(void *user, uint32_t file, uint64_t offset, uint64_t bytes)
{
    struct faults *f = user;
    (void)file;
    if (!f->in || offset >= f->to || offset + bytes <= f->from || t_below(f->in))
        return (sl_store_fault){ SL_FAULT_NONE, 0, 0 };
    f->given++;
    return (sl_store_fault){ f->kind, t_below(3) ? 1 + t_below(20000) : 0, 1e-4 };
}

/* budget 0: in RAM; else that share of the way from the floor to there. */
static void open_engine(fixture *f, uint32_t threads, double budget)
{
    sl_plan_params p = sl_plan_defaults();
    sl_plan plan;
    *f = (fixture){ .run = t_run_model(path) };
    sl_ctx *ctx = f->run.ctx;
    const sl_shape *shape = sl_model_shape(f->run.m);
    f->seam = (sl_store_faults){ ask, &f->faults };
    f->faults.to = UINT64_MAX;
    p.n_ctx = N_CTX;
    p.n_seq = N_SEQ;
    p.max_rows = N_SEQ;     /* of so few rows the embedding is read as they come */
    p.n_threads = threads;
    p.ram_hard = true;
    if (with_device) {
        p.accel = (sl_accel){ .kind = SL_ACCEL_EMU, .n_cores = 1, .mem_bytes = 96 << 20 };
        p.n_stay = t_below(3);
        p.send_rows = 1 + t_below(3);
        p.max_rows = N_SEQ * PROMPT;    /* so many that outputs do not wait for their turn */
    }
    T_NEED(sl_plan_make(ctx, shape, &p, &plan) == SL_OK, "%s", sl_error(ctx));
    uint64_t lo = 0, hi = plan.need_bytes, all = hi;
    while (budget > 0 && hi - lo > 1) {
        p.ram_bytes = (lo + hi) / 2;
        if (sl_plan_make(ctx, shape, &p, &plan) == SL_OK) hi = p.ram_bytes;
        else lo = p.ram_bytes;
    }
    p.ram_bytes = budget > 0 ? hi + (uint64_t)((double)(all - hi) * (budget - 0.01)) : 0;
    t_run_engine(&f->run, &p);
    T_CHECK((f->run.plan.weights == SL_WEIGHTS_STREAMED) == (budget > 0)
            && (with_device || (f->run.plan.embed_rows_bytes > 0) == (budget > 0)), "mode %s",
            f->run.plan.mode);
    T_CHECK(!with_device || f->run.plan.max_rows > f->run.plan.stored_rows, "%u rows",
            f->run.plan.max_rows);
}

static void submit(fixture *f, uint32_t i, uint32_t which)
{
    sl_request r = { .tokens = prompts[which], .n_tokens = PROMPT, .n_predict = PREDICT,
                     .want_logits = true, .ignore_eog = true, .sampler = sl_sampler_defaults() };
    r.sampler.temp = 0;
    T_NEED(sl_engine_submit(f->run.e, &r, &f->seq[i]) == SL_OK, "%s", sl_error(f->run.ctx));
    f->which[i] = which;
}

static uint32_t index_of(const fixture *f, sl_seq id)
{
    uint32_t i = 0;
    while (i < N_SEQ && f->seq[i] != id) i++;
    T_NEED(i < N_SEQ, "an event of sequence %u", id);
    return i;
}

static void take_done(fixture *f, const sl_engine_event *ev)
{
    uint32_t i = index_of(f, ev->seq);
    bool failed = ev->reason == SL_DONE_FAILED;
    T_CHECK(failed || ev->reason == SL_DONE_N_PREDICT, "reason %d", ev->reason);
    T_CHECK(failed == (ev->error != NULL), "reason %d, error %s", ev->reason,
            ev->error ? ev->error : "none");
    if (failed) {
        sl_request r = { .seq = ev->seq, .tokens = prompts[0], .n_tokens = 1 };
        sl_seq unused;
        T_CHECK(strstr(ev->error, path) && strstr(ev->error, "slice of")
                && !strchr(ev->error, '\n'), "%s", ev->error);
        T_CHECK(sl_engine_submit(f->run.e, &r, &unused) == SL_E_ARG, "a failed sequence goes on");
    }
    *(failed ? &f->n_failed : &f->n_done) += 1;
    sl_engine_cancel(f->run.e, ev->seq);
    f->seq[i] = 0;
}

/* One step. Logits are what they should be, of whatever sequence. record: they define it. */
static void step(fixture *f, bool record)
{
    const sl_engine_event *ev;
    uint32_t n;
    T_NEED(sl_engine_step(f->run.e, &ev, &n) == SL_OK, "%s", sl_error(f->run.ctx));
    sl_stream_check(f->run.e->loaded.stream);
    for (uint32_t k = 0; k < n; k++) {
        if (ev[k].kind == SL_EV_LOGITS) {
            uint32_t which = f->which[index_of(f, ev[k].seq)];
            uint64_t h = hash(ev[k].logits, N_VOCAB);
            if (record) want[which][ev[k].pos] = h;
            T_CHECK(want[which][ev[k].pos] == h, "logits of prompt %u at %u", which, ev[k].pos);
        } else if (ev[k].kind == SL_EV_DONE) {
            take_done(f, &ev[k]);
        }
    }
}

static void finish(fixture *f, bool record)
{
    while (sl_engine_busy(f->run.e)) step(f, record);
}

static void submit_all(fixture *f)
{
    for (uint32_t i = 0; i < N_SEQ; i++)
        if (!f->seq[i]) submit(f, i, i);
}

/* Every prompt from its first token to its last, without faults. A pass before that may still
 * meet sections and guesses that were read with faults. */
static void all_is_well(fixture *f)
{
    f->faults.in = 0;
    submit_all(f);
    finish(f, false);
    uint32_t failed = f->n_failed;
    submit_all(f);
    finish(f, false);
    T_CHECK(f->n_failed == failed, "%u fail without a fault", f->n_failed - failed);
}

static void check_kind(sl_store_fault_kind kind, const char *name, uint32_t in, uint32_t n,
                       double budget)
{
    fixture f;
    bool fatal = kind == SL_FAULT_EIO || kind == SL_FAULT_END;
    open_engine(&f, 1 + t_below(2), budget);
    f.faults.kind = kind;
    f.faults.in = in;
    sl_store_set_faults(f.run.e->loaded.store, &f.seam);
    /* Where faults are seldom some sequence gets to its end, or the alarm ends all. */
    while (f.faults.given < n || (in > 100 && !f.n_done)) {
        uint32_t i = t_below(N_SEQ);
        if (!f.seq[i]) submit(&f, i, t_below(N_SEQ));
        step(&f, false);
    }
    printf("%s, 1 of %u requests, %u of %u layers stay, %u slots: %u sequences done, %u failed\n",
           name, in, sl_engine_plan(f.run.e)->n_dense_layers, f.run.m->hp.n_layer,
           sl_engine_plan(f.run.e)->cls[0].n_slots, f.n_done, f.n_failed);
    T_CHECK(fatal ? f.n_failed > 0 : !f.n_failed, "%s: %u failed", name, f.n_failed);
    all_is_well(&f);
    t_run_close(&f.run);
}

/* One layer's dense weights: whoever is in a pass fails. */
static void check_dense(void)
{
    fixture f;
    open_engine(&f, 1, 0.01);
    const weights *w = &f.run.e->loaded;
    uint32_t n = f.run.m->hp.n_layer - w->n_dense_layers;
    T_NEED(n > 1, "%u layers are streamed", n);
    f.faults.kind = SL_FAULT_EIO;
    sl_store_set_faults(w->store, &f.seam);
    for (uint32_t k = 0; k < 3 * n; k++) {
        const sl_slice *s = &w->slices[w->first_slice[k % n]];
        uint32_t failed = f.n_failed;
        submit_all(&f);
        if (k % 2) step(&f, false);
        f.faults.from = s->offset;
        f.faults.to = s->offset + 1;
        f.faults.in = 1;
        while (sl_engine_busy(f.run.e)) step(&f, false);
        T_CHECK(f.n_failed == failed + N_SEQ, "layer %u: %u of %d failed",
                w->n_dense_layers + k % n, f.n_failed - failed, N_SEQ);
        all_is_well(&f);
    }
    t_run_close(&f.run);
}

/* The file loses its second half while it is read, and gets it back. */
static void check_shrunk(void)
{
    fixture f;
    open_engine(&f, 1, 0.2);
    submit_all(&f);
    step(&f, false);
    int fd = open(path, O_RDWR);
    off_t bytes = lseek(fd, 0, SEEK_END), half = bytes / 2;
    char *tail = malloc((size_t)(bytes - half));
    T_NEED(tail && pread(fd, tail, (size_t)(bytes - half), half) == bytes - half, "read %s", path);
    T_NEED(ftruncate(fd, half) == 0, "truncate %s", path);
    for (int i = 0; i < 20; i++) {
        submit_all(&f);
        step(&f, false);
    }
    T_CHECK(f.n_failed, "half of the file is gone and nothing fails");
    T_NEED(pwrite(fd, tail, (size_t)(bytes - half), half) == bytes - half, "write %s", path);
    free(tail);
    close(fd);
    all_is_well(&f);
    t_run_close(&f.run);
}

/* Another file under its name: ours is what it was. */
static void check_replaced(void)
{
    fixture f;
    char other[300];
    open_engine(&f, 1, 0.2);
    submit_all(&f);
    step(&f, false);
    snprintf(other, sizeof other, "%s.old", path);
    T_NEED(rename(path, other) == 0, "rename");
    FILE *out = fopen(path, "w");
    T_NEED(out && fputs("nothing", out) >= 0 && !fclose(out), "write %s", path);
    all_is_well(&f);
    T_CHECK(!f.n_failed, "%u failed", f.n_failed);
    t_run_close(&f.run);
    T_NEED(rename(other, path) == 0, "rename");
}

static void make_model(const char *folder)
{
    sl_preset p;
    sl_synth_params sp = { .preset = t_tiny("qwen3-7b-a1b", N_VOCAB, &p), .quant = "Q4_K_M",
                           .seed = 5 };
    sl_synth_report report;
    sl_ctx *ctx = sl_ctx_create(NULL, NULL);
    p.n_layer = 4;
    p.n_expert = 16;
    snprintf(path, sizeof path, "%s/t_faults-%d.gguf", folder, (int)getpid());
    T_NEED(sl_synth_write(ctx, &sp, path, &report) == SL_OK, "%s", sl_error(ctx));
    sl_ctx_destroy(&ctx);
    for (uint32_t i = 0; i < N_SEQ; i++)
        for (uint32_t j = 0; j < PROMPT; j++) prompts[i][j] = (int32_t)t_below(N_VOCAB);
}

int main(void)
{
    static const struct { sl_store_fault_kind kind; const char *name; } kinds[] = {
        { SL_FAULT_EIO, "EIO" }, { SL_FAULT_END, "end of file" }, { SL_FAULT_AGAIN, "EAGAIN" },
        { SL_FAULT_SHORT, "short" }, { SL_FAULT_DELAY, "delay" },
    };
    fixture f;
    uint32_t part = getenv("SLUICE_SANITIZED") ? 5 : 1;
    alarm(280);     /* a hang fails */
    t_begin();
    const char *folder = getenv("SLUICE_BUILD_DIR");    /* rather a disk than /tmp */
    make_model(folder ? folder : ".");
    open_engine(&f, 1, 0);
    submit_all(&f);
    finish(&f, true);
    t_run_close(&f.run);
    for (size_t k = 0; k < SL_LEN(kinds); k++) {
        /* seldom, so that sequences get to their end; and often */
        check_kind(kinds[k].kind, kinds[k].name, 300, SELDOM / part, 0.3);
        check_kind(kinds[k].kind, kinds[k].name, 12, OFTEN / part, 0.01);
    }
    with_device = true;
    check_kind(SL_FAULT_EIO, "EIO, a device", 300, SELDOM / 3 / part, 0.3);
    check_kind(SL_FAULT_EIO, "EIO, a device", 12, OFTEN / 3 / part, 0.01);
    check_kind(SL_FAULT_AGAIN, "EAGAIN, a device", 12, OFTEN / 3 / part, 0.1);
    check_kind(SL_FAULT_DELAY, "delay, a device", 12, OFTEN / 3 / part, 0.1);
    with_device = false;
    check_dense();
    check_shrunk();
    check_replaced();
    remove(path);
    return t_end();
}
