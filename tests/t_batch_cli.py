#!/usr/bin/env python3
"""`sluice batch` as a user meets it: both forms of requests and results, what bad input gets, the same
answers alone and in company, kills at random moments, and a full disk. Python's standard library only."""
import fcntl
import json
import os
import random
import resource
import signal
import subprocess
import tempfile
import time
import unittest

ROOT = os.environ.get("SLUICE_SOURCE_DIR", ".")
SLUICE = os.path.join(os.environ.get("SLUICE_BUILD_DIR", "build"), "tools", "sluice")
SLOW = bool(os.environ.get("SLUICE_SANITIZED"))
KILLS, LINES = (5, 60) if SLOW else (50, 500)


class Batch(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)
        self.out = self.path("results.jsonl")

    def path(self, name):
        return os.path.join(self.dir.name, name)

    def write(self, *lines):
        path = self.path("requests.jsonl")
        with open(path, "wb") as f:
            for line in lines:
                f.write(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
        return path

    def command(self, path, *args):
        return [SLUICE, "batch", "-i", path, "-o", self.out, *args]

    def batch(self, path, *args, **more):
        p = subprocess.run(self.command(path, *args), capture_output=True, timeout=300, **more)
        return p.returncode, p.stdout.decode(), p.stderr.decode()

    def bytes(self):
        with open(self.out, "rb") as f:
            return f.read()

    def results(self):
        with open(self.out, encoding="utf-8") as f:
            lines = [json.loads(line) for line in f]
        by_id = {r["custom_id"]: r for r in lines}
        self.assertEqual(len(by_id), len(lines), "an id twice")
        return by_id

    def test_forms(self):
        path = self.write(
            {"custom_id": "plain", "prompt": "KING HENRY:\n", "max_tokens": 9, "temperature": 0},
            {"prompt": "ROMEO:\n", "max_tokens": 5},
            {"custom_id": "open", "method": "POST", "url": "/v1/completions",
             "body": {"model": "any", "prompt": "KING HENRY:\n", "max_tokens": 9, "temperature": 0}},
            {"custom_id": "talk", "method": "POST", "url": "/v1/chat/completions",
             "body": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
                      "max_completion_tokens": 4}})
        code, out, err = self.batch(path, "--json", "--chat-template", "chatml")
        self.assertEqual(code, 0, err)
        r = self.results()
        self.assertEqual(set(r), {"plain", "line-2", "open", "talk"})
        self.assertEqual(set(r["plain"]), {"custom_id", "text", "finish_reason", "usage", "request_id"})
        self.assertEqual(r["plain"]["finish_reason"], "length")
        self.assertEqual(r["plain"]["usage"]["completion_tokens"], 9)
        body = r["open"]["response"]["body"]
        self.assertEqual(r["open"]["response"]["status_code"], 200)
        self.assertIsNone(r["open"]["error"])
        self.assertEqual(body["object"], "text_completion")
        self.assertEqual(body["choices"][0]["text"], r["plain"]["text"])
        body = r["talk"]["response"]["body"]
        self.assertEqual(body["object"], "chat.completion")
        self.assertEqual(body["choices"][0]["message"]["role"], "assistant")
        self.assertEqual(body["usage"]["completion_tokens"], 4)
        total = json.loads(out)
        self.assertEqual((total["requests"], total["answered"], total["refused"]), (4, 4, 0))
        self.assertGreater(total["tok_per_s"], 0)

    def test_forecast(self):
        """Said first, and in the end how far off it was; what prompts share is not counted as work."""
        cache = self.path("cache")
        os.makedirs(os.path.join(cache, "sluice"))
        env = {**os.environ, "XDG_CACHE_HOME": cache}
        shown = subprocess.run([SLUICE, "probe", "--quick", "-o", os.path.join(cache, "sluice", "machine.json")], env=env,
                               capture_output=True, timeout=120)
        self.assertEqual(shown.returncode, 0, shown.stderr)
        front = "KING HENRY: what is the matter, that so many of you stand here before the gate of the city? " * 3
        path = self.write(*({"custom_id": f"r{i}", "prompt": f"{front}{i * 31} of us", "max_tokens": 8} for i in range(24)))
        code, out, err = self.batch(path, "--json", env=env)
        self.assertEqual(code, 0, err)
        r = json.loads(out)
        lines = [line for line in err.splitlines() if "forecast" in line]
        self.assertEqual(len(lines), 2, err)
        self.assertIn("limited by", lines[0])
        self.assertIn("error", lines[1])
        self.assertLessEqual(r["predicted_tok_per_s"], r["bound_tok_per_s"])
        tokens = r["prompt_tokens"] + r["completion_tokens"]
        self.assertAlmostEqual(r["predicted_s"] * r["predicted_tok_per_s"] / tokens, 1, delta=0.1)
        self.assertGreater(r["shared_tokens"], 0)

    def test_nothing_to_do(self):
        """A second run says so as the first one did, in JSON too; so does one without a good line."""
        path = self.write({"custom_id": "a", "prompt": "ROMEO:", "max_tokens": 2})
        code, out, err = self.batch(path)
        self.assertEqual(code, 0, err)
        self.assertIn("1 request, 1 at once", err)
        self.assertIn("1 answer in", err)
        before = self.bytes()
        code, out, err = self.batch(path, "--json")
        self.assertEqual(code, 0, err)
        r = json.loads(out)
        self.assertEqual((r["requests"], r["answered"], r["had_results"], r["refused"]), (1, 0, 1, 0))
        self.assertEqual(self.bytes(), before)
        self.out = self.path("other.jsonl")
        code, out, err = self.batch(self.write(b"tell me\n", b"and me\n"))
        self.assertEqual((code, out), (1, ""))
        self.assertIn('requests.jsonl:1: expected {"prompt": "..."} and found no JSON', err)
        self.assertIn("2 requests could not be done", err)

    def test_memory_beside_a_device(self):
        """What an emulated device holds is said beside the budget that does not hold it."""
        code, out, err = self.batch(self.write({"prompt": "ROMEO:", "max_tokens": 2}), "--device",
                                    "emu:mem=20M,cores=1", "-t", "1")
        self.assertEqual(code, 0, err)
        self.assertRegex(err, r"peak memory [\d.]+ MiB of .* and the device's [\d.]+ MiB")

    def test_misspelt_field(self):
        """Said once; a field of the user's own is none of ours."""
        line = {"prompt": "ROMEO:", "max_tokens": 2, "max_token": 9, "answer": 3, "model": "any"}
        code, out, err = self.batch(self.write(line, line))
        self.assertEqual(code, 0, err)
        said = [l for l in err.splitlines() if "no effect" in l]
        self.assertEqual(len(said), 1, err)
        self.assertIn('requests.jsonl:1: "max_token" has no effect: is max_tokens meant?', said[0])

    def test_link(self):
        """Results behind a link are put in order where they are."""
        path = self.write(*({"custom_id": f"x{i}", "prompt": "A" * (40 - i), "max_tokens": 3 + i % 3} for i in range(9)))
        real = self.path("real.jsonl")
        os.symlink(real, self.out)
        self.assertEqual(self.batch(path, "--order", "input", "-np", "4")[0], 0)
        self.assertTrue(os.path.islink(self.out))
        self.assertEqual(list(self.results()), [f"x{i}" for i in range(9)])
        self.assertFalse(os.path.islink(real))

    def test_alone_and_in_company(self):
        asked = [{"custom_id": f"n{i}", "prompt": f"Line {i * 7}, and so the king", "max_tokens": 4 + i % 9}
                 for i in range(40)]
        path = self.write(*asked)
        self.assertEqual(self.batch(path, "-np", "16")[0], 0)
        many = self.results()
        os.remove(self.out)
        self.assertEqual(self.batch(path, "-np", "1", "--order", "input", "-t", "1")[0], 0)
        self.assertEqual(many, self.results())
        self.assertEqual(list(self.results()), [a["custom_id"] for a in asked])
        self.assertGreater(len({r["text"] for r in many.values()}), 30, "seeds differ")
        # one line of its own file is answered the same
        os.remove(self.out)
        self.assertEqual(self.batch(self.write(asked[17]))[0], 0)
        self.assertEqual(self.results()["n17"], many["n17"])

    def test_stops_and_seeds(self):
        path = self.write({"custom_id": "whole", "prompt": "ROMEO:\n", "temperature": 0, "max_tokens": 40},
                          {"custom_id": "cut", "prompt": "ROMEO:\n", "temperature": 0, "max_tokens": 40,
                           "stop": "a"},
                          *({"custom_id": f"s{i}", "prompt": "ROMEO:\n", "seed": 5, "temperature": 1,
                             "max_tokens": 12} for i in range(2)))
        code, _, err = self.batch(path)
        self.assertEqual(code, 0, err)
        r = self.results()
        self.assertEqual(r["cut"]["text"], r["whole"]["text"].split("a")[0])
        self.assertEqual(r["cut"]["finish_reason"], "stop")
        self.assertEqual(r["s0"]["text"], r["s1"]["text"])

    def test_bad_lines(self):
        path = self.write(
            {"custom_id": "good", "prompt": "x", "max_tokens": 2}, b"{no json\n", b'"text"\n', b"\n",
            b'{"prompt": "\xff"}\n', {"custom_id": "good", "prompt": "y"}, {"custom_id": 7, "prompt": "x"},
            {"prompt": "x", "max_tokens": 0}, {"prompt": "x", "temperature": -1}, {"prompt": 5},
            {"prompt": "x", "messages": []}, {"messages": [{"role": "user"}]}, {"prompt": "x", "n": 2},
            {"prompt": "x", "logprobs": True}, {"prompt": "x", "stop": [1]}, {"prompt": "x", "seed": "s"},
            {"custom_id": "chat", "messages": [{"role": "user", "content": "hi"}]},
            {"custom_id": "long", "prompt": "word " * 3000, "max_tokens": 3},
            {"custom_id": "a\0b", "prompt": "x"}, {"messages": [{"role": "a", "content": "b\0c"}]},
            {"custom_id": "last", "prompt": "z", "max_tokens": 2, "n": 1, "stream": False, "tools": []})
        code, _, err = self.batch(path, "-c", "256")
        self.assertEqual(code, 1)
        for number in (2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20):
            self.assertIn(f"requests.jsonl:{number}: ", err)
        for number in (1, 4, 21):
            self.assertNotIn(f"requests.jsonl:{number}: ", err)
        r = self.results()
        self.assertEqual(set(r), {"good", "chat", "last"})     # a larger -c may do the long one
        self.assertIn("chat template", r["chat"]["error"])
        self.assertIn("the context 256", err)
        self.assertEqual(r["last"]["usage"]["completion_tokens"], 2)

    def test_refused(self):
        empty = self.path("empty.jsonl")
        open(empty, "w").close()
        for path, args, why in ((empty, [], "no request"), (self.path("none"), [], "No such file"),
                                (self.path(""), [], "")):
            code, _, err = self.batch(path, *args)
            self.assertEqual(code, 1)
            self.assertIn(why, err)
        path = self.write({"custom_id": "a", "prompt": "x", "max_tokens": 2})
        self.assertEqual(self.batch(path)[0], 0)
        before = self.bytes()
        other = self.write({"custom_id": "b", "prompt": "x", "max_tokens": 2})
        code, _, err = self.batch(other)
        self.assertEqual((code, self.bytes()), (1, before))
        self.assertIn("another run", err)
        path = self.write({"custom_id": "a", "prompt": "x", "max_tokens": 2})
        code, _, err = self.batch(path, "--temp", "0")      # another setting
        self.assertEqual((code, self.bytes()), (1, before))
        self.assertIn("another run", err)
        code, _, err = self.batch(path)
        self.assertEqual((code, self.bytes()), (0, before))
        with open(self.out, "wb") as f:
            f.write(b"my thesis\n")
        self.assertEqual(self.batch(path)[0], 1)
        self.assertEqual(self.bytes(), b"my thesis\n")
        with open(self.out, "wb") as f:
            f.write(b"my notes, without a newline")
        self.assertEqual(self.batch(path)[0], 1)
        self.assertEqual(self.bytes(), b"my notes, without a newline")
        with open(path, "rb") as f:
            before = f.read()
        p = subprocess.run([SLUICE, "batch", "-i", path, "-o", path], capture_output=True, timeout=60)
        with open(path, "rb") as f:
            self.assertEqual((p.returncode, f.read()), (1, before))
        os.remove(self.out)
        with open(self.out, "wb") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            code, _, err = self.batch(path)
            self.assertEqual(code, 1)
            self.assertIn("another run", err)
        for args in (["-i", path], ["-o", self.out], ["-i", path, "-o", self.out, "-np", "0"]):
            p = subprocess.run([SLUICE, "batch", *args], capture_output=True, timeout=60)
            self.assertEqual(p.returncode, 2)

    def job(self):
        r = random.Random(3)
        words = "the king and a crown of night did sleep upon thy sword".split()
        return self.write(*({"custom_id": f"q{i}", "prompt": " ".join(r.choices(words, k=r.randint(1, 30))),
                             "max_tokens": r.randint(8, 96), "temperature": 1} for i in range(LINES)))

    def test_kills(self):
        path = self.job()
        self.assertEqual(self.batch(path)[0], 0)
        want = self.results()
        self.assertEqual(len(want), LINES)
        os.remove(self.out)
        r, killed, whole = random.Random(4), 0, 0
        while killed < KILLS:
            p = subprocess.Popen(self.command(path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(r.uniform(0.02, 0.16))
            killed += p.poll() is None
            p.kill()
            p.wait()
            if os.path.exists(self.out):
                with open(self.out, "rb") as f:
                    done = f.read().count(b"\n")
                self.assertGreaterEqual(done, whole, "a result was lost")
                whole = done
                if done == LINES and killed < KILLS:    # all done too soon: from the start
                    os.remove(self.out)
                    whole = 0
        code, _, err = self.batch(path)
        self.assertEqual(code, 0, err)
        self.assertEqual(self.results(), want)

    def test_torn_line(self):
        path = self.job()
        self.assertEqual(self.batch(path)[0], 0)
        want = self.results()
        text = self.bytes()
        with open(self.out, "wb") as f:
            f.write(text[:len(text) * 2 // 3])
        code, _, err = self.batch(path)
        self.assertEqual(code, 0, err)
        self.assertEqual(self.results(), want)

    def test_interrupted(self):
        path = self.job()
        p = subprocess.Popen(self.command(path), stderr=subprocess.PIPE)
        time.sleep(0.25)
        p.send_signal(signal.SIGINT)
        err = p.communicate()[1].decode()
        if p.returncode != 0:       # it was not done already
            self.assertIn(p.returncode, (130, -signal.SIGINT), err)     # in the loop, or while it loads
        self.assertEqual(self.batch(path)[0], 0)
        self.assertEqual(len(self.results()), LINES)

    def test_full_disk(self):
        def small():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

        path = self.job()
        code, _, err = self.batch(path, preexec_fn=small)
        self.assertEqual(code, 1, err)
        self.assertIn("goes on from there", err)
        text = self.bytes()
        self.assertTrue(0 < len(text) <= 4000 and text.endswith(b"\n"))
        self.assertEqual(self.batch(path)[0], 0)
        self.assertEqual(len(self.results()), LINES)


if __name__ == "__main__":
    unittest.main()
