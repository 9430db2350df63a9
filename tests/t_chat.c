/* tests/t_chat.c - every template of tests/golden/chat.json: its family is recognised, whole
 * conversations are what Jinja renders, and turn by turn gives the same text; what harmony shows.
 */
#include "runtime/sl_chat.h"
#include "tests/t_kv.h"

#include <jansson.h>

static const char *str(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    T_NEED(s, "chat.json: no \"%s\"", key);
    return s;
}

struct model { sl_ctx *ctx; sl_gguf *g; sl_vocab *v; };

static void open_model(struct model *m, const char *template, const char *bos, const char *eos,
                       bool add_bos)
{
    static t_kv k;
    const char *tokens[] = { "a", "b", *bos ? bos : "[no bos]", strcmp(bos, eos) ? eos : "[eos]",
                             "<|channel|>", "<|message|>", "<|start|>", "<|end|>", "final",
                             "analysis" };
    int32_t types[] = { 1, 1, 3, 3, 3, 3, 3, 3, 1, 1 };
    m->ctx = sl_ctx_create(NULL, NULL);
    t_kv_begin(&k);
    t_kv_str(&k, "tokenizer.ggml.model", "gpt2");
    t_kv_str(&k, "tokenizer.ggml.pre", "gpt-2");
    t_kv_strs(&k, "tokenizer.ggml.tokens", tokens, SL_LEN(tokens));
    t_kv_nums(&k, "tokenizer.ggml.token_type", types, SL_LEN(tokens));
    t_kv_strs(&k, "tokenizer.ggml.merges", (const char *[]){ "a b" }, 1);
    if (*bos) t_kv_num(&k, "tokenizer.ggml.bos_token_id", 2);
    t_kv_num(&k, "tokenizer.ggml.eos_token_id", strcmp(bos, eos) ? 3 : 2);
    t_kv_bool(&k, "tokenizer.ggml.add_bos_token", add_bos);
    if (template) t_kv_str(&k, "tokenizer.chat_template", template);
    m->g = t_kv_end(&k, m->ctx);
    T_NEED(sl_vocab_create(m->ctx, m->g, &m->v) == SL_OK, "%s", sl_error(m->ctx));
}

static void close_model(struct model *m)
{
    sl_vocab_destroy(&m->v);
    sl_gguf_close(&m->g);
    sl_ctx_destroy(&m->ctx);
}

/* The same conversation turn by turn, answers as the template writes them. */
static void check_turns(struct model *m, const sl_chat *c, const char *name,
                        const sl_chat_msg *msgs, size_t n, const char *want)
{
    char all[8192] = "", *text;
    const char *system = !strcmp(msgs[0].role, "system") ? msgs[0].content : NULL;
    bool first = true;
    for (size_t i = system ? 1 : 0; i < n; i++) {
        if (!strcmp(msgs[i].role, "assistant")) {
            strcat(all, msgs[i].content);
            continue;
        }
        T_NEED(sl_chat_format_turn(m->ctx, c, system, msgs[i].content,
                                   first ? SL_CHAT_FIRST : SL_CHAT_CUT, &text) == SL_OK,
               "%s: %s", name, sl_error(m->ctx));
        T_NEED(strlen(all) + strlen(text) + 256 < sizeof all, "%s: too long", name);
        strcat(all, text);
        free(text);
        first = false;
    }
    /* What the model itself writes between the prompt and its words is not in `all`: compare
     * without spaces, without reasoning marks and without harmony's channel. */
    static const char *const own[] = { "\n<think></think>\n", "<think>\n", "</think>",
                                       "<|channel|>final<|message|>", " ", "\n" };
    char ref[8192];
    strcpy(ref, want);
    for (size_t i = 0; i < SL_LEN(own); i++)
        for (int j = 0; j < 2; j++)
            for (char *at; (at = strstr(j ? ref : all, own[i]));)
                memmove(at, at + strlen(own[i]), strlen(at + strlen(own[i])) + 1);
    T_CHECK(!strcmp(all, ref), "%s, turn by turn:\n%s\nwant\n%s", name, all, ref);
}

static void check_case(struct model *m, const sl_chat *c, const char *name, const json_t *jc,
                       const char *bos, bool add_bos)
{
    sl_chat_msg msgs[16];
    const json_t *list = json_object_get(jc, "messages");
    size_t n = json_array_size(list);
    T_NEED(n <= SL_LEN(msgs), "%s: too many messages", name);
    for (size_t i = 0; i < n; i++) {
        const json_t *jm = json_array_get(list, i);
        msgs[i] = (sl_chat_msg){ str(jm, "role"), str(jm, "content") };
    }
    const char *want = str(jc, "text");
    if (add_bos && !strncmp(want, bos, strlen(bos)) && strncmp(want, "<|im_start|>", 12))
        want += strlen(bos);    /* the tokenizer adds it */
    char *text = NULL;
    T_NEED(sl_chat_format(m->ctx, c, msgs, n, true, &text) == SL_OK, "%s: %s", name,
           sl_error(m->ctx));
    T_CHECK(!strcmp(text, want), "%s, %zu messages: got\n%s\nwant\n%s", name, n, text, want);
    free(text);
    check_turns(m, c, name, msgs, n, want);
}

static void check_template(const json_t *t, bool add_bos)
{
    struct model m;
    sl_chat c;
    const char *name = str(t, "name"), *bos = str(t, "bos");
    open_model(&m, str(t, "template"), bos, str(t, "eos"), add_bos);
    T_NEED(sl_chat_detect(m.ctx, m.g, m.v, &c) == SL_OK, "%s: %s", name, sl_error(m.ctx));
    T_CHECK(!strcmp(sl_chat_name(c.kind), str(t, "family")), "%s: taken for %s", name,
            sl_chat_name(c.kind));
    T_CHECK(*sl_chat_end(&c), "%s: no end", name);
    size_t i;
    json_t *jc;
    json_array_foreach(json_object_get(t, "cases"), i, jc)
        check_case(&m, &c, name, jc, bos, add_bos);
    close_model(&m);
}

static void check_ended(void)
{
    struct model m;
    sl_chat c;
    char *text;
    open_model(&m, NULL, "", "</s>", false);
    T_CHECK(sl_chat_detect(m.ctx, m.g, m.v, &c) == SL_E_UNSUPPORTED, "no template: \"%s\"",
            sl_error(m.ctx));
    T_CHECK(sl_chat_pick(m.ctx, m.v, "nonsense", &c) == SL_E_ARG, "\"%s\"", sl_error(m.ctx));
    static const struct { const char *name, *want; } cases[] = {
        { "chatml", "\n<|im_start|>user\nGo on<|im_end|>\n<|im_start|>assistant\n" },
        { "glm-4", "\nGo on<|assistant|>\n" },
        { "llama-2", "[INST] Go on [/INST]" },
        { "granite", "\n<|start_of_role|>user<|end_of_role|>Go on<|end_of_text|>\n"
                     "<|start_of_role|>assistant<|end_of_role|>" },
        { "deepseek-3", "<｜User｜>Go on<｜Assistant｜>" },
    };
    for (size_t i = 0; i < SL_LEN(cases); i++) {
        T_NEED(sl_chat_pick(m.ctx, m.v, cases[i].name, &c) == SL_OK, "%s", sl_error(m.ctx));
        T_NEED(sl_chat_format_turn(m.ctx, &c, NULL, "Go on", SL_CHAT_ENDED, &text) == SL_OK, "%s",
               sl_error(m.ctx));
        T_CHECK(!strcmp(text, cases[i].want), "%s: \"%s\"", cases[i].name, text);
        free(text);
    }
    text = NULL;
    sl_chat_msg tool = { "tool", "42" };
    T_CHECK(sl_chat_format(m.ctx, &c, &tool, 1, true, &text) == SL_E_UNSUPPORTED && !text, "role");
    close_model(&m);
    open_model(&m, "{{ 'Q: ' + messages[0].content }}", "", "</s>", false);
    T_CHECK(sl_chat_detect(m.ctx, m.g, m.v, &c) == SL_E_UNSUPPORTED, "unknown: \"%s\"",
            sl_error(m.ctx));
    close_model(&m);
}

static void check_view(void)
{
    struct model m;
    sl_chat c;
    sl_chat_view w;
    open_model(&m, NULL, "", "</s>", false);
    enum { A = 0, B = 1, CHANNEL = 4, MESSAGE, START, END, FINAL, ANALYSIS };
    static const int32_t ids[] = { CHANNEL, ANALYSIS, MESSAGE, A, B, END, START, A, CHANNEL, FINAL,
                                   MESSAGE, A, B, B };
    static const bool want[] = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1 };
    T_NEED(sl_chat_pick(m.ctx, m.v, "harmony", &c) == SL_OK, "%s", sl_error(m.ctx));
    sl_chat_view_init(&w, &c, m.v);
    for (size_t i = 0; i < SL_LEN(ids); i++)
        T_CHECK(sl_chat_view_push(&w, m.v, ids[i]) == want[i], "harmony, token %zu", i);
    T_NEED(sl_chat_pick(m.ctx, m.v, "chatml", &c) == SL_OK, "%s", sl_error(m.ctx));
    sl_chat_view_init(&w, &c, m.v);
    T_CHECK(sl_chat_view_push(&w, m.v, CHANNEL) && sl_chat_view_push(&w, m.v, A), "chatml");
    close_model(&m);
}

int main(void)
{
    char path[4096];
    const char *root = getenv("SLUICE_SOURCE_DIR");
    snprintf(path, sizeof path, "%s/tests/golden/chat.json", root ? root : ".");
    json_error_t err;
    json_t *all = json_load_file(path, 0, &err), *t;
    T_NEED(all, "%s: %s", path, err.text);
    size_t i;
    json_array_foreach(json_object_get(all, "templates"), i, t) {
        check_template(t, false);
        if (*str(t, "bos")) check_template(t, true);
    }
    json_decref(all);
    check_ended();
    check_view();
    return t_end();
}
