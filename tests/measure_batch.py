#!/usr/bin/env python3
"""Throughput of `sluice batch` against pass size, sequences at once and their room, beside both forecasts.

    tests/measure_batch.py -m MODEL.gguf -f TEXT --log batch.jsonl --ram 2G --requests 256
    tests/measure_batch.py ... --sweep rows:64,128,256,512,1024 --sweep seqs:8,16,32,64 --sweep room:0.5,0.75,1
    tests/measure_batch.py ... --prefix 512 --requests 256 --ram 8G
    tests/measure_batch.py --log batch.jsonl --svg docs/batch.svg           (draws and prints what the log has)

Prompts are passages of TEXT of about --prompt tokens (32:256), each answered with --new tokens (64), the same for every
cell. First the planner's own choice is run ("plan"); a sweep then changes one thing of it: `rows` of a pass (-b), `seqs` at
once (-np, room in proportion), `room` for keys and values (--kv-positions, as a share of what all sequences hold in their
end). --prefix N puts the same N tokens in front of every prompt, and in a second cell N different ones: what sharing them
gives. Each cell is one line of the log; cells that it has already are not run again, so an interrupted series goes on.

Stage 1 is the bound of any plan in that budget, stage 2 the forecast of this very plan, both printed by sluice before it
runs. `full` are tok/s (prompts' and answers' tokens) while a quarter to three quarters of the requests ended, `all` those of
the whole run, filling and draining included.

--lock FILE waits for an exclusive lock before each cell, for machines that several jobs measure on. Not part of
tools/check. Python 3 standard library only."""
import argparse
import fcntl
import json
import math
import os
import random
import subprocess
import sys
import tempfile

SWEEPS = {"rows": "rows of a pass", "seqs": "sequences at once", "room": "room for keys and values, share"}


def tokens_per_char(a, text):
    piece = text[:4000]
    p = subprocess.run([a.sluice, "tokenize", "-m", a.model], input=piece.replace("\n", " "), capture_output=True, text=True,
                       check=True)
    return len(p.stdout.split()) / len(piece)


def make_requests(a, path, prefix, shared):
    """The same for the same arguments. prefix: tokens in front; shared: of every prompt the same ones."""
    with open(a.file, encoding="utf-8") as f:
        text = f.read()
    lo, hi = (int(v) for v in a.prompt.split(":"))
    each = tokens_per_char(a, text)
    r = random.Random(a.seed)

    def passage(n):
        chars = max(int(n / each), 1)
        at = r.randrange(len(text) - chars)
        return text[at:at + chars]

    beginning = passage(prefix) if prefix else ""
    with open(path, "w", encoding="utf-8") as f:
        for i in range(a.requests):
            front = beginning if shared or not prefix else passage(prefix)
            f.write(json.dumps({"custom_id": f"p{i}", "prompt": front + passage(r.randint(lo, hi)), "max_tokens": a.new}) + "\n")


def load(path):
    if not path or not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f if line.endswith("\n")]


def key(a, sweep, value):
    return {"model": os.path.basename(a.model), "ram": a.ram, "requests": a.requests, "new": a.new, "prompt": a.prompt,
            "sweep": sweep, "value": value}


def cell(a, sweep, value, flags, prefix=0, shared=True):
    """The cell's line: from the log, or run and appended."""
    want = key(a, sweep, value)
    for row in load(a.log):
        if all(row.get(k) == v for k, v in want.items()):
            return row
    with tempfile.TemporaryDirectory(dir=a.tmp) as tmp:
        path = os.path.join(tmp, "requests.jsonl")
        make_requests(a, path, prefix, shared)
        cmd = [a.sluice, "batch", "-m", a.model, "-i", path, "-o", os.path.join(tmp, "results.jsonl"), "--json", "--ignore-eos",
               "-n", str(a.new)] + (["--ram", a.ram] if a.ram else []) + flags
        with open(a.lock or os.devnull, "a", encoding="utf-8") as held:
            if a.lock:
                fcntl.flock(held, fcntl.LOCK_EX)
            p = subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if p.returncode:
        sys.exit(f"measure_batch: {' '.join(cmd)}: {p.stderr.strip().splitlines()[-1:]}")
    row = {**want, **json.loads(p.stdout)}
    if "predicted_tok_per_s" not in row:
        sys.exit("measure_batch: no forecast: run `sluice probe` first")
    with open(a.log, "a", encoding="utf-8") as f:
        f.write(json.dumps(row) + "\n")
    print(f"{sweep} {value}: {row['tok_per_s']:.1f} tok/s, full {row.get('full_tok_per_s', 0):.1f}; stage 2 "
          f"{row['predicted_tok_per_s']:.1f}, stage 1 {row['bound_tok_per_s']:.1f}", file=sys.stderr, flush=True)
    return row


def run_sweep(a, plan, spec):
    sweep, values = spec.split(":")
    n, room = plan["sequences"], plan["kv_positions"]
    end = room / n if sweep == "seqs" else 0
    for text in values.split(","):
        v = float(text) if sweep == "room" else int(text)
        flags = ["-np", str(n), "--kv-positions", str(room)]
        if sweep == "rows":
            flags += ["-b", text]
        elif sweep == "seqs":
            flags = ["-np", text, "--kv-positions", str(int(end * v)), "-b", str(max(plan["max_rows"], v))]
        else:
            whole = n * (plan["prompt_tokens"] + plan["completion_tokens"]) / plan["answered"]
            flags = ["-np", str(n), "--kv-positions", str(int(v * whole)), "-b", str(plan["max_rows"])]
        cell(a, sweep, v, flags)


# ---- what it shows ----

def shares(row):
    full = row.get("full_tok_per_s") or row["tok_per_s"]
    return (f"{row['tok_per_s']:.1f}", f"{row['predicted_tok_per_s']:.1f}",
            f"{100 * (row['predicted_tok_per_s'] / row['tok_per_s'] - 1):+.1f} %", f"{full:.1f}",
            f"{row['predicted_full_tok_per_s']:.1f}", f"{row['bound_tok_per_s']:.1f}", f"{100 * full / row['bound_tok_per_s']:.0f} %")


def table(rows):
    print("| cell | at once | rows | positions | all, tok/s | stage 2 | error | full, tok/s | stage 2 | stage 1 | full of stage 1 | "
          "preempted | peak MiB |\n|---|" + "---:|" * 12)
    for r in rows:
        what = r["sweep"] if r["value"] is None else f"{r['sweep']} {r['value']:g}"
        print(f"| {what} | {r['sequences']} | {r['max_rows']} | {r['kv_positions']} | " + " | ".join(shares(r))
              + f" | {r['preemptions']} | {r['peak_rss_bytes'] >> 20} |")


def prefix_text(rows):
    for r in (r for r in rows if r["sweep"] == "prefix"):
        other = next((o for o in rows if o["sweep"] == "no prefix" and o["value"] == r["value"]
                      and o["requests"] == r["requests"] and o["ram"] == r["ram"]), None)
        if not other:
            continue
        print(f"\n{r['requests']} prompts with the same {r['value']} tokens in front: {r['seconds']:.1f} s, {r['shared_tokens']} tokens "
              f"of prompts shared, {r['kv_bytes'] / (1 << 20):.0f} MiB of keys and values for {r['sequences']} at once, peak "
              f"{r['peak_rss_bytes'] >> 20} MiB;\nwith different ones: {other['seconds']:.1f} s, {other['kv_bytes'] / (1 << 20):.0f} "
              f"MiB for {other['sequences']} at once, peak {other['peak_rss_bytes'] >> 20} MiB: {other['seconds'] / r['seconds']:.2f} "
              f"times as long.")


def panel(rows, sweep, left, top, w, h, out):
    """tok/s over the swept value, which grows by factors."""
    pts = sorted((r["value"], r) for r in rows)
    lo, hi = math.log(pts[0][0]), math.log(pts[-1][0])
    most = 1.1 * max(max(r["bound_tok_per_s"], r["predicted_full_tok_per_s"], r["tok_per_s"]) for _, r in pts)
    unit = 10 ** math.floor(math.log10(most / 2))
    unit *= 5 if most / unit > 12 else 1

    def x(v):
        return left + w * ((math.log(v) - lo) / (hi - lo) if hi > lo else 0.5)

    def y(v):
        return top + h - h * v / most

    out.append(f'<text x="{left + w / 2:.0f}" y="{top + h + 38}" text-anchor="middle">{SWEEPS[sweep]}</text>')
    for i in range(int(most / unit) + 1):
        at = y(i * unit)
        out.append(f'<path d="M{left} {at:.1f}h{w}" stroke="#ddd"/><text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{i * unit:g}</text>')
    for v, _ in pts:
        out.append(f'<text x="{x(v):.1f}" y="{top + h + 18}" text-anchor="middle">{v:g}</text>')
    for name, colour, dash in LINES:
        d = "L".join(f"{x(v):.1f} {y(r.get(name) or r['tok_per_s']):.1f}" for v, r in pts)
        out.append(f'<path d="M{d}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>')
    out += [f'<circle cx="{x(v):.1f}" cy="{y(r.get("full_tok_per_s") or r["tok_per_s"]):.1f}" r="3.5" fill="#1f5fbf"/>' for v, r in pts]


LINES = (("bound_tok_per_s", "#888", "6 4"), ("predicted_full_tok_per_s", "#c0501f", ""), ("full_tok_per_s", "#1f5fbf", ""))
NAMES = ("stage 1, the bound of any plan", "stage 2, the forecast of this one", "measured, the pipeline full")


def plot(rows, path):
    w, h, gap, left, top = 260, 240, 70, 60, 60
    sweeps = [s for s in SWEEPS if any(r["sweep"] == s for r in rows)]
    width = left + len(sweeps) * (w + gap)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top + h + 60}" font-family="sans-serif" '
           'font-size="12" fill="#222">', f'<rect width="{width}" height="{top + h + 60}" fill="#fff"/>']
    for i, ((_, colour, dash), name) in enumerate(zip(LINES, NAMES)):
        at = left + 240 * i
        out.append(f'<path d="M{at} 26h28" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/><text x="{at + 34}" y="30">{name}</text>')
    out.append(f'<text x="{left}" y="{top - 8}" font-size="11">tok/s, prompts and answers</text>')
    for i, s in enumerate(sweeps):
        panel([r for r in rows if r["sweep"] == s], s, left + i * (w + gap), top, w, h, out)
    with open(path, "w", encoding="utf-8") as f:
        f.write("\n".join(out) + "\n</svg>\n")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--log", required=True, help="one JSON object a cell; what it has is not run again")
    p.add_argument("-m", "--model", help="without one the log is shown, nothing is run")
    p.add_argument("-f", "--file", default="tests/data/tinyshakespeare.txt", help="a text that prompts are passages of")
    p.add_argument("--sluice", default="build/tools/sluice")
    p.add_argument("--ram", help="as sluice's (default: what is available)")
    p.add_argument("--requests", type=int, default=64)
    p.add_argument("--prompt", default="32:256", help="tokens of a prompt, about (default: 32:256)")
    p.add_argument("--new", type=int, default=64)
    p.add_argument("--sweep", action="append", default=[], metavar="WHAT:V,V...", help="rows, seqs or room")
    p.add_argument("--prefix", type=int, help="tokens in front of every prompt")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--tmp", help="folder for requests and results")
    p.add_argument("--lock", help="a file to lock before each cell")
    p.add_argument("--svg", help="the sweeps, to a file")
    a = p.parse_args()
    for s in a.sweep:
        if s.split(":")[0] not in SWEEPS or ":" not in s:
            p.error(f"--sweep {s}: one of {', '.join(SWEEPS)}, a colon, and values")
    if a.model and a.prefix:
        cell(a, "prefix", a.prefix, [], a.prefix, True)
        cell(a, "no prefix", a.prefix, [], a.prefix, False)
    elif a.model:
        plan = cell(a, "plan", None, [])
        for s in a.sweep:
            run_sweep(a, plan, s)
    rows = load(a.log)
    table(rows)
    prefix_text(rows)
    if a.svg:
        plot(rows, a.svg)


if __name__ == "__main__":
    main()
