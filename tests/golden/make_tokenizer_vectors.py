#!/usr/bin/env python3
"""Writes tests/golden/vocab/NAME.{gguf,inp,out}: small vocabularies and what the reference makes of
hard texts, one per splitting pattern that tokenizer.ggml.pre can name, and one of SentencePiece.

The reference is the `tokenizers` package with the pre-tokenizer as it stands in the tokenizer.json of
the models (sources beside each below), and the `sentencepiece` package for NAME = spm. Each BPE is
trained here with its own pre-tokenizer, so that its merges are such as the real one could have.
Form: .inp holds the texts with "\\n__ggml_vocab_test__\\n" between; .out one line of ids for each,
without BOS; added tokens of type user-defined are recognised, control tokens are plain text.

    pip install tokenizers sentencepiece gguf
    python3 tests/golden/make_tokenizer_vectors.py [--check-llama]

--check-llama compares with llama.cpp too (llama-cpp-python) and prints where it differs.
"""
import io
import json
import pathlib
import sys

import gguf
import sentencepiece
import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, trainers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Punctuation, Sequence, Split

HERE = pathlib.Path(__file__).resolve().parent
OUT = HERE / "vocab"
SEP = "\n__ggml_vocab_test__\n"
N_MERGES = 420
N_TEXT = 60000          # characters of the Shakespeare text to train on

CONTROL, USER_DEFINED, NORMAL, UNKNOWN, BYTE = 3, 4, 1, 2, 6

# ---- patterns, as the models' files have them ------------------------------------------------------
APOS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = APOS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + TAIL
QWEN2 = APOS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + TAIL
QWEN35 = APOS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + TAIL
UP, LOW = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def cased(tail, up=UP, low=LOW):
    pre = r"[^\r\n\p{L}\p{N}]?"
    return f"{pre}{up}*{low}+{tail}|{pre}{up}+{low}*{tail}"


GPT4O = cased(APOS + "?") + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + TAIL
TEKKEN = cased("") + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + TAIL
DEEPSEEK3 = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
             r" ?[\p{P}\p{S}]+[\r\n]*|" + TAIL)
DEEPSEEK_LETTERS = (
    "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-Ⴥ\u13a0-\u13f5\u13f8-\u13fd"
    "\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d"
    "\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc"
    "\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06"
    "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943]+")
DEEPSEEK_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
CJK3 = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
NOT_HAN_UP = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
NOT_HAN_LOW = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
BLOOM = " ?[^(\\s|[.,!?…。，、।۔،])]+"


def split(pattern, behavior="isolated"):
    return Split(Regex(pattern), behavior)


def plain():
    return ByteLevel(add_prefix_space=False, use_regex=False)


def gpt2():
    return ByteLevel(add_prefix_space=False, use_regex=True)


def regexes(*patterns):
    return lambda: Sequence([split(p) for p in patterns] + [plain()])


def digits_gpt2():
    return Sequence([Digits(individual_digits=True), gpt2()])


# name: (pre-tokenizer, what else). "nfc": the normaliser; "whole": ignore_merges; "spaces": runs of
# spaces are added tokens. The source is the tokenizer.json of the model named.
PRES = {
    "gpt-2": (gpt2, ""),                                                    # openai-community/gpt2
    "olmo": (gpt2, "nfc spaces"),                                           # allenai/OLMo-1.7-7B-hf
    "mpt": (gpt2, "nfc spaces"),                                            # mosaicml/mpt-7b
    "llama-bpe": (regexes(LLAMA3), "whole"),                                # meta-llama/Meta-Llama-3-8B
    "dbrx": (regexes(LLAMA3), ""),                                          # databricks/dbrx-base
    "glm4": (regexes(LLAMA3), "whole"),                                     # zai-org/GLM-4.5-Air
    "qwen2": (regexes(QWEN2), "nfc"),                                       # Qwen/Qwen1.5-7B
    "qwen35": (regexes(QWEN35), "nfc"),                                     # Qwen/Qwen3.5
    "stablelm2": (regexes(QWEN2), ""),                                      # stabilityai/stablelm-2-zephyr-1_6b
    "deepseek-llm": (lambda: Sequence([                                     # deepseek-ai/deepseek-llm-7b-base
        split("[\r\n]"), split(DEEPSEEK_LETTERS), split("\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+"), split("\\s+$"),
        split(DEEPSEEK_CJK), Digits(individual_digits=True), plain()]), ""),
    "deepseek-coder": (lambda: Sequence([                                   # deepseek-ai/deepseek-coder-6.7b-base
        split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split(DEEPSEEK_CJK),
        Digits(individual_digits=True), plain()]), ""),
    "deepseek-v3": (regexes(r"\p{N}{1,3}", CJK3, DEEPSEEK3), ""),           # deepseek-ai/DeepSeek-V3
    "gpt-4o": (regexes(GPT4O), ""),                                         # openai/gpt-oss-20b
    "tekken": (regexes(TEKKEN), "whole"),                                   # mistralai/Mistral-Nemo-Base-2407
    "smollm": (digits_gpt2, ""),                                            # HuggingFaceTB/SmolLM-135M
    "starcoder": (digits_gpt2, ""),                                         # bigcode/starcoder2-3b
    "refact": (digits_gpt2, ""),                                            # smallcloudai/Refact-1_6-base
    "command-r": (digits_gpt2, "nfc"),                                      # CohereForAI/c4ai-command-r-v01
    "falcon": (lambda: Sequence([                                           # tiiuae/falcon-7b
        Punctuation("contiguous"), gpt2(), Digits(individual_digits=False), split("[0-9][0-9][0-9]")]), ""),
    "poro-chat": (regexes(BLOOM), ""),                                      # LumiOpen/Poro-34B-chat
    "viking": (lambda: Sequence([split(BLOOM), Digits(individual_digits=True), plain()]), ""),
    "kimi-k2": (regexes(r"[\p{Han}]+|" + cased(APOS + "?", NOT_HAN_UP, NOT_HAN_LOW) +     # moonshotai
                        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + TAIL), ""),
    "superbpe": (regexes(r"\p{N}+", r"(?=(\d{3})+(?!\d))"), ""),            # UW/OLMo2-8B-SuperBPE-t180k
    "bailingmoe": (regexes(r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|"
                           r"\s*[\r\n]|\s+(?!\S)|\s+"), ""),                # inclusionAI/Ling-lite
    "seed-coder": (regexes(APOS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|" + TAIL), ""),
    "exaone-moe": (regexes(APOS + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| "
                           r"?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"), ""),
    "tiny_aya": (regexes(r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O), ""),           # CohereLabs/tiny-aya
}

SAMPLE = """\
The quick brown fox can't jump, won't jump; they've said it'll be 12345 or 67890, I'M sure she'd agree. HELLO World
Der Fuchs springt über den Fluß; naïve façade, œuvre. El niño comió piñas ayer. Çok güzel şeyler söylüyor, İstanbul.
нещо на Български, привет МИР, Привет мир. Ελληνικά κείμενα ΚΑΙ λέξεις. العربية لغة جميلة، نعم. עברית שפה יפה.
หวัดดีชาวโลก ภาษาไทยเขียนติดกัน. हिन्दी में लिखा हुआ पाठ। বাংলা ভাষা। தமிழ் மொழி. កាន់តែពិសេសអាចខលចេញ
我想在北京工作，今天天气很好。日本語のテキスト、カタカナとひらがな。한국어 문장입니다, 안녕하세요. Việt Nam tiếng Việt đẹp.
int main(void) { for (int i = 0; i < 10; i++) printf("%d\\n", i); return 0; }  // == != <= >= && ||
def f(x):\n    if x > 3.14:\n        return x ** 2\n\treturn None\n\n\n
🙂🙃 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ✅ ½ ² Ⅷ ① ٣٤٥ १२३ -- --- ... ??? !!! ((())) [[]] {{}} $5.00 €9 #tag @me a_b c-d e/f http://x.y/z
"""

CASES = [
    "", " ", "  ", "   ", "\t", "\n", "\n\n", "\n\n\n", "\t\n", " \n", "\n ", "\r\n", "\r\n\r\n", " \t \n \r\n x",
    "Hello world", " Hello world", "  Hello   world  ", "HELLO World hElLo wOrLD HelloWORLD helloWorld", "x", "'",
    "I'm I'M you'RE y'all he's THEY'VE we'd It'Ll 'tis o'clock ''s 'S 'sS ' s rock'n'roll don''t",
    "1", "12", "123", "1234", "12345", "123456", "1234567", "12345678", "123456789", "1234567890", "12345678901",
    "123456789012", "a1b22c333d4444 5 66 777 8888", "3.14159 1,234,567.89 -42 +7 1e10 0x1F 10% 1/2",
    "Vier ½ ¼ ² ³ Ⅷ ⅻ ① ㈠ ٣٤٥٦ १२३४ ๑๒๓ 𝟘𝟙𝟚", "!!!!!! ?!?! ... ,,, ;:;: -- --- ==== <<>> (([[{{}}]])) ~~ ``` \"\"\" '''",
    "!a (b) [c] {d} <e> #f $g %h &i *j +k ,l -m .n /o :p ;q =r ?s @t ^u _v `w |x ~y \\z",
    "$100 €5 £3 ¥9 ₹7 ©® ™ § ¶ † ‡ • … — – ‘single’ “double” «guillemets»",
    "нещо на Български", "ПРИВЕТ привет Привет ПРИвет", "Ελληνικά ΚΕΊΜΕΝΑ ς σ", "العربية لُغَةٌ جَمِيلَة، نعم؟", "עִבְרִית שפה",
    "หวัดดีชาวโลก ๑๒๓ ภาษาไทย", "हिन्दी में लिखा हुआ पाठ। क्षत्रिय", "বাংলা ভাষা। தமிழ் மொழி", "កាន់តែពិសេសអាចខលចេញ",
    "我想在apple工作1314151天～", "今天天气很好。你好，世界！ 　全角　スペース", "日本語のテキスト、カタカナとひらがな。ー々〇〆",
    "한국어 문장입니다, 안녕하세요 ㄱㄴㄷ", "ＡＢＣａｂｃ１２３！？", "Cửa Việt tiếng Việt đẹp", "C\u031b\u0309u\u031b\u0309a Vie\u0302\u0323t e\u0301 n\u0303",
    "e\u0301\u0302\u0303 \u0301 a \u0301b \u0300\u0301", "A\u030a \u212b \u2126 \u1e9b\u0323 \ufb01 \u0344 \u0f73 \u1100\u1161\u11a8 \ud55c\uae00",
    "ǅ ǈ ǋ ʰ ˈ ª º ᵃ ﬁ ß ẞ ſ 'ſ K Å İi ıI", "🙂 🙃🙃 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ✅ 🇧🇬 #️⃣ 🚀(normal)😶‍🌫️",
    "a\u00a0b\u2003c\u3000d\u2028e\u2029f\u0085g\u180eh\u200bi\u200cj\u200dk\ufeffl\u1680m", "tab\there\t\tand\t\t\tthere",
    "trailing space ", "trailing spaces   ", "  leading", "line one\nline two\n\n  indented\n\tby tab\n", "a  b   c    d     e",
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \nend", "x\n\n\ny\r\ny\rz", "a\u000bb\u000cc\u0007d\u001be\u007ff\u0000g"[:11],
    "\u0378\u0379 \u0fff \ue000\ue001 \uf8ff \ufdd0 \uffff \U0001ffff \U000e0001 \U000e0100 \U0010ffff \U00020000\U0002a6df",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case dot.case path/to/file.ext https://example.org/a?b=c&d=e#f",
    "int main(void) { for (int i = 0; i < 10; i++) printf(\"%d\\n\", i); return 0; }  // comment",
    "def f(x):\n    if x > 3.14:\n        return x ** 2\n\treturn None\n", "end.\n\nNew paragraph.\n/path\n//x /\n/",
    "<|im_end|> <tool> a<tool>b <|im_end|><tool> <tool", "fr\u00e9d\u00e9ric FR\u00c9D\u00c9RIC \u00c6\u00d8\u00c5 \u00e6\u00f8\u00e5 \u0141\u00f3d\u017a",
    "....a ...1 ..\n.. .\t. ? a! 1! !1", "a" * 70, " " * 70 + "x", "ab" * 40 + "1" * 40, "\n" * 33, "é" * 33, "字" * 33,
    "<sentinel:12> IMGIMGABZ", "5 apples, 12 pears & 1000000 plums cost $1,234.50 in 1999/2000.",
]


def train(name):
    make, extra = PRES[name]
    tok = Tokenizer(models.BPE(ignore_merges="whole" in extra))
    if "nfc" in extra:
        tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = make()
    text = (HERE.parent / "data" / "tinyshakespeare.txt").read_text("utf-8")[:N_TEXT]
    trainer = trainers.BpeTrainer(vocab_size=256 + N_MERGES, show_progress=False,
                                  initial_alphabet=ByteLevel.alphabet())
    tok.train_from_iterator([SAMPLE] * 40 + CASES * 3 + [text], trainer)
    if "whole" in extra:        # tokens that no merge makes: only whole words can be these
        state = json.loads(tok.to_str())
        state["model"]["merges"] = state["model"]["merges"][:N_MERGES * 3 // 4]
        tok = Tokenizer.from_str(json.dumps(state))
    tok.add_special_tokens([AddedToken("<|im_end|>", normalized=False)])
    added = ["<tool>"] + ([" " * n for n in range(8, 1, -1)] if "spaces" in extra else [])
    tok.add_tokens([AddedToken(t, normalized=False) for t in added])
    tok.encode_special_tokens = True        # control tokens in the text are text
    return tok, added


def write(name, tokens, types, ids, merges=None, scores=None, model="gpt2"):
    w = gguf.GGUFWriter(None, "llama")
    w.add_name(f"{name} test vocabulary")
    w.add_tokenizer_model(model)
    w.add_tokenizer_pre(name if model == "gpt2" else "default")
    w.add_token_list(tokens)
    w.add_token_types(types)
    if merges is not None:
        w.add_token_merges(merges)
        w.add_eos_token_id(tokens.index("<|im_end|>"))
    if scores is not None:
        w.add_token_scores(scores)
        w.add_bos_token_id(1)
        w.add_eos_token_id(2)
        w.add_unk_token_id(0)
    w.write_header_to_file(OUT / f"{name}.gguf")
    w.write_kv_data_to_file()
    w.close()
    (OUT / f"{name}.inp").write_bytes(SEP.join(CASES).encode("utf-8"))
    (OUT / f"{name}.out").write_text("".join(" ".join(map(str, i)) + "\n" for i in ids))


def make_bpe(name):
    tok, added = train(name)
    state = json.loads(tok.to_str())
    vocab = tok.get_vocab(with_added_tokens=True)
    tokens = sorted(vocab, key=vocab.get)
    assert [vocab[t] for t in tokens] == list(range(len(tokens)))
    types = [CONTROL if t == "<|im_end|>" else USER_DEFINED if t in added else NORMAL for t in tokens]
    merges = [" ".join(m) for m in state["model"]["merges"]]
    ids = [tok.encode(c, add_special_tokens=False).ids for c in CASES]
    write(name, tokens, types, ids, merges)
    return ids


def make_spm():
    """Llama's settings: identity normaliser, byte fallback, digits apart, spaces kept."""
    text = (HERE.parent / "data" / "tinyshakespeare.txt").read_text("utf-8")[:N_TEXT]
    lines = [s for t in [SAMPLE] * 40 + [c for c in CASES if "\0" not in c] + [text] for s in t.split("\n") if s]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=256 + 3 + N_MERGES + 250, model_type="bpe",
        byte_fallback=True, split_digits=True, normalization_rule_name="identity", character_coverage=0.99,
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, add_dummy_prefix=True,
        max_sentence_length=100000, minloglevel=2, num_threads=1)
    sp = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    n = sp.get_piece_size()
    types = [UNKNOWN if sp.is_unknown(i) else CONTROL if sp.is_control(i) else BYTE if sp.is_byte(i) else NORMAL
             for i in range(n)]
    ids = [sp.encode(c) if c else [] for c in CASES]
    write("spm", [sp.id_to_piece(i) for i in range(n)], types, ids, scores=[sp.get_score(i) for i in range(n)],
          model="llama")
    return ids


def check_llama(name, want):
    import ctypes
    import llama_cpp
    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    m = llama_cpp.Llama(str(OUT / f"{name}.gguf"), vocab_only=True, verbose=False)
    for case, ids in zip(CASES, want):
        got = m.tokenize(case.encode("utf-8"), add_bos=False, special=False)
        if got != ids:
            print(f"{name}: llama.cpp differs on {case[:50]!r}\n    {got[:30]}\n    {ids[:30]}")


def main():
    OUT.mkdir(exist_ok=True)
    names = [a for a in sys.argv[1:] if not a.startswith("-")] or list(PRES) + ["spm"]
    for name in names:
        ids = make_spm() if name == "spm" else make_bpe(name)
        print(f"{name}: {len(CASES)} cases, {(OUT / (name + '.gguf')).stat().st_size} bytes", flush=True)
        if "--check-llama" in sys.argv:
            check_llama(name, ids)
    print(f"tokenizers {tokenizers.__version__}, sentencepiece {sentencepiece.__version__}, gguf",
          getattr(gguf, "__version__", ""))


if __name__ == "__main__":
    main()
