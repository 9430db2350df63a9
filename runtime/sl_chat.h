/* runtime/sl_chat.h - chat templates by family: the text a conversation is to a model.
 * Owns the formats. Must not run a model's Jinja template: the family is recognised by strings that
 * only its templates hold. Threads: a const sl_chat may be shared. Tested by tests/t_chat.c against
 * Jinja's rendering of the families' templates (tests/golden/chat.json).
 *
 * All text made here is to be encoded with parse_special = true, the first of a conversation with
 * add_bos_eos = true: BOS is in the text only where the template has one and the file says that the
 * tokenizer adds none. An answer ends with a token that sl_vocab_is_eog knows; sl_chat_end tells
 * its text.
 *
 *     family      a turn ends with        family      a turn ends with
 *     chatml      <|im_end|>              glm-4, 4.5  <|user|> (the next turn's opening)
 *     llama-2     the EOS token           harmony     <|return|>; <|end|> ends a message before it
 *     llama-3     <|eot_id|>              granite     <|end_of_text|>
 *     mistral     the EOS token           phi-3       <|end|>
 *     deepseek    the EOS token           olmoe, zephyr   the EOS token */
#ifndef SL_CHAT_H
#define SL_CHAT_H

#include "runtime/sl_vocab.h"

typedef enum sl_chat_kind {
    SL_CHAT_CHATML,         /* Qwen, SmolLM2, ... */
    SL_CHAT_CHATML_THINK,   /* the answer opens with <think> (Qwen3 Thinking) */
    SL_CHAT_LLAMA2,
    SL_CHAT_LLAMA3,
    SL_CHAT_LLAMA31,        /* with the two date lines that its template always writes */
    SL_CHAT_LLAMA4,
    SL_CHAT_MISTRAL_V0,     /* Mixtral 8x7B's first template */
    SL_CHAT_MISTRAL_V1,
    SL_CHAT_MISTRAL_V3,
    SL_CHAT_MISTRAL_V3_TEKKEN,
    SL_CHAT_MISTRAL_V7,
    SL_CHAT_MISTRAL_V7_TEKKEN,
    SL_CHAT_DEEPSEEK2,
    SL_CHAT_DEEPSEEK3,
    SL_CHAT_DEEPSEEK_R1,    /* the answer opens with <think> */
    SL_CHAT_DEEPSEEK31,     /* without thinking */
    SL_CHAT_GLM4,
    SL_CHAT_GLM45,
    SL_CHAT_HARMONY,        /* gpt-oss */
    SL_CHAT_GRANITE,
    SL_CHAT_PHI3,
    SL_CHAT_PHI4,
    SL_CHAT_PHI4_MINI,
    SL_CHAT_OLMOE,
    SL_CHAT_ZEPHYR,
    SL_CHAT_KIMI,
    SL_N_CHAT_KINDS
} sl_chat_kind;

typedef struct sl_chat {
    sl_chat_kind kind;
    char head[72];          /* BOS or EOS text in front of everything, where the template has it */
    char bos[64], eos[64];  /* the tokens' text, "" for none */
    char system[512];       /* what stands there when no system message is given; "" for none */
} sl_chat;

typedef struct sl_chat_msg {
    const char *role;       /* "system", "user" or "assistant" */
    const char *content;
} sl_chat_msg;

/* The family of g's own template. Errors: SL_E_UNSUPPORTED (no template, or of a family unknown
 * here). */
SL_API SL_NODISCARD sl_status sl_chat_detect(sl_ctx *ctx, const sl_gguf *g, const sl_vocab *v,
                                             sl_chat *ret);
/* A family by its name, whatever the file says. Errors: SL_E_ARG (the message lists the names). */
SL_API SL_NODISCARD sl_status sl_chat_pick(sl_ctx *ctx, const sl_vocab *v, const char *name,
                                           sl_chat *ret);
SL_API const char *sl_chat_name(sl_chat_kind kind);     /* "chatml", "llama-3", ... */
SL_API const char *sl_chat_end(const sl_chat *c); /* the text of the token that ends an answer */

/* The text of a whole conversation; when add_generation_prompt, also what an answer begins with.
 * The caller frees *ret_text. Errors: SL_E_UNSUPPORTED (a role that no family here has),
 * SL_E_NOMEM. */
SL_API SL_NODISCARD sl_status sl_chat_format(sl_ctx *ctx, const sl_chat *c, const sl_chat_msg *msgs,
                                             size_t n_msgs, bool add_generation_prompt,
                                             char **ret_text);

typedef enum sl_chat_before { /* what the model's context holds in front of the new turn */
                              SL_CHAT_FIRST, /* nothing */
                              SL_CHAT_ENDED, /* an answer with its end token */
                              SL_CHAT_CUT, /* an answer without it: it was cut, or its end token
                                              never became a row */
} sl_chat_before;

/* Only what a new user message adds, up to and with what the answer begins with, so that earlier
 * turns' KV stays. `system` (NULL: the default) counts on the first turn only. The context then
 * differs from sl_chat_format's text in what the model itself wrote: spaces around an answer that
 * the template trims, and reasoning, which templates drop from earlier turns and KV reuse keeps.
 * The caller frees *ret_text. Errors: SL_E_NOMEM. */
SL_API SL_NODISCARD sl_status sl_chat_format_turn(sl_ctx *ctx, const sl_chat *c, const char *system,
                                                  const char *user, sl_chat_before before,
                                                  char **ret_text);

/* Which tokens of an answer to show. Harmony answers in channels,
 * "<|channel|>analysis<|message|>...
 * <|end|><|start|>assistant<|channel|>final<|message|>...<|return|>", of which only final is shown;
 * answers of other families are shown whole. One per answer. */
typedef struct sl_chat_view {
    int32_t channel, message, start, end;   /* token ids; -1: not this family */
    bool shown, in_header;
    uint32_t n_name;
    char name[16];          /* of the channel; longer ones are cut */
} sl_chat_view;
SL_API void sl_chat_view_init(sl_chat_view *w, const sl_chat *c, const sl_vocab *v);
SL_API bool sl_chat_view_push(sl_chat_view *w, const sl_vocab *v,
                              int32_t id); /* show this token's text? */

#endif
