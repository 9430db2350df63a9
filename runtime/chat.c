/* runtime/chat.c - chat templates: one row per family, recognised by substrings.
 * Sources: the models' own templates; which substrings tell them apart follows what llama.cpp looks
 * for. */
#include "runtime/sl_chat.h"

#include <assert.h>
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define EOS "\1"        /* in a row's strings: the text of the file's EOS and BOS token */
#define BOS "\2"

/* A turn is user_open content user_close; an answer is answer_open content answer_close after. */
typedef struct chat_row {
    const char *name;
    const char *head;
    const char *system_open, *system_close;
    const char *user_open, *user_close;
    const char *next_open;      /* user_open of later turns, NULL: the same */
    const char *prompt;         /* what an answer begins with when one is asked for */
    const char *answer_open, *answer_close, *after;
    const char *end;            /* the token that ends an answer */
    bool system_in_user;        /* the system message stands inside the user turn that follows it */
    bool trim_user, trim_answer;
    bool always_system;         /* the block is there even without a system message */
    bool default_system;        /* the file's template may name a default */
} chat_row;

#define HEADER3(role) "<|start_header_id|>" role "<|end_header_id|>\n\n"
#define HEADER4(role) "<|header_start|>" role "<|header_end|>\n\n"
#define ROLE(role) "<|start_of_role|>" role "<|end_of_role|>"
#define DATES "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
#define CHATML \
    .system_open = "<|im_start|>system\n", .system_close = "<|im_end|>\n", \
    .user_open = "<|im_start|>user\n", .user_close = "<|im_end|>\n", \
    .answer_open = "<|im_start|>assistant\n", .answer_close = "<|im_end|>", .after = "\n", \
    .end = "<|im_end|>", .default_system = true
#define LLAMA3(open, dates, stop) \
    .system_open = open("system") dates, .system_close = stop, .user_open = open("user"), \
    .user_close = stop, .prompt = open("assistant"), .answer_open = open("assistant"), \
    .answer_close = stop, .after = "", .end = stop, .trim_user = true, .trim_answer = true
#define DEEPSEEK3(opening, past)                                                                   \
    .system_open = "", .system_close = "", .user_open = "<｜User｜>", .user_close = "",            \
    .prompt = "<｜Assistant｜>" opening, .answer_open = "<｜Assistant｜>" past,                    \
    .answer_close = EOS, .after = "", .end = EOS
#define MISTRAL(open, close, space)                                                                \
    .system_open = "", .system_close = "\n\n", .user_open = open, .user_close = close,             \
    .prompt = "", .answer_open = space, .answer_close = EOS, .after = "", .end = EOS,              \
    .system_in_user = true
#define MISTRAL7(space) \
    .system_open = "[SYSTEM_PROMPT]" space, .system_close = "[/SYSTEM_PROMPT]", \
    .user_open = "[INST]" space, .user_close = "[/INST]", .prompt = "", .answer_open = space, \
    .answer_close = EOS, .after = "", .end = EOS
#define BARS(nl, stop, stop_nl) \
    .system_open = "<|system|>" nl, .system_close = stop stop_nl, .user_open = "<|user|>" nl, \
    .user_close = stop stop_nl
#define BARS_ANSWER(nl) .prompt = "<|assistant|>" nl, .answer_open = "<|assistant|>" nl

static const chat_row rows[SL_N_CHAT_KINDS] = {
    [SL_CHAT_CHATML] = { "chatml", CHATML, .prompt = "<|im_start|>assistant\n" },
    [SL_CHAT_CHATML_THINK] = { "chatml-think", CHATML,
                               .prompt = "<|im_start|>assistant\n<think>\n" },
    [SL_CHAT_LLAMA2] = { "llama-2", .system_open = "<<SYS>>\n", .system_close = "\n<</SYS>>\n\n",
                         .user_open = "[INST] ", .user_close = " [/INST]", .prompt = "",
                         .next_open = BOS "[INST] ", .answer_open = " ", .answer_close = " " EOS,
                         .after = "", .end = EOS, .system_in_user = true, .trim_user = true,
                         .trim_answer = true },
    [SL_CHAT_LLAMA3] = { "llama-3", LLAMA3(HEADER3, "", "<|eot_id|>") },
    [SL_CHAT_LLAMA31] = { "llama-3.1", LLAMA3(HEADER3, DATES, "<|eot_id|>"),
                          .always_system = true },
    [SL_CHAT_LLAMA4] = { "llama-4", LLAMA3(HEADER4, "", "<|eot|>") },
    [SL_CHAT_MISTRAL_V0] = { "mistral-v0", MISTRAL("[INST] ", " [/INST]", "") },
    [SL_CHAT_MISTRAL_V1] = { "mistral-v1", MISTRAL(" [INST] ", " [/INST]", " ") },
    [SL_CHAT_MISTRAL_V3] = { "mistral-v3", MISTRAL("[INST] ", "[/INST]", " "),
                             .trim_answer = true },
    [SL_CHAT_MISTRAL_V3_TEKKEN] = { "mistral-v3-tekken", MISTRAL("[INST]", "[/INST]", "") },
    [SL_CHAT_MISTRAL_V7] = { "mistral-v7", MISTRAL7(" ") },
    [SL_CHAT_MISTRAL_V7_TEKKEN] = { "mistral-v7-tekken", MISTRAL7("") },
    [SL_CHAT_DEEPSEEK2] = { "deepseek-2", .system_open = "", .system_close = "\n\n",
                            .user_open = "User: ", .user_close = "\n\n", .prompt = "Assistant:",
                            .answer_open = "Assistant: ", .answer_close = EOS, .after = "",
                            .end = EOS },
    [SL_CHAT_DEEPSEEK3] = { "deepseek-3", DEEPSEEK3("", "") },
    [SL_CHAT_DEEPSEEK_R1] = { "deepseek-r1", DEEPSEEK3("<think>\n", "") },
    [SL_CHAT_DEEPSEEK31] = { "deepseek-3.1", DEEPSEEK3("</think>", "</think>") },
    [SL_CHAT_GLM4] = { "glm-4", .head = "[gMASK]<sop>", BARS("\n", "", ""), BARS_ANSWER("\n"),
                       .answer_close = "", .after = "", .end = "<|user|>" },
    [SL_CHAT_GLM45] = { "glm-4.5", .head = "[gMASK]<sop>", BARS("\n", "", ""), .answer_close = "",
                        .after = "", .end = "<|user|>", .prompt = "<|assistant|>",
                        .answer_open = "<|assistant|>\n<think></think>\n", .trim_answer = true },
    [SL_CHAT_HARMONY] = { "harmony",
                          .head = "<|start|>system<|message|>You are ChatGPT, a large language "
                                  "model trained by OpenAI.\nKnowledge cutoff: 2024-06\n\n"
                                  "Reasoning: medium\n\n# Valid channels: analysis, commentary, "
                                  "final. Channel must be included for every message.<|end|>",
                          .system_open = "<|start|>developer<|message|># Instructions\n\n",
                          .system_close = "\n\n<|end|>", .user_open = "<|start|>user<|message|>",
                          .user_close = "<|end|>", .prompt = "<|start|>assistant",
                          .answer_open = "<|start|>assistant<|channel|>final<|message|>",
                          .answer_close = "<|end|>", .after = "", .end = "<|return|>" },
    [SL_CHAT_GRANITE] = { "granite", .system_open = ROLE("system"),
                          .system_close = "<|end_of_text|>\n", .user_open = ROLE("user"),
                          .user_close = "<|end_of_text|>\n", .prompt = ROLE("assistant"),
                          .answer_open = ROLE("assistant"), .answer_close = "<|end_of_text|>",
                          .after = "\n", .end = "<|end_of_text|>" },
    [SL_CHAT_PHI3] = { "phi-3", BARS("\n", "<|end|>", "\n"), BARS_ANSWER("\n"),
                       .answer_close = "<|end|>", .after = "\n", .end = "<|end|>" },
    [SL_CHAT_PHI4] = { "phi-4", .system_open = "<|im_start|>system<|im_sep|>",
                       .system_close = "<|im_end|>", .user_open = "<|im_start|>user<|im_sep|>",
                       .user_close = "<|im_end|>", .prompt = "<|im_start|>assistant<|im_sep|>",
                       .answer_open = "<|im_start|>assistant<|im_sep|>",
                       .answer_close = "<|im_end|>", .after = "", .end = "<|im_end|>" },
    [SL_CHAT_PHI4_MINI] = { "phi-4-mini", BARS("", "<|end|>", ""), BARS_ANSWER(""),
                            .answer_close = "<|end|>", .after = "", .end = "<|end|>" },
    [SL_CHAT_OLMOE] = { "olmoe", BARS("\n", "", "\n"), BARS_ANSWER("\n"), .answer_close = EOS,
                        .after = "\n", .end = EOS },
    [SL_CHAT_ZEPHYR] = { "zephyr", BARS("\n", EOS, "\n"), BARS_ANSWER("\n"), .answer_close = EOS,
                         .after = "\n", .end = EOS },
    [SL_CHAT_KIMI] = { "kimi", .system_open = "<|im_system|>system<|im_middle|>",
                       .system_close = "<|im_end|>", .user_open = "<|im_user|>user<|im_middle|>",
                       .user_close = "<|im_end|>",
                       .prompt = "<|im_assistant|>assistant<|im_middle|>",
                       .answer_open = "<|im_assistant|>assistant<|im_middle|>",
                       .answer_close = "<|im_end|>", .after = "", .end = "<|im_end|>",
                       .default_system = true },
};

/* Strings that tell the families apart; a row matches when the template holds all of `has` and none
 * of `lacks`; the first match counts. Templates write a line break as \n or as itself: here as
 * itself. */
static const struct { sl_chat_kind kind; const char *has[3], *lacks[2]; } signs[] = {
    { SL_CHAT_PHI4, { "<|im_start|>", "<|im_sep|>" }, { NULL } },
    { SL_CHAT_CHATML_THINK, { "<|im_start|>assistant\n<think>\n" }, { NULL } },
    { SL_CHAT_CHATML, { "<|im_start|>", "<|im_end|>" }, { "<end_of_utterance>" } },
    { SL_CHAT_MISTRAL_V7, { "[INST]", "[SYSTEM_PROMPT] " }, { NULL } },
    { SL_CHAT_MISTRAL_V7_TEKKEN, { "[INST]", "[SYSTEM_PROMPT]" }, { NULL } },
    { SL_CHAT_MISTRAL_V1, { "' [INST] ' + system_message" }, { NULL } },
    { SL_CHAT_MISTRAL_V1, { "[AVAILABLE_TOOLS]", " [INST]" }, { NULL } },
    { SL_CHAT_MISTRAL_V3_TEKKEN, { "[AVAILABLE_TOOLS]", "\"[INST]\"" }, { NULL } },
    { SL_CHAT_MISTRAL_V3, { "[AVAILABLE_TOOLS]", "[INST]" }, { NULL } },
    { SL_CHAT_LLAMA2, { "[INST]", "<<SYS>>" }, { NULL } },
    { SL_CHAT_MISTRAL_V0, { "[INST] ", " [/INST]" }, { NULL } },
    { SL_CHAT_HARMONY, { "<|start|>", "<|channel|>", "<|message|>" }, { NULL } },
    { SL_CHAT_GLM45, { "[gMASK]<sop>", "<think></think>" }, { NULL } },
    { SL_CHAT_GLM4, { "[gMASK]<sop>" }, { NULL } },
    { SL_CHAT_PHI3, { "<|assistant|>", "<|end|>\n" }, { NULL } },
    { SL_CHAT_PHI3, { "<|assistant|>", "'<|end|>' + '\n'" }, { NULL } },
    { SL_CHAT_PHI4_MINI, { "<|assistant|>", "<|end|>" }, { NULL } },
    { SL_CHAT_LLAMA31, { "<|start_header_id|>", "Cutting Knowledge Date" }, { NULL } },
    { SL_CHAT_LLAMA3, { "<|start_header_id|>", "<|end_header_id|>" }, { NULL } },
    { SL_CHAT_LLAMA4, { "<|header_start|>", "<|header_end|>" }, { NULL } },
    { SL_CHAT_GRANITE, { "<|start_of_role|>", "<|end_of_role|>" }, { NULL } },
    { SL_CHAT_DEEPSEEK2, { "'Assistant: ' + message['content'] + eos_token" }, { NULL } },
    { SL_CHAT_DEEPSEEK_R1, { "<｜User｜>", "<｜Assistant｜><think>" }, { NULL } },
    { SL_CHAT_DEEPSEEK31, { "<｜User｜>", "<｜Assistant｜>", "{{'</think>'}}" }, { NULL } },
    { SL_CHAT_DEEPSEEK3, { "<｜User｜>", "<｜Assistant｜>" }, { NULL } },
    { SL_CHAT_ZEPHYR, { "'<|user|>\n' + message['content'] + eos_token" }, { NULL } },
    { SL_CHAT_ZEPHYR, { "<|user|>", "<|assistant|>", "message['content'] + '<|endoftext|>'" },
      { NULL } },
    { SL_CHAT_OLMOE, { "'<|user|>\n' + message['content'] }}", "<|assistant|>", "eos_token" },
      { NULL } },
    { SL_CHAT_KIMI, { "<|im_assistant|>", "<|im_middle|>" }, { NULL } },
};

const char *sl_chat_name(sl_chat_kind kind)
{
    return kind < SL_N_CHAT_KINDS ? rows[kind].name : "unknown";
}

/* ---- growing text ---- */

typedef struct text { const sl_chat *c; char *p; size_t n, cap; bool failed; } text;

static void put_n(text *t, const char *s, size_t n)
{
    if (t->n + n + 1 > t->cap && !t->failed) {
        size_t cap = SL_MAX(t->cap * 2, t->n + n + 256);
        char *p = realloc(t->p, cap);
        t->failed = !p;
        if (p) t->p = p, t->cap = cap;
    }
    if (t->failed) return;
    memcpy(t->p + t->n, s, n);
    t->n += n;
    t->p[t->n] = 0;
}

/* A row's string, with the tokens' texts in their places. */
static void put(text *t, const char *s)
{
    for (; s && *s; s++) {
        const char *token = *s == EOS[0] ? t->c->eos : *s == BOS[0] ? t->c->bos : NULL;
        if (token) put_n(t, token, strlen(token));
        else put_n(t, s, 1);
    }
}

static void put_content(text *t, const char *s, bool trim)
{
    size_t n = strlen(s);
    while (trim && n && isspace((unsigned char)*s)) s++, n--;
    while (trim && n && isspace((unsigned char)s[n - 1])) n--;
    put_n(t, s, n);
}

static sl_status finish(sl_ctx *ctx, text *t, sl_status st, char **ret)
{
    put_n(t, "", 0);
    if (st == SL_OK && t->failed) st = sl_fail(ctx, SL_E_NOMEM, "text of a conversation");
    if (st == SL_OK) *ret = t->p;
    else free(t->p);
    return st;
}

/* ---- recognising ---- */

static void token_text(const sl_vocab *v, int32_t id, char ret[64])
{
    sl_str s = id >= 0 ? sl_vocab_piece(v, id) : (sl_str){ "", 0 };
    size_t n = s.n < 64 ? s.n : 0;
    memcpy(ret, s.p, n);
    ret[n] = 0;
}

/* The literal that the template puts between system_open and system_close when none is given, as in
 * '<|im_start|>system\nYou are ...<|im_end|>\n'. */
static void find_default_system(const char *tmpl, const chat_row *row, char ret[512])
{
    size_t n_open = strlen(row->system_open), n_close = strcspn(row->system_close, "\n");
    for (const char *at = strstr(tmpl, row->system_open); at; at = strstr(at, row->system_open)) {
        at += n_open;
        size_t n = strcspn(at, "'\"{}<");
        if (!n || n >= 512 || strncmp(at + n, row->system_close, n_close)) continue;
        memcpy(ret, at, n);
        ret[n] = 0;
        return;
    }
}

/* "\n" as two characters becomes a line break; NULL: no memory. */
static char *with_breaks(sl_str s)
{
    char *t = malloc(s.n + 1);
    size_t n = 0;
    for (size_t i = 0; t && i < s.n; i++) {
        bool brk = s.p[i] == '\\' && i + 1 < s.n && s.p[i + 1] == 'n';
        t[n++] = brk ? '\n' : s.p[i] ? s.p[i] : ' ';
        i += brk;
    }
    if (t) t[n] = 0;
    return t;
}

static bool matches(const char *tmpl, size_t i)
{
    for (size_t j = 0; j < SL_LEN(signs[i].has) && signs[i].has[j]; j++)
        if (!strstr(tmpl, signs[i].has[j])) return false;
    for (size_t j = 0; j < SL_LEN(signs[i].lacks) && signs[i].lacks[j]; j++)
        if (strstr(tmpl, signs[i].lacks[j])) return false;
    return true;
}

static void fill(sl_chat *c, sl_chat_kind kind, const sl_vocab *v)
{
    *c = (sl_chat){ .kind = kind };
    token_text(v, sl_vocab_bos(v), c->bos);
    token_text(v, sl_vocab_eos(v), c->eos);
}

sl_status sl_chat_pick(sl_ctx *ctx, const sl_vocab *v, const char *name, sl_chat *ret)
{
    char all[512] = "";
    for (int k = 0; k < SL_N_CHAT_KINDS; k++) {
        if (!strcmp(rows[k].name, name)) {
            fill(ret, (sl_chat_kind)k, v);
            return SL_OK;
        }
        strcat(strcat(all, k ? ", " : ""), rows[k].name);
    }
    return sl_fail(ctx, SL_E_ARG, "chat template \"%s\": expected one of %s", name, all);
}

sl_status sl_chat_detect(sl_ctx *ctx, const sl_gguf *g, const sl_vocab *v, sl_chat *ret)
{
    assert(ctx && g && v && ret);
    sl_str s;
    const sl_gguf_kv *kv = sl_gguf_kv_find(g, "tokenizer.chat_template");
    if (!kv || kv->type != SL_GGUF_STR || !sl_gguf_get_str(g, kv, 0, &s) || !s.n)
        return sl_fail(ctx, SL_E_UNSUPPORTED,
                       "the model has no chat template: it was not made for chat");
    char *tmpl = with_breaks(s);
    if (!tmpl) return sl_fail(ctx, SL_E_NOMEM, "chat template of %zu bytes", s.n);
    size_t i = 0;
    while (i < SL_LEN(signs) && !matches(tmpl, i)) i++;
    if (i == SL_LEN(signs)) {
        free(tmpl);
        return sl_fail(ctx, SL_E_UNSUPPORTED,
                       "the model's chat template is of no family known here; it "
                       "begins with \"%.*s\"",
                       (int)SL_MIN(strcspn(s.p, "\n"), SL_MIN(s.n, 60)), s.p);
    }
    sl_chat c;
    fill(&c, signs[i].kind, v);
    if (rows[c.kind].default_system) find_default_system(tmpl, &rows[c.kind], c.system);
    if (!strncmp(tmpl, "{{ eos_token }}", 15)) strcpy(c.head, c.eos);
    else if (strstr(tmpl, "bos_token") && !sl_vocab_add_bos(v)) strcpy(c.head, c.bos);
    free(tmpl);
    *ret = c;
    return SL_OK;
}

/* ---- formatting ---- */

const char *sl_chat_end(const sl_chat *c)
{
    const char *end = rows[c->kind].end;
    return !strcmp(end, EOS) ? c->eos : end;
}

static void put_system(text *t, const chat_row *r, const char *content)
{
    put(t, r->system_open);
    put_content(t, content, r->trim_user);
    put(t, r->system_close);
}

/* system: what goes inside the turn, NULL for none. */
static void put_user(text *t, const chat_row *r, const char *system, const char *user, bool first)
{
    put(t, !first && r->next_open ? r->next_open : r->user_open);
    if (system) put_system(t, r, system);
    put_content(t, user, r->trim_user);
    put(t, r->user_close);
}

/* What stands in front of the first message, and the system message that is in force. */
static const char *put_head(text *t, const chat_row *r, const char *system)
{
    put_n(t, t->c->head, strlen(t->c->head));
    put(t, r->head);
    if (!system && t->c->system[0]) system = t->c->system;
    if (!system && r->always_system) system = "";
    if (system && !r->system_in_user) put_system(t, r, system);
    return system;
}

sl_status sl_chat_format(sl_ctx *ctx, const sl_chat *c, const sl_chat_msg *msgs, size_t n_msgs,
                         bool add_generation_prompt, char **ret_text)
{
    assert(ctx && c && (msgs || !n_msgs) && ret_text);
    const chat_row *r = &rows[c->kind];
    text t = { .c = c };
    bool own = n_msgs && !strcmp(msgs[0].role, "system");
    const char *system = put_head(&t, r, own ? msgs[0].content : NULL);
    bool first = true;
    for (size_t i = own; i < n_msgs; i++) {
        const sl_chat_msg *m = &msgs[i];
        if (!strcmp(m->role, "user")) {
            put_user(&t, r, r->system_in_user ? system : NULL, m->content, first);
            first = false;
            system = NULL;
        } else if (!strcmp(m->role, "assistant")) {
            put(&t, r->answer_open);
            put_content(&t, m->content, r->trim_answer);
            put(&t, r->answer_close);
            put(&t, r->after);
        } else if (!strcmp(m->role, "system")) {
            if (r->system_in_user) system = m->content;
            else put_system(&t, r, m->content);
        } else {
            return finish(ctx, &t,
                          sl_fail(ctx, SL_E_UNSUPPORTED,
                                  "chat role \"%s\": expected system, "
                                  "user or assistant",
                                  m->role),
                          ret_text);
        }
    }
    if (add_generation_prompt) put(&t, r->prompt);
    return finish(ctx, &t, SL_OK, ret_text);
}

sl_status sl_chat_format_turn(sl_ctx *ctx, const sl_chat *c, const char *system, const char *user,
                              sl_chat_before before, char **ret_text)
{
    assert(ctx && c && user && ret_text);
    const chat_row *r = &rows[c->kind];
    text t = { .c = c };
    if (before == SL_CHAT_FIRST) {
        system = put_head(&t, r, system);
        put_user(&t, r, r->system_in_user ? system : NULL, user, true);
    } else {
        if (before == SL_CHAT_CUT) put(&t, r->answer_close);
        put(&t, r->after);
        size_t at = t.n;
        put_user(&t, r, NULL, user, false);
        size_t n_end = strlen(r->end);
        if (before == SL_CHAT_ENDED && !t.failed && !strncmp(t.p + at, r->end, n_end))
            memmove(t.p + at, t.p + at + n_end, t.n - at - n_end + 1), t.n -= n_end;    /* GLM */
    }
    put(&t, r->prompt);
    return finish(ctx, &t, SL_OK, ret_text);
}

/* ---- what to show ---- */

void sl_chat_view_init(sl_chat_view *w, const sl_chat *c, const sl_vocab *v)
{
    *w = (sl_chat_view){ -1, -1, -1, -1, .shown = true };
    if (c->kind != SL_CHAT_HARMONY) return;
    w->channel = sl_vocab_find(v, "<|channel|>");
    w->message = sl_vocab_find(v, "<|message|>");
    w->start = sl_vocab_find(v, "<|start|>");
    w->end = sl_vocab_find(v, "<|end|>");
    w->shown = w->channel < 0 || w->message < 0;    /* such a vocabulary has no channels */
}

bool sl_chat_view_push(sl_chat_view *w, const sl_vocab *v, int32_t id)
{
    if (w->channel < 0 || w->message < 0) return true;
    if (id == w->channel) {
        w->in_header = true;
        w->shown = false;
        w->n_name = 0;
    } else if (id == w->message) {      /* without a channel, what follows is for the reader */
        w->in_header = false;
        w->shown = !w->n_name || (w->n_name >= 5 && !memcmp(w->name, "final", 5));
        w->n_name = 0;
        return false;
    } else if (id == w->start || id == w->end) {
        w->in_header = w->shown = false;
        w->n_name = 0;
    } else if (w->in_header) {
        sl_str s = sl_vocab_piece(v, id);
        for (size_t i = 0; i < s.n && w->n_name < sizeof w->name; i++)
            w->name[w->n_name++] = s.p[i];
    }
    return w->shown;
}
