/* runtime/sl_vocab.h - tokenizer: text to token ids and back, from a GGUF's tokenizer.* keys.
 * Kinds: byte-level BPE ("gpt2") with the split pattern that tokenizer.ggml.pre names, and
 * SentencePiece BPE ("llama") with byte fallback. Owns its tables (copied: the GGUF may be closed).
 * Must not know a model's weights. Threads: a const sl_vocab may be shared.
 * Tested by tests/t_vocab.c and tests/fuzz_vocab.c against reference tokenizers' vectors. */
#ifndef SL_VOCAB_H
#define SL_VOCAB_H

#include "runtime/sl_gguf.h"

typedef struct sl_vocab sl_vocab;

/* Errors: SL_E_FORMAT (keys missing or inconsistent), SL_E_UNSUPPORTED (tokenizer model unknown),
 * SL_E_NOMEM. An unknown tokenizer.ggml.pre is a warning, and the gpt-2 pattern is used. */
SL_API SL_NODISCARD sl_status sl_vocab_create(sl_ctx *ctx, const sl_gguf *g, sl_vocab **ret);
SL_API void sl_vocab_destroy(sl_vocab **v);

SL_API uint32_t sl_vocab_size(const sl_vocab *v);
SL_API int32_t sl_vocab_bos(const sl_vocab *v);    /* -1: none */
SL_API int32_t sl_vocab_eos(const sl_vocab *v);
SL_API bool sl_vocab_add_bos(const sl_vocab *v);   /* the model wants BOS in front of a prompt */
SL_API bool sl_vocab_add_eos(const sl_vocab *v);
/* ends an answer: eos, <|im_end|> ... */
SL_API bool sl_vocab_is_eog(const sl_vocab *v, int32_t id);
SL_API bool sl_vocab_is_control(const sl_vocab *v, int32_t id);  /* never shown as text */
SL_API int32_t sl_vocab_find(const sl_vocab *v, const char *piece);  /* exact entry; -1: none */

/* The bytes that id prints, a control token's name included; they live as long as v. */
SL_API sl_str sl_vocab_piece(const sl_vocab *v, int32_t id);

/* Text (any bytes, n of them) to ids. Special tokens in the text are recognised when parse_special,
 * or else taken as plain text; user-defined added tokens are always recognised. BOS/EOS are added
 * only when add_bos_eos, and then as the model says. The ids are malloc'ed: the caller frees
 * *ret_ids. Text is normalised to NFC first where the models of that pre-tokenizer do so (qwen2,
 * olmo, mpt, command-r). Linear in n. Errors: SL_E_NOMEM; SL_E_ARG from 512 MiB of text on. Invalid
 * UTF-8 is accepted as bytes. */
SL_API SL_NODISCARD sl_status sl_vocab_encode(sl_ctx *ctx, const sl_vocab *v, const char *text,
                                              size_t n, bool add_bos_eos, bool parse_special,
                                              int32_t **ret_ids, uint32_t *ret_n);

/* Streaming way back. Holds bytes until they are whole UTF-8 characters. */
typedef struct sl_detok { unsigned char held[8]; uint32_t n_held; bool started; } sl_detok;
SL_API void sl_detok_init(sl_detok *d);
/* Text that id adds, as whole UTF-8 characters, into buf (not terminated), the count returned; a
 * character still incomplete is held back. Control tokens give nothing unless show_special. Bytes
 * that can no longer become valid UTF-8 come out as U+FFFD. 4 * (longest piece) + 16 bytes always
 * suffice: sl_vocab_max_text. The leading space that SentencePiece adds is dropped at the start of
 * the stream; set d->started for text that goes on behind a prompt. */
SL_API size_t sl_detok_push(sl_detok *d, const sl_vocab *v, int32_t id, bool show_special,
                            char *buf);
SL_API size_t sl_detok_flush(sl_detok *d, char *buf); /* what is held, as U+FFFD; at most 8 bytes */
SL_API size_t sl_vocab_max_text(const sl_vocab *v);

#endif
