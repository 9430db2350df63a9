/* tests/cuda_shim_run.c - blocks of fibers, and what a warp does together (tests/cuda_shim.h). */
#include "tests/cuda_shim_run.h"

#include "kernels/cpu/half.h"
#include "tests/t.h"

#include <ucontext.h>

enum { MAX_THREADS = 1024, STACK = 64 << 10, SHARED = 48 << 10, COPIES = 64 };

__thread shim_where shim_now;
int (*shim_on_launch)(void *, const unsigned[3], const unsigned[3], void (*)(void *), const void *,
                      size_t);

typedef struct fiber {
    void *sp;
    ucontext_t context;         /* where there is no switch of our own */
    shim_op op;                 /* what it waits for; SHIM_NONE: it can run */
    void *arg;
    struct { void *to; const void *from; } copy[COPIES];
    unsigned n_copies;
} fiber;

/* One for each host thread that runs launches. */
typedef struct machine {
    fiber f[MAX_THREADS];
    char *stacks, *shared;      /* the latter ends on an unmapped page */
    void *home;
    ucontext_t home_context;
    unsigned n, at;
    void (*call)(void *);
    void *call_arg;
} machine;
static __thread machine *m;

static void die(const char *what)
{
    fprintf(stderr, "cuda shim: block %u %u %u thread %u: %s\n", shim_now.block.x, shim_now.block.y,
            shim_now.block.z, shim_now.thread.x, what);
    abort();
}

#if defined(__x86_64__)
/* Keeps the callee-saved registers on the stack, and its address in *from. */
void shim_switch(void **from, void *to);
__asm__(".text\n.globl shim_switch\n.hidden shim_switch\n.type shim_switch,@function\n"
        "shim_switch:\n"
        "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
        "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
        "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
        ".size shim_switch,.-shim_switch\n");
#endif

static void to_home(fiber *f)
{
#if defined(__x86_64__)
    shim_switch(&f->sp, m->home);
#else
    swapcontext(&f->context, &m->home_context);
#endif
}

static void body(void)
{
    fiber *f = &m->f[m->at];
    m->call(m->call_arg);
    f->op = SHIM_ENDED;
    if (f->n_copies) die("ended with copies that nobody waited for");
    to_home(f);
}

static void set_out(unsigned i)
{
    fiber *f = &m->f[i];
    char *stack = m->stacks + (size_t)i * STACK;
    f->op = SHIM_NONE;
    f->n_copies = 0;
#if defined(__x86_64__)
    void **top = (void **)(void *)(stack + STACK) - 1;  /* body finds rsp as behind a call: 8 off */
    *top = NULL;
    *--top = (void *)body;
    f->sp = top - 6;
#else
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = stack;
    f->context.uc_stack.ss_size = STACK;
    f->context.uc_link = NULL;
    makecontext(&f->context, body, 0);
#endif
}

static void resume(unsigned i)
{
    m->at = i;
    shim_now.thread = (shim_index){ i, 0, 0 };
#if defined(__x86_64__)
    shim_switch(&m->home, m->f[i].sp);
#else
    swapcontext(&m->home_context, &m->f[i].context);
#endif
}

void shim_wait(shim_op op, void *arg, int unused)
{
    fiber *f = &m->f[m->at];
    (void)unused;
    f->op = op;
    f->arg = arg;
    to_home(f);
}

void *shim_shared(size_t bytes)
{
    if (bytes > SHARED) die("more than 48 KiB of shared memory");
    return m->shared + SHARED - (bytes + 15) / 16 * 16;
}

void shim_copy16(void *to, const void *from)
{
    fiber *f = &m->f[m->at];
    if (((uintptr_t)to | (uintptr_t)from) & 15) die("a copy of 16 bytes that are not aligned");
    if (f->n_copies == COPIES) die("too many copies in flight");
    f->copy[f->n_copies].to = to;
    f->copy[f->n_copies++].from = from;
}

void shim_copies_done(void)
{
    fiber *f = &m->f[m->at];
    for (unsigned i = 0; i < f->n_copies; i++) {
        if (f->copy[i].from) memcpy(f->copy[i].to, f->copy[i].from, 16);
        else memset(f->copy[i].to, 0, 16);
    }
    f->n_copies = 0;
}

static float half_of(uint32_t pair, int hi)
{
    return sl_f16_to_f32((uint16_t)(hi ? pair >> 16 : pair));
}

static void mma(fiber *warp)
{
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const shim_mma *x = warp[lane].arg;
        int g = lane / 4, t = lane % 4;
        for (int e = 0; e < 2; e++) {
            for (int i = 0; i < 4; i++)
                a[g + i % 2 * 8][2 * t + e + i / 2 * 8] = half_of(x->a[i], e);
            for (int i = 0; i < 2; i++) b[2 * t + e + 8 * i][g] = half_of(x->b[i], e);
        }
    }
    for (int lane = 0; lane < 32; lane++) {
        const shim_mma *x = warp[lane].arg;
        for (int i = 0; i < 4; i++) {
            int row = lane / 4 + i / 2 * 8, col = lane % 4 * 2 + i % 2;
            double sum = x->c[i];
            for (int k = 0; k < 16; k++) sum += (double)a[row][k] * b[k][col];
            x->c[i] = (float)sum;
        }
    }
}

static void ldmatrix(fiber *warp)
{
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++) {
            const shim_matrix *to = warp[lane].arg, *from = warp[8 * i + lane / 4].arg;
            if ((uintptr_t)from->row & 15) die("ldmatrix: a row that is not aligned");
            memcpy(&to->r[i], (const char *)from->row + 4 * (lane % 4), 4);
        }
}

/* All lanes of a warp have come to the same operation. */
static void together(fiber *warp)
{
    shim_op op = warp[0].op;
    if (op == SHIM_SHUFFLE)
        for (int i = 0; i < 32; i++) {
            shim_shuffle *s = warp[i].arg;
            if (s->mask != ~0u) die("a shuffle of some lanes");
            s->got = ((shim_shuffle *)warp[s->from].arg)->value;
        }
    if (op == SHIM_BALLOT)
        for (int i = 0; i < 32; i++) {
            shim_shuffle *s = warp[i].arg;
            for (int e = 0; e < 32; e++) s->got |= ((shim_shuffle *)warp[e].arg)->value << e;
        }
    if (op == SHIM_MMA) mma(warp);
    if (op == SHIM_LDMATRIX) ldmatrix(warp);
    for (int i = 0; i < 32; i++) warp[i].op = SHIM_NONE;
}

/* A warp, until all its lanes have ended or wait for the block. */
static void run_warp(unsigned first, int backwards)
{
    fiber *warp = m->f + first;
    for (;;) {
        unsigned same = 0, quiet = 0;
        for (unsigned i = 0; i < 32; i++) {
            unsigned at = backwards ? 31 - i : i;
            if (warp[at].op == SHIM_NONE) resume(first + at);
        }
        for (unsigned i = 0; i < 32; i++) {
            same += warp[i].op == warp[0].op;
            quiet += warp[i].op == SHIM_BLOCK || warp[i].op == SHIM_ENDED;
        }
        if (quiet == 32) return;
        if (same != 32) die("lanes of a warp wait for different things");
        together(warp);
    }
}

static void run_block(int backwards)
{
    unsigned warps = m->n / 32, ended;
    memset(m->shared, 0xff, SHARED);
    for (unsigned i = 0; i < m->n; i++) set_out(i);
    do {
        ended = 0;
        for (unsigned w = 0; w < warps; w++)
            run_warp(32 * (backwards ? warps - 1 - w : w), backwards);
        for (unsigned i = 0; i < m->n; i++) {
            ended += m->f[i].op == SHIM_ENDED;
            if (m->f[i].op == SHIM_BLOCK) m->f[i].op = SHIM_NONE;
        }
        if (ended && ended < m->n) die("threads wait for others that have ended");
    } while (ended < m->n);
}

static void start_machine(void)
{
    m = calloc(1, sizeof *m);
    T_NEED(m, "memory for the shim");
    m->stacks = mmap(NULL, (size_t)MAX_THREADS * STACK, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    T_NEED(m->stacks != MAP_FAILED, "stacks of fibers");
    m->shared = t_guarded(SHARED);
}

void shim_run(const unsigned grid[3], const unsigned block[3], void (*call)(void *), void *arg)
{
    if (!m) start_machine();
    m->n = block[0];
    m->call = call;
    m->call_arg = arg;
    T_NEED(block[1] == 1 && block[2] == 1 && m->n % 32 == 0 && m->n <= MAX_THREADS && m->n,
           "a block of %u x %u x %u threads", block[0], block[1], block[2]);
    T_NEED(grid[0] && grid[1] && grid[2] && grid[1] < 65536 && grid[2] < 65536,
           "a grid of %u x %u x %u blocks", grid[0], grid[1], grid[2]);
    shim_now.block_dim = (shim_index){ block[0], 1, 1 };
    shim_now.grid_dim = (shim_index){ grid[0], grid[1], grid[2] };
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                shim_now.block = (shim_index){ x, y, z };
                run_block((int)((x + y + z) & 1));
            }
}

void shim_end(void)
{
    if (!m) return;
    munmap(m->stacks, (size_t)MAX_THREADS * STACK);
    t_guarded_free(m->shared, SHARED);
    free(m);
    m = NULL;
}

int shim_submit(void *stream, const unsigned grid[3], const unsigned block[3],
                void (*call)(void *), const void *arg, size_t bytes)
{
    if (shim_on_launch) return shim_on_launch(stream, grid, block, call, arg, bytes);
    void *copy = malloc(bytes);
    T_NEED(copy, "memory for a launch");
    memcpy(copy, arg, bytes);
    shim_run(grid, block, call, copy);
    free(copy);
    return 0;
}
