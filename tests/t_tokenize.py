#!/usr/bin/env python3
"""`sluice tokenize` as a user meets it: texts as an argument and as lines of stdin, BOS, the way back,
control tokens, and what bad input gets. Python's standard library only."""
import os
import subprocess
import unittest

ROOT = os.environ.get("SLUICE_SOURCE_DIR", ".")
SLUICE = os.path.join(os.environ.get("SLUICE_BUILD_DIR", "build"), "tools", "sluice")
VOCAB = os.path.join(ROOT, "tests", "golden", "vocab")
SEP = b"\n__ggml_vocab_test__\n"


def gguf(name):
    return os.path.join(VOCAB, name + ".gguf")


def tokenize(*args, stdin=b""):
    p = subprocess.run([SLUICE, "tokenize", *args], input=stdin, capture_output=True, timeout=60)
    return p.returncode, p.stdout, p.stderr.decode()


def cases(name):
    with open(os.path.join(VOCAB, name + ".inp"), "rb") as f:
        texts = f.read().split(SEP)
    with open(os.path.join(VOCAB, name + ".out"), "rb") as f:
        return list(zip(texts, f.read().split(b"\n")))


class Tokenize(unittest.TestCase):
    def test_argument(self):
        for text, ids in cases("gpt-4o")[::9] + cases("spm")[::9]:
            name = "gpt-4o" if (text, ids) in cases("gpt-4o") else "spm"
            code, out, err = tokenize("-m", gguf(name), "--no-bos", "--", text)
            self.assertEqual((code, out, err), (0, ids + b"\n", ""), text)

    def test_lines(self):
        for name in ("spm", "deepseek-v3"):
            some = [c for c in cases(name) if b"\n" not in c[0]]
            stdin = b"\n".join(c[0] for c in some) + b"\n"
            want = b"\n".join(c[1] for c in some) + b"\n"
            self.assertEqual(tokenize("-m", gguf(name), "--no-bos", stdin=stdin), (0, want, ""))
            self.assertEqual(tokenize("-m", gguf(name), "--decode", stdin=want), (0, stdin, ""))
            self.assertEqual(tokenize("-m", gguf(name), "--no-bos", stdin=stdin[:-1]), (0, want, ""))

    def test_bos(self):
        self.assertEqual(tokenize("-m", gguf("spm"), ""), (0, b"1\n", ""))
        self.assertEqual(tokenize("-m", gguf("spm"), "--no-bos", ""), (0, b"\n", ""))
        self.assertEqual(tokenize("-m", gguf("gpt-2"), ""), (0, b"\n", ""))
        self.assertEqual(tokenize("-m", gguf("spm"), stdin=b""), (0, b"", ""))

    def test_special(self):
        plain = tokenize("-m", gguf("gpt-2"), "a<|im_end|>")
        special = tokenize("-m", gguf("gpt-2"), "--special", "a<|im_end|>")
        self.assertEqual((plain[0], special[0]), (0, 0))
        self.assertEqual(len(special[1].split()), 2)
        self.assertGreater(len(plain[1].split()), 2)
        ids = special[1].strip().decode()
        self.assertEqual(tokenize("-m", gguf("gpt-2"), "--decode", ids), (0, b"a\n", ""))
        self.assertEqual(tokenize("-m", gguf("gpt-2"), "--decode", "--special", ids), (0, b"a<|im_end|>\n", ""))

    def test_any_bytes(self):
        text = b"a\xff\xc3(\xe2\x82\xf0\x9f\x98z \xed\xa0\x80"
        code, out, err = tokenize("-m", gguf("llama-bpe"), stdin=text)
        self.assertEqual((code, err), (0, ""))
        back = tokenize("-m", gguf("llama-bpe"), "--decode", stdin=out)
        self.assertEqual(back[0], 0)
        self.assertEqual(back[1].decode(), text.decode(errors="replace") + "\n")

    def test_bad(self):
        for args, code in ((("-m", "/nonexistent"), 1), (("-m", gguf("spm"), "--decode", "1x"), 1),
                           (("-m", gguf("spm"), "--decode", "5 99999999"), 1), (("a", "b"), 2), (("--nope",), 2),
                           (("-m", gguf("spm"), "--decode", "--", "-1"), 1)):
            got, out, err = tokenize(*args)
            self.assertEqual((got, out), (code, b""), args)
            if code == 1:
                self.assertEqual(err.count("\n"), 1, err)
        self.assertIn("929 tokens", tokenize("-m", gguf("spm"), "--decode", "99999999")[2])


if __name__ == "__main__":
    unittest.main()
