/* runtime/vocab.h - what the tokenizer's files share. Private to runtime/vocab*.c. */
#ifndef SL_VOCAB_PRIVATE_H
#define SL_VOCAB_PRIVATE_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "runtime/sl_vocab.h"

#define NO_SYM UINT32_MAX
#define MAX_STEPS 6            /* splitting steps of one pre-tokenizer */
#define MAX_SPECIAL_LEN 512    /* bytes; longer added tokens are not looked for in text */

/* Strings numbered from 0 in the order they came, with a hash over those that may be looked up. */
typedef struct vocab_tab {
    char *bytes;
    size_t n_bytes, cap_bytes;
    uint32_t *start;            /* n + 1 of them; string i is bytes[start[i] .. start[i + 1]) */
    uint32_t n, cap;
    uint32_t *slot;             /* id + 1, 0 is empty; open addressing, linear probing */
    uint32_t n_slots, n_hashed; /* n_slots is a power of two, at most half full */
} vocab_tab;

bool vocab_tab_add(vocab_tab *t, const char *p, size_t n,
                   bool hashed); /* as id t->n; false: no memory */
uint32_t vocab_tab_find(const vocab_tab *t, const char *p, size_t n);    /* NO_SYM: none */
void vocab_tab_fini(vocab_tab *t);
static inline sl_str vocab_tab_at(const vocab_tab *t, uint32_t i)
{
    return (sl_str){ t->bytes + t->start[i], t->start[i + 1] - t->start[i] };
}

/* A merge rule: symbols left and right become `into`; the lowest rank goes first. */
typedef struct vocab_merge {
    uint32_t left, right;       /* left == NO_SYM: empty slot */
    uint32_t rank, into;
} vocab_merge;

enum {                          /* attributes of a token */
    ATTR_UNKNOWN = 1, ATTR_UNUSED = 2, ATTR_NORMAL = 4, ATTR_CONTROL = 8, ATTR_USER = 16,
    ATTR_BYTE = 32, ATTR_LSTRIP = 64, ATTR_RSTRIP = 128, ATTR_EOG = 256
};

enum {                          /* what a pre-tokenizer asks for besides its patterns */
    PRE_WHOLE_WORDS = 1,        /* a word that is a token needs no merges ("ignore_merges") */
    PRE_ADD_BOS = 2,            /* unless the file says otherwise */
    PRE_NFC = 4                 /* text is normalised to NFC first */
};

typedef enum vocab_step_kind {
    STEP_REGEX,                 /* every match is a piece, and so is what lies between two */
    STEP_TRAILING_SPACE,        /* \s+$ in linear time */
    STEP_DIGITS_RIGHT,          /* runs of \p{N} in threes from the right */
    STEP_DIGITS_RIGHT_WORD,     /* the same for \d, only where no word character follows */
} vocab_step_kind;

typedef struct vocab_step {
    vocab_step_kind kind;
    pcre2_code *code;           /* STEP_REGEX */
} vocab_step;

struct sl_vocab {
    sl_ctx *ctx;
    int64_t charged;            /* bytes in SL_ACC_TABLES */
    bool spm;                   /* SentencePiece BPE; else byte-level BPE */
    bool add_space_prefix, add_bos, add_eos;
    uint32_t pre_flags;
    uint32_t n;                 /* tokens */
    vocab_tab raw;              /* entries as the file writes them */
    vocab_tab piece; /* the bytes each stands for; BPE: the symbols too, and strings that only
                      * merges name follow the tokens */
    uint16_t *attr;
    float *score;               /* SPM only */
    vocab_merge *merge;         /* BPE only: hash by (left, right), n_merge_slots a power of two */
    uint32_t n_merge_slots;
    uint32_t byte_sym[256];     /* BPE: the symbol of a byte; SPM: its token; NO_SYM: none */
    vocab_step step[MAX_STEPS];
    uint32_t n_steps;
    uint32_t *special;          /* added tokens to look for in text, ordered by their bytes */
    uint32_t n_special;
    bool special_first[256];    /* bytes that one of them begins with */
    int32_t bos, eos, unk;
    size_t max_piece;           /* bytes */
};

/* Growing scratch of one encode, charged to SL_ACC_SCRATCH. */
typedef struct vocab_buf { void *p; size_t cap; } vocab_buf;

typedef struct vocab_work {
    sl_ctx *ctx;
    const sl_vocab *v;
    vocab_buf ids, cuts[2], syms, heap, text;
    uint32_t n_ids, n_heap;
    pcre2_match_data *md;
    pcre2_match_context *mc;
    pcre2_jit_stack *stack;
} vocab_work;

bool vocab_reserve(vocab_work *w, vocab_buf *b, size_t bytes);
bool vocab_push_id(vocab_work *w, uint32_t id);

/* The queue of candidate merges: the smallest key first. a and b let the owner see that one is
 * stale. */
typedef struct vocab_cand { uint64_t key; uint32_t a, b; } vocab_cand;
bool vocab_heap_push(vocab_work *w, vocab_cand c);
vocab_cand vocab_heap_pop(vocab_work *w);

/* Length of the UTF-8 character at p (1..4); 0 when n bytes end inside one; -1 when it is none. */
int vocab_utf8(const unsigned char *p, size_t n);

/* vocab_pre.c */
bool vocab_pre_find(const char *name, size_t n, uint32_t *ret_row);
sl_status vocab_pre_compile(sl_ctx *ctx, sl_vocab *v, uint32_t row);
void vocab_pre_fini(sl_vocab *v);
/* text[0..n) as pieces: *ret_cuts[i] is where piece i ends. In the work's own memory. */
sl_status vocab_pre_split(vocab_work *w, const char *text, uint32_t n, const uint32_t **ret_cuts,
                          uint32_t *ret_n);
/* NFC into w->text; bytes that are no UTF-8 are kept. */
sl_status vocab_pre_nfc(vocab_work *w, const char *text, uint32_t n, uint32_t *ret_n);

/* vocab_bpe.c, vocab_spm.c: build tables from the file; encode one stretch of plain text. */
sl_status vocab_bpe_load(sl_ctx *ctx, sl_vocab *v, const sl_gguf *g);
sl_status vocab_bpe_encode(vocab_work *w, const char *text, uint32_t n);
sl_status vocab_spm_load(sl_ctx *ctx, sl_vocab *v, const sl_gguf *g);
sl_status vocab_spm_encode(vocab_work *w, const char *text, uint32_t n, bool after_special);

#endif
