#!/usr/bin/env python3
"""The binary `sluice` as a user meets it: exit codes, what goes to stdout and what to stderr, usage
errors, JSON, stop strings, sameness for thread counts, perplexity against PyTorch's, bad files, full
disks, closed pipes and Ctrl-C. Python's standard library only."""
import csv
import ctypes
import json
import math
import os
import pty
import re
import resource
import shutil
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = os.environ.get("SLUICE_SOURCE_DIR", ".")
SLUICE = os.path.join(os.environ.get("SLUICE_BUILD_DIR", "build"), "tools", "sluice")
ARCH = os.path.join(ROOT, "tests", "golden", "arch")
MODEL = os.path.join(ROOT, "models", "sluice-bard-q8_0.gguf")
TEXT = os.path.join(ROOT, "tests", "data", "tinyshakespeare-heldout.txt")


def read(path, n=-1):
    with open(path, "rb") as f:
        return f.read(n)


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


GOLDEN = json.loads(read(os.path.join(ROOT, "tests", "golden", "bundled.json")))


def sluice(*args, stdin=b"", **kw):
    p = subprocess.run([SLUICE, *args], input=stdin, capture_output=True, timeout=400, **kw)
    return p.returncode, p.stdout, p.stderr.decode()


class Frame(unittest.TestCase):
    def test_help_and_version(self):
        for args in ((), ("-h",), ("--help",), ("help",)):
            code, out, err = sluice(*args)
            self.assertEqual((code, err), (0, ""))
            self.assertIn(b"  run ", out)
        commands = [l.split()[0] for l in out.decode().splitlines() if l.startswith("  ")]
        self.assertGreaterEqual(len(commands), 3)
        for c in commands:
            code, out, err = sluice(c, "-h")
            self.assertEqual((code, err), (0, ""), c)
            self.assertTrue(out.startswith(b"usage: sluice %s " % c.encode()), out[:80])
            lines = out.split(b"\n")
            self.assertLessEqual(max(len(l) for l in lines if not l.startswith(b"  -")), 100, c)
            self.assertEqual(sluice("help", c), (0, out, ""))
        self.assertIn('"nope" is no command', sluice("help", "nope")[2])
        code, out, err = sluice("--version")
        self.assertEqual((code, err), (0, ""))
        self.assertRegex(out, rb"^sluice \d+\.\d+\.\d+\n$")

    def test_usage_errors(self):
        for args in (("nope",), ("--nope",), ("run", "--nope"), ("run", "-n"), ("run", "-n", "x"),
                     ("run", "-n", "-2"), ("run", "text"), ("run", "-p", "a", "-f", "b"), ("run", "-m", MODEL),
                     ("run", "--temp", "hot"), ("run", "--ram", "much"), ("run", "-ctk", "q3"),
                     ("run", "--top-p", "1.5"), ("run", "--min-p", "nan"),
                     ("eval",), ("eval", "-f", "a", "--tokens", "1")):
            code, out, err = sluice(*args)
            self.assertEqual((code, out), (2, b""), args)
            self.assertIn("usage: sluice", err, args)
        code, out, err = sluice("run", "--device", "tpu")
        self.assertEqual((code, out), (2, b""))
        self.assertIn("--device tpu: expected auto, cpu, cuda:N or emu:", err)
        for args, said in ((("rnu",), "\"rnu\" is no command: is run meant?"),
                           (("run", "--promt", "x"), "unknown option --promt: is --prompt meant?"),
                           (("run", "--max-tokens", "x"), "unknown option --max-tokens\n"),
                           (("run", "-ngl", "99"), "unknown option -ngl: what lies where is planned"),
                           (("batch", "-i", MODEL, "-o", "-"), "-o -: results go to a file"),
                           (("run", "--vram", "0"), "--vram 0: expected a size such as 8G"),
                           (("run", "--ram", "8"), "--ram 8: expected a size such as 8G"),
                           (("run", "--ram="), "--ram \"\": expected a size"),
                           (("run", "--predict=x"), "--predict x: expected a whole number"),
                           (("plan", "-p", "Once"), "-p (--n-prompt) Once: expected a whole number")):
            code, out, err = sluice(*args)
            self.assertEqual((code, out), (2, b""), args)
            self.assertIn(said, err)
        err = sluice("run", "-t", "many")[2]
        self.assertIn("-t", err)
        self.assertIn("many", err)
        self.assertIn("whole number", err)

    def test_stdout_is_full(self):
        for args in (("-h",), ("--version",), ("run", "-h"), ("bench", "-p", "4", "-n", "0", "-r", "1"), ("run", "-n", "5"), ("run", "-n", "5", "--json"),
                     ("eval", "--tokens", "1,2,3"), ("run", "-n", "5", "--no-display-prompt")):
            with open("/dev/full", "wb") as full:
                p = subprocess.run([SLUICE, *args], stdout=full, stderr=subprocess.PIPE, timeout=60)
            self.assertEqual(p.returncode, 1, args)
            said = [l for l in p.stderr.decode().splitlines() if "writing to stdout" in l]
            self.assertEqual(len(said), 1, args)
            self.assertIn("No space left", said[0])


class Run(unittest.TestCase):
    def json(self, *args, **kw):
        code, out, err = sluice("run", "--json", *args, **kw)
        self.assertEqual(code, 0, err)
        self.assertEqual(out.count(b"\n"), 1)
        return json.loads(out)

    def test_bundled_model(self):
        code, out, err = sluice("run", "-s", "1", "-n", "120")
        self.assertEqual(code, 0)
        self.assertGreater(len(out), 150)
        for part in ("all in RAM", "tok/s", "first token after", "peak memory", "qwen3moe"):
            self.assertIn(part, err)
        for line in err.splitlines():
            self.assertTrue(line.startswith("sluice: "), line)
        self.assertTrue(out.decode().startswith("ROMEO:"))

    def test_greedy_is_pytorchs(self):
        want = GOLDEN["greedy"]["ids_with_bos"]
        got = self.json("-p", GOLDEN["greedy"]["prompt"], "--temp", "0", "-n", "64", "-ctk", "f32", "-ctv", "f32",
                        "--activations", "f32")
        self.assertEqual(got["tokens"], want[-64:])

    def test_seeds_and_threads(self):
        one = self.json("-s", "7", "-n", "100", "-t", "1")
        two = self.json("-s", "7", "-n", "100", "-t", "2")
        self.assertEqual(one["tokens"], two["tokens"])
        self.assertEqual(one["text"], two["text"])
        chunks = self.json("-s", "7", "-n", "100", "-b", "3")
        self.assertEqual(one["tokens"], chunks["tokens"])
        self.assertNotEqual(one["text"], self.json("-s", "8", "-n", "100")["text"])
        a, b = self.json("-n", "60"), self.json("-n", "60")
        self.assertNotEqual((a["seed"], a["text"]), (b["seed"], b["text"]))
        self.assertEqual(a["text"], self.json("-n", "60", "-s", str(a["seed"]))["text"])

    def test_isa(self):
        """One ISA, one text, whatever the threads; what the CPU lacks is refused before any work."""
        ran = 0
        for isa in ("c", "avx2", "avxvnni", "avx512", "avx512vnni"):
            code, out, err = sluice("run", "--json", "-s", "7", "-n", "40", "-t", "1", "--isa", isa)
            if code == 2:
                self.assertEqual((out, err.count("\n")), (b"", 1), err)
                self.assertIn("--isa %s: this CPU lacks it" % isa, err)
                continue
            self.assertEqual(code, 0, err)
            self.assertIn(", %s; context" % isa, err)
            two = self.json("-s", "7", "-n", "40", "-b", "3", "--isa", isa)
            self.assertEqual(json.loads(out)["tokens"], two["tokens"])
            ran += 1
        self.assertGreaterEqual(ran, 1)
        for args in (("--isa", "mmx"), ("--isa", "")):
            code, out, err = sluice("run", "-m", "no such file", "-p", "x", *args)
            self.assertEqual((code, out, err.count("\n")), (2, b"", 1), err)
            self.assertIn("expected c, avx2, avxvnni, avx512 or avx512vnni", err)

    def test_threads_above_the_machine(self):
        code, out, err = sluice("run", "-m", "no such file", "-p", "x", "-t", "4096")
        if code == 1:
            self.skipTest("a machine of 4096 threads")
        self.assertEqual((code, out, err.count("\n")), (2, b"", 1), err)
        self.assertIn("4096 threads wanted", err)

    def test_json(self):
        r = self.json("-p", "KING", "-n", "20", "-s", "1", "--ram", "1G")
        for key in ("prompt_tok_per_s", "decode_tok_per_s", "ttft_s", "bytes_per_token", "peak_rss_bytes"):
            self.assertGreater(r[key], 0, key)
        self.assertEqual((r["budget_bytes"], r["n_generated"], len(r["tokens"])), (1 << 30, 20, 20))
        self.assertEqual((r["stop_reason"], r["arch"], r["seed"]), ("length", "qwen3moe", 1))
        self.assertLess(r["peak_rss_bytes"], r["budget_bytes"])
        self.assertFalse(r["text"].startswith("KING"))
        code, out, _ = sluice("run", "-p", "KING", "-n", "20", "-s", "1")
        self.assertEqual(out.decode(), "KING" + r["text"])
        code, out, _ = sluice("run", "-p", "KING", "-n", "20", "-s", "1", "--no-display-prompt")
        self.assertEqual(out.decode(), r["text"])
        r = self.json("-p", "KING", "-n", "0")
        self.assertEqual((r["text"], r["n_generated"], r["stop_reason"]), ("", 0, "prompt"))

    def test_stop_strings(self):
        whole = self.json("-s", "1", "-n", "200")
        text = whole["text"]
        for stop in (text[40:44], text[100:101], text[60:75]):
            r = self.json("-s", "1", "-n", "200", "--stop", "no such text", "-r", stop)
            self.assertEqual(r["text"], text[:text.index(stop)])
            self.assertEqual(r["stop_reason"], "stop")
        code, out, _ = sluice("run", "-s", "1", "-n", "200", "--stop", text[60:75], "--no-display-prompt")
        self.assertEqual(out.decode(), text[:text.index(text[60:75])])
        r = self.json("-s", "1", "-n", "20", "--stop", self.json("-s", "1", "-n", "20")["text"][-3:] + "\x01")
        self.assertEqual(r["stop_reason"], "length")     # held back to the end, then shown
        self.assertEqual(r["text"], self.json("-s", "1", "-n", "20")["text"])

    def test_prompts(self):
        want = self.json("-p", "To be", "-n", "10", "--temp", "0")
        for stdin in (b"To be", b"To be\n"):
            self.assertEqual(self.json("-f", "-", "-n", "10", "--temp", "0", stdin=stdin)["tokens"], want["tokens"])
        with tempfile.NamedTemporaryFile() as f:
            f.write(b"To be\n")
            f.flush()
            self.assertEqual(self.json("-f", f.name, "-n", "10", "--temp", "0")["tokens"], want["tokens"])
        for stdin in (b"", b"\n", b"\x00\x01\xff\xfe", b"\xf0\x9f\x98", "naïve Ω 日本".encode(), b"a" * 900):
            code, out, err = sluice("run", "-f", "-", "-n", "3", "-c", "1024", "-s", "1", stdin=stdin)
            self.assertEqual(code, 0, err)
            self.assertTrue(out.startswith(stdin.rstrip(b"\n")))
        self.assertEqual(self.json("-p", "", "-n", "5", "-s", "1")["n_prompt"], 1)

    def test_text_is_whole_utf8(self):
        for seed in range(3):   # a hot model writes any bytes
            r = self.json("-s", str(seed), "-n", "150", "--temp", "50", "--top-k", "0", "--top-p", "1", "--min-p",
                          "0")
            code, out, _ = sluice("run", "-s", str(seed), "-n", "150", "--temp", "50", "--top-k", "0", "--top-p", "1",
                                  "--min-p", "0", "--no-display-prompt")
            self.assertEqual(out.decode("utf-8"), r["text"])

    def test_context_limits_are_said(self):
        code, out, err = sluice("run", "-p", "one two three " * 9, "-c", "20")
        self.assertEqual((code, out), (1, b""))
        self.assertEqual(err.count("\n"), 1)     # no banner: nothing was loaded
        self.assertRegex(err, r"prompt has \d+ tokens and the context 20")
        code, out, err = sluice("run", "-p", "one", "-c", "20", "-n", "100", "-s", "1")
        self.assertEqual(code, 0)
        self.assertIn("generation ends at the context of 20", err)
        self.assertIn("the context is full", err)
        r = self.json("-p", "one", "-c", "20", "-n", "-1", "-s", "1")
        self.assertEqual((r["stop_reason"], r["n_prompt"] + r["n_generated"]), ("context", 21))
        code, out, err = sluice("run", "-p", "one", "-c", "4096", "-n", "1")
        self.assertIn("beyond the 512 positions", err)

    def test_flags_without_effect_are_said(self):
        err = sluice("run", "-n", "1", "--temp", "0", "--top-k", "3", "-s", "1", "--repeat-last-n", "5", "--json",
                     "--no-display-prompt")[2]
        for part in ("--top-k", "--seed", "--repeat-last-n", "--no-display-prompt"):
            self.assertRegex(err, "warning: %s has no effect" % part)
        self.assertNotIn("--min-p", err)

    def test_blas(self):
        """Without matrices of a float type it has no effect; with float activations every matrix is one."""
        args = ("--json", "-s", "7", "-n", "20", "-p", "ROMEO: what light through yonder window breaks")
        plain = self.json(*args[1:])
        code, out, err = sluice("run", "--blas", "on", *args)
        self.assertEqual((code, json.loads(out)["tokens"]), (0, plain["tokens"]), err)
        self.assertIn("--blas on has no effect: the model has no F32", err)
        code, out, err = sluice("run", "--blas", "on", "--activations", "f32", *args)
        self.assertEqual(code, 0, err)
        self.assertRegex(err, "are not promised|no effect: no OpenBLAS")

    def test_routing_trace(self):
        with tempfile.TemporaryDirectory() as d:
            path = os.path.join(d, "trace.jsonl")
            r = self.json("-p", "To be", "-n", "4", "--temp", "0", "--trace-routing", path)
            head, *rows = [json.loads(l) for l in read(path).splitlines()]
            self.assertEqual((head["trace"], head["version"]), ("sluice-routing", 1))
            self.assertEqual((head["layers"], head["experts"], head["used"]), (6, 32, 4))
            self.assertTrue(all(len(t["experts"]) == head["used"] for t in rows))
            n = r["n_prompt"] + 3       # the last token drawn is not processed
            self.assertEqual({(t["layer"], t["position"]) for t in rows},
                             {(l, p) for l in range(max(t["layer"] for t in rows) + 1) for p in range(n)})
            for t in rows:
                self.assertEqual(len(set(t["experts"])), len(t["experts"]))
            code, _, err = sluice("run", "-n", "4", "--trace-routing", os.path.join(d, "no", "where"))
            self.assertEqual(code, 1)
        code, _, err = sluice("run", "-n", "40", "--trace-routing", "/dev/full")
        self.assertEqual(code, 1)
        self.assertIn("trace", err.splitlines()[-1])

    def test_bad_models(self):
        whole = read(MODEL)
        bad = {"empty": b"", "short": whole[:20], "header": whole[:3000], "tensors": whole[:200000],
               "magic": b"GGML" + whole[4:], "version": whole[:4] + b"\x63" + whole[5:],
               "counts": whole[:8] + b"\xff" * 16 + whole[24:], "text": b"hello\n" * 100}
        with tempfile.TemporaryDirectory() as d:
            paths = [os.path.join(d, "missing.gguf"), d]
            for name, data in bad.items():
                paths.append(os.path.join(d, name + ".gguf"))
                write(paths[-1], data)
            for path in paths:
                for cmd in (("run", "-p", "x"), ("eval", "--tokens", "1,2")):
                    code, out, err = sluice(*cmd, "-m", path)
                    self.assertEqual((code, out, err.count("\n")), (1, b"", 1), (path, err))
                    self.assertIn(os.path.basename(path), err)

    def test_preset_is_no_model(self):
        code, out, err = sluice("run", "-m", "qwen3-30b-a3b", "-p", "x")
        self.assertEqual((code, out, err.count("\n")), (1, b"", 2), err)
        self.assertIn("`sluice plan -m qwen3-30b-a3b` forecasts it", err)

    def test_budget_below_the_floor(self):
        code, out, err = sluice("run", "--ram", "1M")
        self.assertEqual((code, out, err.count("\n")), (1, b"", 1))
        floor = re.search(r"a budget of 1 MiB is below the floor of (\d+) MiB", err)
        self.assertTrue(floor, err)
        code, out, err = sluice("run", "-n", "1", "--ram", floor[1] + "M")
        self.assertEqual(code, 0, err)

    def test_closed_pipe(self):
        p = subprocess.Popen([SLUICE, "run", "-n", "-1", "-c", "4096"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        p.stdout.read(8)
        p.stdout.close()
        err = p.stderr.read().decode()
        p.stderr.close()
        self.assertEqual(p.wait(60), 1)
        self.assertIn("Broken pipe", err)

    def test_closed_descriptors(self):
        with tempfile.TemporaryDirectory() as d:
            trace = os.path.join(d, "trace")
            p = subprocess.run(["sh", "-c", 'exec "$0" run -n 3 --trace-routing "$1" >&-', SLUICE, trace],
                               stderr=subprocess.PIPE, timeout=60)
            self.assertEqual(p.returncode, 1)
            self.assertIn(b"writing to stdout", p.stderr)
            self.assertNotIn(b"ROMEO", read(trace))
        p = subprocess.run(["sh", "-c", 'exec "$0" run -n 3 -f - <&-', SLUICE], capture_output=True, timeout=60)
        self.assertEqual((p.returncode, p.stdout), (1, b""))

    def test_ctrl_c(self):
        p = subprocess.Popen([SLUICE, "run", "-n", "-1", "-c", "100000", "--ignore-eos"], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE)
        p.stdout.read(40)
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=60)
        self.assertEqual(p.returncode, 130)
        out.decode("utf-8")
        self.assertIn("Ctrl-C", err.decode())
        self.assertIn("peak memory", err.decode())


def forbid_io_uring():
    """In a child: its kernel has no io_uring for it."""
    libc = ctypes.CDLL(None, use_errno=True)
    rules = struct.pack("<" + "HBBI" * 4, 0x20, 0, 0, 0, 0x15, 0, 1, 425, 0x06, 0, 0, 0x00050001, 0x06, 0, 0, 0x7fff0000)
    rules = ctypes.create_string_buffer(rules, len(rules))
    program = ctypes.create_string_buffer(struct.pack("@HP", 4, ctypes.addressof(rules)))
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program):    # PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP
        os._exit(77)


def forbid_memlock():
    """In a child: it may lock 64 KiB, and has no CAP_IPC_LOCK after exec."""
    ctypes.CDLL(None).prctl(24, 14, 0, 0, 0)                        # PR_CAPBSET_DROP
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))


class Streamed(unittest.TestCase):
    """Weights that do not fit the budget come from disk as they are needed."""
    BUILD = os.environ.get("SLUICE_BUILD_DIR", "build")
    RUN = ("run", "-c", "256", "-p", "ROMEO:", "-n", "24", "--temp", "0", "--ignore-eos")

    def floor_of(self, *args):
        code, out, err = sluice(*args, "--ram", "1M")
        self.assertEqual((code, out), (1, b""), err)
        return int(re.search(r"floor of (\d+) MiB", err).group(1)) + 5     # the process differs from run to run

    def setUp(self):
        self.floor = self.floor_of(*self.RUN)
        self.dir = tempfile.TemporaryDirectory(dir=self.BUILD)      # a disk, where /tmp may be memory
        self.model = os.path.join(self.dir.name, "model.gguf")
        shutil.copy(MODEL, self.model)

    def tearDown(self):
        self.dir.cleanup()

    def run_at(self, *args, model=None, **kw):
        code, out, err = sluice(*self.RUN, "-m", model or self.model, "--ram", "%dM" % self.floor, "--json", *args,
                                **kw)
        self.assertEqual(code, 0, err)
        self.assertIn("streamed from disk", err)
        return json.loads(out), err

    def test_the_same_text(self):
        want = json.loads(sluice(*self.RUN, "--json")[1])
        self.assertNotIn("hit_rate", want)
        for args in ((), ("--policy", "lru", "-t", "1"), ("--policy", "lfu", "-b", "3"), ("--lookahead", "off"),
                     ("--read-depth", "1"), ("-c", "255")):
            r, err = self.run_at(*args)
            self.assertEqual((r["text"], r["tokens"]), (want["text"], want["tokens"]), args)
            self.assertNotIn("no effect", err)
            for key in ("hit_rate", "disk_bytes_per_token", "disk_bytes_per_s", "stall_share"):
                self.assertGreaterEqual(r[key], 0, key)
            self.assertGreater(r["disk_bytes_per_token"], 1e5)
            self.assertLess(r["hit_rate"], 1)
            self.assertLess(r["stall_share"], 1)
            self.assertEqual(r["budget_bytes"], self.floor << 20)
            if not os.environ.get("SLUICE_SANITIZED"):
                self.assertLessEqual(r["peak_rss_bytes"], r["budget_bytes"])
            for part in ("% hits", "read per token", "% of the time waiting", "memory for "):
                self.assertIn(part, err)
        code, out, err = sluice(*self.RUN, "--ram", "%dM" % self.floor, "--policy", "static")
        self.assertEqual((code, out, err.count("\n")), (2, b"", 1), err)

    def test_perplexity(self):
        text = read(TEXT, 2000)
        args = ("eval", "-f", "-", "-c", "256", "--json")
        in_ram = json.loads(sluice(*args, stdin=text)[1])
        code, out, err = sluice(*args, "--ram", "%dM" % (self.floor + 1), "-m", self.model, stdin=text)
        self.assertEqual((code, json.loads(out)["nll"]), (0, in_ram["nll"]), err)
        self.assertIn("streamed from disk", err)

    def test_the_floor(self):
        """The refusal is one line with the floor and what lowers it, and the floor will do."""
        code, out, err = sluice("run", "-c", "65536", "--ram", "20M")
        self.assertEqual((code, out, err.count("\n")), (1, b"", 1), err)
        for part in ("floor", "-c", "-ctk q8_0", "65536"):
            self.assertIn(part, err)
        high = int(re.search(r"floor of (\d+) MiB", err).group(1))
        self.assertGreater(high, self.floor)
        code, out, err = sluice("run", "-c", "65536", "-n", "2", "--ram", "%dM" % (high + 5))
        self.assertEqual(code, 0, err)

    def test_flags_without_effect(self):
        err = sluice("run", "-n", "1", "--policy", "lru", "--lookahead", "off", "--read-depth", "2")[2]
        for flag in ("--policy", "--lookahead", "--read-depth"):
            self.assertRegex(err, "warning: %s has no effect: all weights fit in RAM" % flag)
        code, out, err = sluice("run", "-n", "1", "--policy", "best")
        self.assertEqual((code, out, err.count("\n")), (2, b"", 1), err)
        self.assertIn("markov, lfu, lru", err)

    def test_ctrl_c(self):
        p = self.long_run()
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=60)
        self.assertEqual(p.returncode, 130, err)
        for part in ("streamed from disk", "Ctrl-C", "% hits", "peak memory"):
            self.assertIn(part, err.decode())

    def long_run(self):
        """A run that goes on, and has begun to write."""
        args = ("run", "-m", self.model, "-p", "ROMEO:", "-n", "-1", "-c", "9000", "--ignore-eos")
        p = subprocess.Popen([SLUICE, *args, "--ram", "%dM" % self.floor_of(*args)], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE)
        p.stdout.read(30)
        return p

    def test_a_file_that_shrinks(self):
        p = self.long_run()
        os.truncate(self.model, os.path.getsize(self.model) // 3)
        out, err = p.communicate(timeout=60)
        self.assertEqual(p.returncode, 1, err)
        self.assertRegex(err.decode().splitlines()[-1],
                         r"read .*model\.gguf: slice of \d+ bytes at offset \d+: found the end of the file")

    def test_a_file_that_is_replaced(self):
        p = self.long_run()
        write(os.path.join(self.dir.name, "other"), b"nothing")
        os.rename(os.path.join(self.dir.name, "other"), self.model)
        p.stdout.read(200)
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=60)
        self.assertEqual(p.returncode, 130, err)

    def test_what_the_machine_refuses(self):
        """A stated way round each, and the same text."""
        want = json.loads(sluice(*self.RUN, "--json")[1])["text"]
        plain, err = self.run_at()
        self.assertEqual(plain["text"], want)
        if "io_uring, " in err:
            r, err = self.run_at(preexec_fn=forbid_memlock)
            self.assertEqual(r["text"], want)
            self.assertRegex(err, "unregistered buffers: .*ulimit|registered buffers$")
        try:
            r, err = self.run_at(preexec_fn=forbid_io_uring)
        except AssertionError as e:
            if "77" not in str(e):
                raise
            self.skipTest("no seccomp")
        self.assertEqual(r["text"], want)
        self.assertIn("threads with pread", err)
        self.assertIn("io_uring is not permitted", err)

    @unittest.skipUnless(os.access("/dev/shm", os.W_OK), "no /dev/shm")
    def test_a_file_in_memory(self):
        want = json.loads(sluice(*self.RUN, "--json")[1])["text"]
        with tempfile.TemporaryDirectory(dir="/dev/shm") as d:
            path = os.path.join(d, "model.gguf")
            shutil.copy(MODEL, path)
            r, err = self.run_at(model=path)
            self.assertEqual(r["text"], want)
            self.assertIn("O_DIRECT", err)      # had, or not had

    def test_auto_in_a_small_group(self):
        """In a memory cgroup, --ram auto takes what the group leaves: the least that works streams."""
        group = "/sys/fs/cgroup/memory/sluice-test-%d" % os.getpid()
        try:
            os.mkdir(group)
            write(os.path.join(group, "memory.limit_in_bytes"), b"%d" % (1 << 30))
        except OSError as e:
            self.skipTest("no memory cgroup of our own: %s" % e)
        try:
            for mib in range(24, 120, 2):
                write(os.path.join(group, "memory.limit_in_bytes"), b"%d" % (mib << 20))
                code, out, err = sluice(
                    *self.RUN, "-m", self.model, "--json", "--ram", "auto",
                    preexec_fn=lambda: write(os.path.join(group, "cgroup.procs"), b"%d" % os.getpid()))
                if code == 0:
                    break
                self.assertEqual((code, err.count("\n")), (1, 1), err)
                self.assertIn("floor", err)
            self.assertIn("streamed from disk", err)
            self.assertLess(json.loads(out)["budget_bytes"], mib << 20)
        finally:
            os.rmdir(group)


class Chat(unittest.TestCase):
    """The bundled model has no template and chats badly; what counts here is the mechanics."""
    ARGS = ("chat", "--chat-template", "chatml", "--temp", "0", "-n", "12")

    def chat(self, lines, *args):
        code, out, err = sluice(*self.ARGS, "--json", *args, stdin=lines.encode())
        self.assertEqual(code, 0, err)
        return [json.loads(l) for l in out.splitlines()], err

    def test_turns_add_to_the_context(self):
        text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho goes there?<|im_end|>\n" \
               "<|im_start|>assistant\n"
        r, err = self.chat("Who goes there?\n\nSpeak!\n/reset\nWho goes there?\n", "-sys", "Be brief.")
        self.assertEqual(len(r), 3)
        self.assertEqual(r[0]["tokens"], r[2]["tokens"])
        self.assertEqual(r[0]["n_prompt"], r[2]["n_prompt"])
        self.assertLess(r[1]["n_prompt"], r[0]["n_prompt"])     # the system text is not read again
        self.assertIn("a new conversation", err)
        # The same as one text without a chat; the last token of a cut answer is not lost.
        code, out, err = sluice("run", "--json", "--temp", "0", "-n", "12", "-p", text)
        self.assertEqual(json.loads(out)["tokens"], r[0]["tokens"])
        text += r[0]["text"] + "<|im_end|>\n<|im_start|>user\nSpeak!<|im_end|>\n<|im_start|>assistant\n"
        code, out, err = sluice("run", "--json", "--temp", "0", "-n", "12", "-p", text)
        two = json.loads(out)
        if two["n_prompt"] == r[0]["n_prompt"] + 12 + r[1]["n_prompt"]:     # the same cut into tokens
            self.assertEqual(two["tokens"], r[1]["tokens"])

    def test_plain_output(self):
        r, _ = self.chat("Hark\\\nwho\n")
        code, out, err = sluice(*self.ARGS, stdin=b"Hark\\\nwho\n/exit\nmore\n")
        self.assertEqual((code, out.decode()), (0, r[0]["text"] + "\n"))
        self.assertIn("cut at 12 tokens", err)
        code, out, err = sluice(*self.ARGS, stdin=b"")
        self.assertEqual((code, out), (0, b""))

    def test_no_template(self):
        code, out, err = sluice("chat", stdin=b"Hello\n")
        self.assertEqual((code, out, err.count("\n")), (1, b"", 1), err)   # and nothing was loaded
        self.assertIn("sluice run", err)
        code, out, err = sluice("eval", "-f", "/nonexistent")
        self.assertEqual((code, out, err.count("\n")), (1, b"", 1), err)
        self.assertEqual(sluice("chat", "--chat-template", "nope")[0], 1)
        self.assertEqual(sluice("chat", "-n", "0")[0], 2)

    def test_context_is_full(self):
        code, out, err = sluice(*self.ARGS, "-c", "64", "-n", "-1", "--ignore-eos", stdin=b"Hello\nAgain\n")
        self.assertEqual(code, 1)
        self.assertIn("the context of 64 is full", err)
        self.assertIn("are left: /reset", err)

    def test_terminal(self):
        """A line that the terminal cut is not sent. Ctrl-C stops an answer, comes back to the prompt, and ends
        there."""
        try:
            master, slave = pty.openpty()
        except OSError as e:    # a container without /dev/pts
            self.skipTest(str(e))
        p = subprocess.Popen([SLUICE, "chat", "--chat-template", "chatml", "-c", "30000", "-n", "-1", "--ignore-eos"],
                             stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        os.close(slave)
        err = b""
        os.write(master, b"x" * 5000 + b"\n")
        while b"nothing was sent" not in err:
            got = os.read(p.stderr.fileno(), 4096)
            self.assertTrue(got, err)
            err += got
        os.write(master, b"/help\n/nope\nHello\n")
        p.stdout.read(20)
        p.send_signal(signal.SIGINT)
        while b"stopped" not in err or not err.endswith(b"> "):
            got = os.read(p.stderr.fileno(), 4096)
            self.assertTrue(got, err)
            err += got
        p.send_signal(signal.SIGINT)
        out, more = p.communicate(timeout=60)
        os.close(master)
        err = (err + more).decode()
        self.assertEqual(p.returncode, 130, err)
        for part in ("/reset starts anew", "/nope is no command", "1 answer:", "peak memory"):
            self.assertIn(part, err)


class Eval(unittest.TestCase):
    @unittest.skipIf(os.environ.get("SLUICE_SANITIZED"), "the whole text takes minutes")
    def test_perplexity_is_pytorchs(self):
        code, out, err = sluice("eval", "-f", TEXT, "--json")
        self.assertEqual(code, 0, err)
        r = json.loads(out)
        self.assertEqual((r["n_tokens"], r["n_scored"]), (GOLDEN["n_tokens"], GOLDEN["n_scored"]))
        self.assertLess(abs(r["perplexity"] / GOLDEN["perplexity"] - 1), 0.001)

    def test_windows(self):
        text = read(TEXT, 6000)
        results = {}
        for args in (("-t", "1"), ("-t", "2"), ("-t", "2", "-b", "7")):
            code, out, err = sluice("eval", "-f", "-", "-c", "64", "--json", *args, stdin=text)
            self.assertEqual(code, 0, err)
            r = results[args] = json.loads(out)
            self.assertEqual(r["n_windows"], math.ceil(r["n_tokens"] / 64))
            self.assertEqual(r["n_scored"], r["n_tokens"] - r["n_windows"])
        self.assertEqual(len({r["nll"] for r in results.values()}), 1)
        code, out, err = sluice("eval", "-f", "-", "-c", "64", stdin=text)
        self.assertRegex(out, rb"^perplexity \d+\.\d{4} over \d+ scored of \d+ tokens")

    def test_kv_types(self):
        """Perplexity hardly feels how keys and values are stored; each type is a result of its own."""
        text, nll = read(TEXT, 6000), {}
        for kv in ("f32", "f16", "bf16", "q8_0"):
            code, out, err = sluice("eval", "-f", "-", "-ctk", kv, "--json", stdin=text)
            self.assertEqual(code, 0, err)
            self.assertIn("KV " + kv, err)
            nll[kv] = json.loads(out)["nll"]
        self.assertEqual(len(set(nll.values())), 4)
        for kv, value in nll.items():
            self.assertLess(abs(value - nll["f32"]), 0.003, kv)     # 0.3 % of the perplexity
        code, out, err = sluice("eval", "-m", os.path.join(ARCH, "qwen3moe.gguf"), "--tokens", "1,2", "-ctv", "q8_0")
        self.assertEqual(code, 1)
        self.assertIn("blocks of 32", err)

    def test_logits(self):
        model = os.path.join(ARCH, "qwen3moe.gguf")
        with tempfile.TemporaryDirectory() as d:
            path = os.path.join(d, "rows")
            code, out, err = sluice("eval", "-m", model, "--tokens", "1, 2,3,4,5", "-c", "3", "--logits", path, "--json")
            self.assertEqual(code, 0, err)
            r = json.loads(out)
            data = read(path)
            n_vocab = len(data) // 4 // 5
            self.assertEqual(len(data), 4 * 5 * n_vocab)
            rows = [struct.unpack_from("<%df" % n_vocab, data, 4 * n_vocab * i) for i in range(5)]
            nll = [math.log(sum(map(math.exp, rows[i]))) - rows[i][t] for i, t in ((0, 2), (1, 3), (3, 5))]
            self.assertAlmostEqual(r["nll"], sum(nll) / 3, places=5)
            self.assertEqual(os.listdir(d), ["rows"])
            code, out, err = sluice("eval", "-m", model, "--tokens", "1", "--logits", path)
            self.assertEqual((code, os.path.getsize(path)), (0, 4 * n_vocab))
            os.unlink(path)
            for args in (("--tokens", "1,2,99999999"), ("--tokens", "1,2,x"), ("--tokens", "-1"), ("--tokens", "1,,2"),
                         ("--tokens", "")):
                code, out, err = sluice("eval", "-m", model, *args, "--logits", path)
                self.assertEqual((code, out), (1, b""), (args, err))
                self.assertEqual(os.listdir(d), [])
            code, out, err = sluice("eval", "-m", model, "--tokens", "1,2", "--logits", os.path.join(d, "no", "x"))
            self.assertEqual((code, out), (1, b""))
            # A failed rewrite leaves the old file alone.
            write(path, b"old")
            sluice("eval", "-m", model, "--tokens", "1,2,99999999", "--logits", path)
            self.assertEqual(read(path), b"old")
        code, out, err = sluice("eval", "-m", model, "--tokens", "1,2,3", "--logits", "/dev/full")
        self.assertEqual(code, 1)
        self.assertIn("No space", err)

    def test_ctrl_c(self):
        with tempfile.TemporaryDirectory() as d:
            path = os.path.join(d, "rows")
            p = subprocess.Popen([SLUICE, "eval", "-f", TEXT, "--logits", path], stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE)
            while not any(os.path.getsize(os.path.join(d, n)) for n in os.listdir(d)):
                self.assertIsNone(p.poll())
                time.sleep(0.01)
            p.send_signal(signal.SIGINT)
            out, err = p.communicate(timeout=60)
            self.assertEqual((p.returncode, out), (130, b""))
            self.assertIn(b"ended by Ctrl-C: perplexity", err)
            self.assertEqual(os.listdir(d), [])

    def test_too_little(self):
        for stdin in (b"", b"a"):
            code, out, err = sluice("eval", "-f", "-", stdin=stdin)
            self.assertEqual((code, out), (1, b""))
            self.assertIn("perplexity needs 2", err)


def machine_file(folder, dram=1e9, peak=1e15):
    """A machine whose memory and instructions are of that speed."""
    path = os.path.join(folder, "machine-%g-%g.json" % (dram, peak))
    peaks = {n: {"core": peak, "all": peak} for n in
             ("int8_avx2", "int8_avxvnni", "int8_avx512vnni", "f32_avx2", "f32_avx512")}
    write(path, json.dumps({
        "sluice_machine": 2, "source": "datasheet",
        "hardware": {"cpu": "invented", "isa": "", "cores": 1, "hw_threads": 1, "l3_bytes": 0, "ram_bytes": 1 << 34},
        "dram_read": [{"threads": 1, "bytes_s": dram}], "barrier": [{"threads": 1, "s": 1e-6}],
        "peaks": peaks}).encode())
    return path


class Bench(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory()
        self.machine = machine_file(self.dir.name)

    def tearDown(self):
        self.dir.cleanup()

    def bench(self, *args, machine=None):
        code, out, err = sluice("bench", "--machine", machine or self.machine, *args)
        self.assertEqual(code, 0, err)
        return out.decode(), err

    def rows(self, *args, **kw):
        return json.loads(self.bench("-o", "json", *args, **kw)[0])

    def test_formats(self):
        args = ("-p", "24,9", "-n", "6", "-t", "1,2", "-r", "2") if os.cpu_count() > 1 else \
               ("-p", "24,9", "-n", "6", "-t", "1,1", "-r", "2")
        want = [(t, test) for t in map(int, args[5].split(",")) for test in ("pp24", "pp9", "tg6")]
        rows = self.rows(*args)
        self.assertEqual([(r["threads"], r["test"]) for r in rows], want)
        for r in rows:
            self.assertEqual(set(r), {"model", "test", "threads", "tok_per_s", "stddev", "bound_tok_per_s", "share"})
            self.assertGreater(r["tok_per_s"], 0)
            self.assertGreaterEqual(r["stddev"], 0)
            self.assertAlmostEqual(r["share"], r["tok_per_s"] / r["bound_tok_per_s"], places=5)
        out, err = self.bench(*args, "-o", "csv")
        table = list(csv.DictReader(out.splitlines()))
        self.assertEqual([(int(r["threads"]), r["test"]) for r in table], want)
        self.assertEqual({r["model"] for r in table}, {rows[0]["model"]})
        self.assertGreater(float(table[0]["size_bytes"]), 1e6)
        self.assertGreater(float(table[0]["bound_tok_per_s"]), 0)
        out, err = self.bench(*args)
        lines = out.splitlines()
        self.assertEqual([c.strip() for c in lines[0].strip("|").split("|")],
                         ["model", "size", "params", "backend", "threads", "test", "t/s", "bound", "share"])
        self.assertEqual(len({len(l) for l in lines[:8]}), 1, out)
        for line, (threads, test) in zip(lines[2:8], want):
            cells = [c.strip() for c in line.strip("|").split("|")]
            self.assertEqual(cells[4:6], [str(threads), test])
            self.assertRegex(cells[6], r"^\d+\.\d\d ± \d+\.\d\d$")
            self.assertRegex(cells[8], r"^\d+\.\d %$")
        self.assertRegex(lines[-1], r"^build: sluice \d")
        self.assertIn("invented", err)      # another machine's file is said

    def test_bounds(self):
        """DRAM binds: one token's bytes, as run counts them. Slow instructions bind the prompt."""
        code, out, err = sluice("run", "--json", "-n", "2", "--temp", "0", "--ignore-eos", "-p", "")
        read_bytes = json.loads(out)["bytes_per_token"]
        slow = self.rows("-p", "0", "-n", "1", "-r", "1")[0]
        self.assertAlmostEqual(slow["bound_tok_per_s"] * read_bytes / 1e9, 1, delta=0.01)
        fast = self.rows("-p", "0", "-n", "1", "-r", "1", machine=machine_file(self.dir.name, 1e11))[0]
        self.assertAlmostEqual(fast["bound_tok_per_s"] / slow["bound_tok_per_s"], 100, delta=0.01)
        busy = machine_file(self.dir.name, 1e14, 1e8)
        a, b = self.rows("-p", "16,32", "-n", "0", "-r", "1", machine=busy)
        self.assertAlmostEqual(a["bound_tok_per_s"] / b["bound_tok_per_s"], 1, delta=0.1)
        small = self.rows("-p", "32", "-n", "0", "-r", "1", "-b", "1")[0]     # every row reads all weights
        large = self.rows("-p", "32", "-n", "0", "-r", "1")[0]
        self.assertLess(small["bound_tok_per_s"], large["bound_tok_per_s"] / 2)

    def test_device(self):
        """The plan that `run` makes for it; beside each test the least time of that plan, what binds it, the forecast."""
        args = ("--device", "emu:mem=20M,h2d=1G,cores=1", "-p", "24,9", "-n", "6", "-t", "1", "-r", "1")
        rows = self.rows(*args)
        self.assertEqual([r["test"] for r in rows], ["pp24", "pp9", "tg6"])
        for r in rows:
            self.assertEqual(set(r), {"model", "test", "threads", "tok_per_s", "stddev", "bound_tok_per_s", "share",
                                      "limited_by", "forecast_tok_per_s"})
            self.assertAlmostEqual(r["share"], r["tok_per_s"] / r["bound_tok_per_s"], places=5)
            self.assertGreater(r["forecast_tok_per_s"], 0)
            self.assertLessEqual(r["forecast_tok_per_s"], r["bound_tok_per_s"] * 1.0001)
        self.assertIn("bandwidth", rows[2]["limited_by"])       # of the machine's 1e9 bytes/s
        out, err = self.bench(*args, "--vram", "16M")
        lines = out.splitlines()
        self.assertEqual([c.strip() for c in lines[0].strip("|").split("|")][7:],
                         ["bound", "share", "limited by", "forecast"])
        self.assertIn(" + emu |", lines[2])
        self.assertIn(" of 16.0 MiB", err)

    @unittest.skipIf(os.environ.get("SLUICE_SANITIZED"), "a sanitizer's own memory is most of the budget")
    def test_streamed(self):
        """In a budget a little above the floor experts are streamed, and rows say how that went."""
        args = ("-p", "32", "-n", "8", "-r", "2", "--warmup", "4")
        code, out, err = sluice("bench", "--ram", "1M", *args)
        self.assertEqual(code, 1)
        floor = int(re.search(r"below the floor of (\d+) MiB", err)[1])
        for more in range(3, 9):        # the floor moves with what the C library's heap holds
            code, out, err = sluice("bench", "--machine", self.machine, "--ram", "%dM" % (floor + more), "-o", "json",
                                    *args)
            if code == 0:
                break
        self.assertEqual(code, 0, err)
        rows = json.loads(out)
        self.assertEqual([(r["test"], r["cache"]) for r in rows], [("pp32", "cold"), ("tg8", "warm 4")])
        for r in rows:
            self.assertLess(r["hit_rate"], 1)
            self.assertGreater(r["disk_bytes_per_token"], 0)
            self.assertGreater(r["probed_disk_bytes_per_s"], 1e5)
            self.assertTrue(0 <= r["stall_share"] < 1, r)
            self.assertEqual(r["budget_bytes"], floor + more << 20)
            self.assertAlmostEqual(r["share"], r["tok_per_s"] / r["bound_tok_per_s"], places=5)
        self.assertGreater(rows[0]["ttft_s"], 0)
        out, err = self.bench("--ram", "%dM" % (floor + more + 1), "-p", "0", "-n", "4", "-r", "1")
        head = [c.strip() for c in out.splitlines()[0].strip("|").split("|")]
        if "streamed" in err:
            self.assertEqual(head[-4:], ["cache", "hits", "disk", "waits"])

    def test_refused(self):
        for args in (("-p", "x"), ("-n", "1,"), ("-t", "0"), ("-t", "1,,1"), ("-r", "0"), ("-o", "xml"),
                     ("-p", "0", "-n", "0"), ("-p", "-1"), ("-b", "0")):
            code, out, err = sluice("bench", *args)
            self.assertEqual((code, out), (2, b""), args)
            self.assertIn("usage: sluice bench", err, args)
        for args in (("--isa", "mmx"), ("--kernels", "--isa", "c,mmx"), ("--kernels", "--type", "Q4_K,Q9"),
                     ("--kernels", "--type", "F16"), ("-t", "1,4096")):
            code, out, err = sluice("bench", *args)
            self.assertEqual((code, out, err.count("\n")), (2, b"", 1), err)
        code, out, err = sluice("bench", "-m", os.path.join(self.dir.name, "no.gguf"))
        self.assertEqual((code, out, err.count("\n")), (1, b"", 1), err)
        code, out, err = sluice("bench", "--machine", os.path.join(self.dir.name, "no.json"))
        self.assertEqual((code, out, err.count("\n")), (1, b"", 1), err)

    def test_isa(self):
        out, err = self.bench("--isa", "c", "-p", "4", "-n", "0", "-r", "1", "-t", "1")
        self.assertIn("| cpu c ", out)

    @unittest.skipIf(os.environ.get("SLUICE_SANITIZED"), "the peaks have no C loop, and this takes long")
    def test_kernels(self):
        code, out, err = sluice("bench", "--kernels", "--type", "Q4_0", "-r", "1", "-o", "json")
        self.assertEqual(code, 0, err)
        rows = json.loads(out)
        self.assertEqual({r["type"] for r in rows if r["unit"] == "GB/s" and "rows" in r["kernel"]}, {"Q4_0"})
        self.assertLessEqual({"rows", "rows, barriers", "attend 4096", "attend 16384"}, {r["kernel"] for r in rows})
        for r in rows:
            self.assertEqual(set(r), {"kernel", "type", "isa", "threads", "tokens", "rate", "unit", "peak",
                                      "peak_name", "share"})
            self.assertGreater(min(r["rate"], r["peak"], r["share"]), 0)


if __name__ == "__main__":
    sys.exit(unittest.main())
