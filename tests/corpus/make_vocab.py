#!/usr/bin/env python3
"""Writes the seeds of tests/fuzz_vocab.c, tests/corpus/vocab/: texts (byte 0 picks the vocabulary) and
tiny vocabularies. Needs the `gguf` package."""
import pathlib

import gguf

OUT = pathlib.Path(__file__).resolve().parent / "vocab"
TEXTS = ["Hello world, it's 12345 o'clock!", "нещо 我想在 apple 🙂👩‍👩‍👧 ½", " \t\n  \r\n x", "<tool> <|im_end|> a<tool>",
         "e\u0301\u0302 ▁ <0x41> </s>"]


def vocabulary(name, model, pre, tokens, types, template, **kw):
    w = gguf.GGUFWriter(None, "llama")
    w.add_tokenizer_model(model)
    w.add_tokenizer_pre(pre)
    w.add_token_list(tokens)
    w.add_token_types(types)
    if "merges" in kw:
        w.add_token_merges(kw["merges"])
    if "scores" in kw:
        w.add_token_scores(kw["scores"])
    w.add_bos_token_id(len(tokens) - 2)
    w.add_eos_token_id(len(tokens) - 1)
    w.add_add_bos_token(True)
    w.add_chat_template(template)
    w.write_header_to_file(OUT / name)
    w.write_kv_data_to_file()
    w.close()


def main():
    OUT.mkdir(exist_ok=True)
    for i, t in enumerate(TEXTS):
        (OUT / f"text{i}").write_bytes(bytes([i]) + t.encode())
        (OUT / f"special{i}").write_bytes(bytes([0x80 | i]) + t.encode())
    (OUT / "bytes").write_bytes(bytes([0]) + bytes(range(256)))
    tokens = ["H", "e", "l", "o", "Ġ", "w", "1", "2", "ll", "He", "llo", "<|im_start|>", "<|im_end|>"]
    vocabulary("bpe.gguf", "gpt2", "llama-bpe", tokens, [1] * 11 + [3, 3], "<|im_start|>user\n<|im_end|>",
               merges=["l l", "H e", "ll o", "He llo"])
    tokens = ["<unk>", "<0xFF>", "H", "e", "l", "▁", "▁H", "el", "<tool>", "<s>", "</s>"]
    vocabulary("spm.gguf", "llama", "default", tokens, [2, 6, 1, 1, 1, 1, 1, 1, 4, 3, 3], "[INST] <<SYS>> [/INST]",
               scores=[0.0, 0.0] + [-float(i) for i in range(6)] + [0.0, 0.0, 0.0])


if __name__ == "__main__":
    main()
