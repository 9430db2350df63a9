#!/usr/bin/env python3
"""`sluice inspect`: its sums against the file's size, its text, and what bad arguments get."""
import json
import os
import subprocess
import sys
import unittest

SLUICE = os.path.join(os.environ.get("SLUICE_BUILD_DIR", "build"), "tools", "sluice")
ARCH = os.path.join(os.environ.get("SLUICE_SOURCE_DIR", "."), "tests", "golden", "arch")


def run(*args):
    p = subprocess.run([SLUICE, "inspect", *args], capture_output=True, timeout=30)
    return p.returncode, p.stdout.decode(), p.stderr.decode()


class Inspect(unittest.TestCase):
    def show(self, name, *args):
        code, out, err = run("--json", *args, os.path.join(ARCH, name))
        self.assertEqual((code, err), (0, ""))
        return json.loads(out)

    def test_classes_add_up(self):
        for name in sorted(n for n in os.listdir(ARCH) if n.endswith(".gguf")):
            d = self.show(name)
            c = d["bytes_by_class"]
            with self.subTest(name):
                self.assertEqual(c["dense"] + c["embedding"] + c["experts"], d["bytes"])
                self.assertEqual(sum(t["bytes"] for t in d["by_type"].values()), d["bytes"])
                self.assertEqual(sum(t["bytes"] for t in d["tensors"]), d["bytes"])
                self.assertEqual(len(d["tensors"]), d["n_tensors"])
                self.assertLess(d["bytes"], os.path.getsize(os.path.join(ARCH, name)))
                self.assertEqual(c["experts"], c["expert_max"] * d["n_experts"] * d["n_moe_layers"])
                self.assertLessEqual(c["shared_experts"], c["dense"])

    def test_experts_in_one_tensor_or_many(self):
        one, many = self.show("mixtral.gguf"), self.show("mixtral-split.gguf")
        self.assertEqual(one["bytes_by_class"], many["bytes_by_class"])
        self.assertEqual((many["n_experts"], many["n_experts_used"]), (8, 2))

    def test_shared_experts_are_shown(self):
        self.assertGreater(self.show("qwen2moe.gguf")["bytes_by_class"]["shared_experts"], 0)

    def test_text(self):
        code, out, _ = run(os.path.join(ARCH, "qwen3moe.gguf"))
        self.assertEqual(code, 0)
        for part in ("qwen3moe.block_count", "blk.0.ffn_gate_exps.weight", "32 x 32 x 8", "one expert",
                     "-v shows them"):
            self.assertIn(part, out)
        code, out, _ = run("-v", os.path.join(ARCH, "qwen3moe.gguf"))
        self.assertIn("blk.2.ffn_down_exps.weight", out)

    def test_which_model(self):
        """Named alone or with -m, and without either the bundled one, as with every command."""
        path = os.path.join(ARCH, "qwen3moe.gguf")
        self.assertEqual(run("-m", path), run(path))
        code, out, err = run()
        self.assertEqual((code, err), (0, ""))
        self.assertIn("sluice-bard-q8_0.gguf: GGUF v3", out)

    def test_bad_input(self):
        self.assertEqual(run("a", "b")[0], 2)
        self.assertEqual(run("-m", "a", "b")[0], 2)
        code, out, err = run("no-such.gguf")
        self.assertEqual((code, out), (1, ""))
        self.assertIn("no-such.gguf", err)
        code, out, err = run(os.path.abspath(__file__))
        self.assertEqual((code, out, err.count("\n")), (1, "", 1))
        self.assertIn("GGUF", err)


if __name__ == "__main__":
    sys.exit(unittest.main())
