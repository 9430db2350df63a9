#!/usr/bin/env python3
"""How far off forecasts are: `sluice verify` over a matrix of models, budgets and threads, and the planner's choice beside
a sweep by hand.

    tests/measure_prediction.py --synth                          makes the models that are missing (random weights)
    sudo tests/measure_prediction.py --log cells.jsonl           runs what the log lacks; --only 'granite.*1/2' selects
    tests/measure_prediction.py --log cells.jsonl --table        tables in Markdown; --write FILE puts them in its marks
    sudo tests/measure_prediction.py --log sweep.jsonl --sweep   runs of 50 plans in each of 6 cells, and the chosen one

The matrix: 3 shapes x 2 types of weights x {in RAM, 1/2, 1/4 of the model's bytes as --ram} x 1 and 2 threads, each a run
of `sluice verify --json`, which forecasts prompt and decode (so 72 cells) before it measures. The first run of a model
records its routing behind another prompt; the others forecast by that trace, since routing depends on neither budget nor
threads. Every line that verify prints is kept in --log with the cell's name, so that a run that was cut off goes on.
The page cache is dropped before each run where that is allowed (root).

Order: of two runs of one model whose measured speeds differ by more than the larger of their spreads, the share that
the forecasts put in the same order.

The sweep: `sluice probe` once, then `sluice run` as it is (the planner chooses), then with 50 sets of flags: threads, rows of a pass, and where
experts are streamed lookahead, depth and size of reads. What counts is the time of prompt and generation. The best
few and the chosen one then run again in turn, and their medians are compared.

Not part of tools/check: needs minutes, and a machine with nothing else to do. --lock FILE waits for an exclusive lock
before each run. Python 3 standard library only."""
import argparse
import fcntl
import itertools
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time

# name: preset, layers, type of weights
MODELS = {
    "qwen3-7b-a1b Q4_K": ("qwen3-7b-a1b", 16, "Q4_K"),
    "qwen3-7b-a1b Q8_0, 8 layers": ("qwen3-7b-a1b", 8, "Q8_0"),
    "granite-3-3b-a800m Q4_K": ("granite-3-3b-a800m", 32, "Q4_K"),
    "granite-3-3b-a800m Q8_0": ("granite-3-3b-a800m", 32, "Q8_0"),
    "deepseek-v2-lite Q4_K_M, 9 layers": ("deepseek-v2-lite", 9, "Q4_K_M"),
    "deepseek-v2-lite Q8_0, 6 layers": ("deepseek-v2-lite", 6, "Q8_0"),
}
BUDGETS = {"in RAM": None, "1/2": 2, "1/4": 4}
THREADS = (2, 1)
SWEEP = [(m, b) for m in list(MODELS)[::2] for b in ("in RAM", "1/2")]
GRADES = (("calibrated", "predicted", "error"), ("cold", "cold", "cold_error"))
SHOWN = (("prompt_tok_per_s", "prompt tok/s"), ("decode_tok_per_s", "decode tok/s"), ("batch_tok_per_s", "batch tok/s"),
         ("ttft_s", "time to first token"),
         ("hit_rate", "hit rate"), ("disk_bytes_per_token", "bytes read per token"), ("peak_rss_bytes", "peak memory"))
SHARES = ("hit_rate", "stall_share")
MOST_MOVED = 0.05       # as in tools/cmd_verify.c
MARKS = ("<!-- tables of tests/measure_prediction.py -->", "<!-- end of tables -->")


def model_path(a, name):
    preset, layers, quant = MODELS[name]
    full = {"qwen3-7b-a1b": 16, "granite-3-3b-a800m": 32, "deepseek-v2-lite": 27}[preset]
    return os.path.join(a.models, f"{preset}{'' if layers == full else f'-{layers}l'}-{quant.lower()}.gguf")


def synth(a):
    for name, (preset, layers, quant) in MODELS.items():
        path = model_path(a, name)
        if re.search(a.only, name) and not os.path.exists(path):
            subprocess.run([a.sluice, "synth", "--like", preset, "--quant", quant, "--layers", str(layers), "-o", path],
                           check=True)


def drop_page_cache():
    try:
        os.sync()
        with open("/proc/sys/vm/drop_caches", "w") as f:
            f.write("3")
    except OSError:
        pass


def read_lines(path):
    if not os.path.exists(path):
        return []
    with open(path) as f:
        return [json.loads(line) for line in f if line.strip()]


def append(path, row):
    with open(path, "a") as f:
        f.write(json.dumps(row) + "\n")


def sluice(a, args, env=None):
    """What a command with --json prints; None and its last line on stderr otherwise."""
    with open(a.lock or os.devnull) as held:
        if a.lock:
            fcntl.flock(held, fcntl.LOCK_EX)
        drop_page_cache()
        p = subprocess.run([a.sluice, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **(env or {})})
    why = p.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"exit code {p.returncode}"]
    return (json.loads(p.stdout), "") if p.returncode == 0 else (None, why[0])


def model_flags(path, budget):
    """The context is kept short, so that a quarter of a small model is not all keys and values."""
    return ["-m", path, "-c", "1024"] + (["--ram", str(os.path.getsize(path) // BUDGETS[budget])] if BUDGETS[budget] else [])


# ---- the matrix ----

def cell_name(model, budget, threads):
    return f"{model}, {budget}, {threads} thread{'s' if threads > 1 else ''}"


def matrix(a):
    done = {r["cell"]: r for r in read_lines(a.log)}
    if a.again:
        done = {k: r for k, r in done.items() if r.get("moved", 0) <= MOST_MOVED}
    for model, budget, threads in itertools.product(MODELS, BUDGETS, THREADS):
        name = cell_name(model, budget, threads)
        if name in done or not re.search(a.only, name):
            continue
        path = model_path(a, model)
        trace = os.path.splitext(path)[0] + f"-p{a.p}.trace.jsonl"
        args = ["verify", "-t", str(threads), "-p", str(a.p), "-n", str(a.n), "-r", str(a.r), "--batch", str(a.batch), "--json",
                "--log", a.log + ".verify"] + model_flags(path, budget)
        args += ["--trace" if os.path.exists(trace) else "--trace-routing", trace]
        start = time.time()
        line, why = sluice(a, args)
        if not line:
            print(f"{name}: {why}", file=sys.stderr, flush=True)
            continue
        append(a.log, {"cell": name, "of": [model, budget, threads], "seconds": round(time.time() - start, 1), **line})
        q = line["quantities"]
        print(f"{name}: " + ", ".join(f"{k.split('_')[0]} {q[k]['measured']:.1f} {100 * q[k]['error']:+.1f} % (cold "
                                      f"{100 * q[k].get('cold_error', q[k]['error']):+.1f} %, spread {100 * q[k]['spread']:.1f} %)"
                                      for k in ("prompt_tok_per_s", "decode_tok_per_s"))
              + f"; moved {100 * line.get('moved', 0):.1f} %, {time.time() - start:.0f} s", file=sys.stderr, flush=True)


# ---- tables ----

def percentile(values, share):
    """The smallest value that at least this share does not exceed."""
    v = sorted(values)
    return v[max(0, math.ceil(len(v) * share) - 1)]


def signed(v):
    return f"{100 * v:+.1f}"


def cell_table(rows):
    out = ["| model | `--ram` | threads | decode tok/s | error % | cold % | spread % | prompt tok/s | error % | cold % "
           "| spread % | moved % |", "|---|---|--:|" + "--:|" * 9]
    for r in rows:
        line = [r["of"][0], r["of"][1], str(r["of"][2])]
        for k in ("decode_tok_per_s", "prompt_tok_per_s"):
            q = r["quantities"][k]
            line += [f"{q['measured']:.1f}", signed(q["error"]), signed(q["cold_error"]) if "cold_error" in q else "-",
                     f"{100 * q['spread']:.1f}"]
        out.append("| " + " | ".join(line + [f"{100 * r['moved']:.1f}" if "moved" in r else "-"]) + " |")
    return out


def summary_row(what, grade, errors, spreads):
    size = [abs(e) for e in errors]
    return (f"| {what} | {grade} | {len(size)} | {100 * statistics.mean(size):.1f} | {signed(statistics.mean(errors))} | "
            f"{100 * percentile(size, 0.5):.1f} | {100 * percentile(size, 0.95):.1f} | {signed(max(errors, key=abs))} | "
            f"{100 * statistics.median(spreads):.1f} |")


def summary_table(rows):
    out = ["| quantity | grade | cells | mean of absolute errors % | mean error % | p50 % | p95 % | worst % | median spread % |",
           "|---|---|" + "--:|" * 7]
    for grade, _, error in GRADES:
        all_errors, all_spreads = [], []
        for key, title in SHOWN:
            cells = [r["quantities"][key] for r in rows if error in r["quantities"].get(key, {})]
            if not cells:
                continue
            errors, spreads = [c[error] for c in cells], [c["spread"] for c in cells]
            out.append(summary_row(title + (" (points)" if key in SHARES else ""), grade, errors, spreads))
            if key in ("prompt_tok_per_s", "decode_tok_per_s"):
                all_errors += errors
                all_spreads += spreads
        if all_errors:
            out.append(summary_row("**decode and prompt**", grade, all_errors, all_spreads))
    return out


def order(rows, key, guess):
    """Pairs that differ by more than their spread, and those of them that the forecasts order rightly."""
    pairs = right = 0
    for a, b in itertools.combinations([r["quantities"][key] for r in rows if guess in r["quantities"][key]], 2):
        x, y = a["measured"], b["measured"]
        if abs(x - y) <= max(a["spread"] * x, b["spread"] * y):
            continue
        pairs += 1
        right += (a[guess] - b[guess]) * (x - y) > 0
    return pairs, right


def order_table(rows):
    out = ["| order of | grade | pairs that differ | in order |", "|---|---|--:|--:|"]
    for key, title in SHOWN[:2]:
        for grade, guess, _ in GRADES:
            for scope, groups in (("one model's budgets and threads", [[r for r in rows if r["of"][0] == m] for m in MODELS]),
                                  ("all runs", [rows])):
                counts = [order(g, key, guess) for g in groups]
                pairs, right = sum(c[0] for c in counts), sum(c[1] for c in counts)
                if pairs:
                    out.append(f"| {title}, {scope} | {grade} | {pairs} | {100 * right / pairs:.1f} % |")
    return out


def latest(rows):
    """The last line of each cell, in the matrix's order."""
    by = {r["cell"]: r for r in rows}
    return [by[n] for n in (cell_name(*c) for c in itertools.product(MODELS, BUDGETS, THREADS)) if n in by]


def tables(a):
    rows = latest(r for r in read_lines(a.log) if "of" in r and re.search(a.only, r["cell"]))
    sweeps = [r for r in read_lines(a.sweep_log) if "chosen" in r] if a.sweep_log else []
    text = []
    if rows:
        first = rows[0]
        moved = [r for r in rows if r.get("moved", 0) > MOST_MOVED]
        text += [f"{first['date'][:10]}, {first['cpu']}, {len(rows)} runs: prompts of {first['n_prompt']}, {first['n_gen']} drawn, "
                 f"medians of {first['repeats']}. {sum(r['attempt'] > 1 for r in rows)} were repeated, because the machine's "
                 f"rates had moved by more than {100 * MOST_MOVED:.0f} % of the forecast; in {len(moved)} they did so again.", ""]
        text += summary_table(rows) + [""] + order_table(rows) + [""] + cell_table(rows)
    if sweeps:
        text += ["", "| cell | chosen | s | best of the sweep | s | chosen / best |", "|---|---|--:|---|--:|--:|"]
        text += [f"| {r['cell']} | {r['chosen']['what']} | {r['chosen']['s']:.3f} | {r['best']['what']} | {r['best']['s']:.3f} | "
                 f"{r['ratio']:.3f} |" for r in sweeps]
    text = "\n".join(text)
    if not a.write:
        return print(text)
    with open(a.write) as f:
        doc = f.read()
    before, rest = doc.split(MARKS[0])
    with open(a.write, "w") as f:
        f.write(before + MARKS[0] + "\n" + text + "\n" + MARKS[1] + rest.split(MARKS[1])[1])


# ---- the planner's choice beside a sweep ----

def hand_plans(streamed):
    """50 sets of flags."""
    if not streamed:
        rows = [16, 24, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 256, 288, 320, 352, 384, 416, 448, 480,
                512, 640]
        return [["-t", str(t), "-b", str(b)] for t in THREADS for b in rows]
    reads = [("16", "512K"), ("64", "512K"), ("32", "1M")]
    plans = [["-t", str(t), "-b", str(b), "--lookahead", look, "--read-depth", d, "--read-size", s]
             for t in THREADS for b in (64, 128, 256, 512) for look in ("auto", "off") for d, s in reads]
    return plans + [["-t", "2", "-b", "32"], ["-t", "2", "-b", "512", "--read-depth", "8", "--read-size", "256K"]]


def timed(a, path, budget, flags, prompt, env):
    """Seconds of prompt and generation together."""
    r, why = sluice(a, ["run", "-f", prompt, "-n", str(a.sweep_n), "--ignore-eos", "-s", "1", "--json"]
                    + model_flags(path, budget) + flags, env)
    if not r:
        print(f"{' '.join(flags)}: {why}", file=sys.stderr)
        return None
    return r["n_prompt"] / r["prompt_tok_per_s"] + (r["n_generated"] - 1) / r["decode_tok_per_s"]


def sweep(a):
    done = {r["cell"] for r in read_lines(a.log) if "ratio" in r}
    folder = os.path.dirname(os.path.abspath(a.log))
    prompt, env = os.path.join(folder, "sweep-prompt.txt"), {"XDG_CACHE_HOME": os.path.join(folder, "sweep-cache")}
    with open(os.path.join(os.path.dirname(__file__), "data/tinyshakespeare-heldout.txt")) as f:
        words = f.read().split()[:a.sweep_p]
    with open(prompt, "w") as f:
        f.write(" ".join(words))
    for model, budget in SWEEP:
        name = f"{model}, {budget}"
        if name in done or not re.search(a.only, name):
            continue
        path = model_path(a, model)
        if not os.path.exists(os.path.join(env["XDG_CACHE_HOME"], "sluice/machine.json")):
            sluice(a, ["probe", "-m", path, "--json"], env)
        seconds = {}
        for flags in [[]] + hand_plans(BUDGETS[budget] is not None)[::a.stride]:
            s = timed(a, path, budget, flags, prompt, env)
            if s:
                seconds[" ".join(flags)] = [s]
        if "" not in seconds:
            continue
        best = sorted((k for k in seconds if k), key=lambda k: seconds[k])[:4]
        for _ in range(5):                  # in turn: the best of 50 is also the luckiest
            for k in [""] + best:
                s = timed(a, path, budget, k.split(), prompt, env)
                if s:
                    seconds[k].append(s)
        again = {k: statistics.median(seconds[k][1:]) for k in [""] + best if len(seconds[k]) > 1}
        winner = min(best, key=lambda k: again[k])
        row = {"cell": name, "chosen": {"what": "as it is", "s": again[""]}, "best": {"what": winner, "s": again[winner]},
               "ratio": again[""] / again[winner], "all": seconds, "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        append(a.log, row)
        print(f"{name}: chosen {again['']:.3f} s, best {again[winner]:.3f} s ({winner}), ratio {row['ratio']:.3f}",
              file=sys.stderr, flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--log", default="prediction.jsonl", help="what was measured, a line each (default: prediction.jsonl)")
    p.add_argument("--sluice", default="build/tools/sluice", help="the program (default: build/tools/sluice)")
    p.add_argument("--models", default="models", help="folder of the models (default: models)")
    p.add_argument("--only", default="", help="regular expression that a cell's or model's name must match")
    p.add_argument("-p", type=int, default=512)
    p.add_argument("-n", type=int, default=64)
    p.add_argument("-r", type=int, default=3)
    p.add_argument("--batch", type=int, default=0, help="requests of a batch, verify's --batch (default: none)")
    p.add_argument("--again", action="store_true", help="run those again whose last run ended with other rates than it began")
    p.add_argument("--synth", action="store_true", help="make the models that are missing")
    p.add_argument("--table", action="store_true")
    p.add_argument("--write", help="with --table: the Markdown file whose tables are replaced")
    p.add_argument("--sweep", action="store_true")
    p.add_argument("--sweep-log", help="with --table: the log of --sweep, shown too")
    p.add_argument("--sweep-p", type=int, default=160, help="words of the sweep's prompt")
    p.add_argument("--sweep-n", type=int, default=24, help="tokens it draws")
    p.add_argument("--stride", type=int, default=1, help="only each such plan of the sweep, for a trial")
    p.add_argument("--lock", help="a file to lock before each run")
    a = p.parse_args()
    if a.synth:
        synth(a)
    elif a.table:
        tables(a)
    elif a.sweep:
        sweep(a)
    else:
        matrix(a)


if __name__ == "__main__":
    main()
