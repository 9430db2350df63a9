#!/usr/bin/env python3
"""Speed and memory of `sluice bench --ram` over budgets, each run alone in a memory cgroup.

    sudo tests/measure_budgets.py -m MODEL.gguf --budgets 1G,2G,3G -t 2
    sudo tests/measure_budgets.py -m MODEL.gguf --sweep 1G:4G:10 --tests decode --svg budgets.svg
    sudo tests/measure_budgets.py ... --peer 'path/to/llama-bench -w 0'

For every budget and test, `--repeats` times: a memory cgroup (v1 under /sys/fs/cgroup/memory, or v2) with a limit
of the budget and --margin (512M), the page cache dropped, `sluice bench -o json -r 1 --ram BUDGET` inside; then the
group's high-water mark (memory.max_usage_in_bytes, or memory.peak) and how often its limit was hit
(memory.failcnt; v2: `max` of memory.events) are read. The mark holds everything charged to the group: the process, its
page cache (the program's own pages too), page tables. Tables on stdout are medians; the high-water mark is the
largest of the repeats, failcnt their sum. A mark above the budget, or a failcnt above 0, ends with exit code 1.

Decode is behind --warmup tokens (tg), prefill begins with empty slots (pp): `sluice bench -h` says what `bound` is.

--peer runs a llama-bench (llama.cpp's or a fork's; options may stand behind the path) in a group with the same limit
and a cold page cache, once a cell, with --peer-n tokens and for at most --timeout seconds: models larger
than memory thrash there. Its memory is the limit's business, so only tok/s are shown.

Not part of tools/check: needs root, minutes, and a machine with nothing else to do. --lock FILE waits for an exclusive
lock before each run, for machines that several jobs measure on. Python 3 standard library only."""
import argparse
import csv
import fcntl
import json
import os
import shlex
import statistics
import subprocess
import sys
import time

V1 = "/sys/fs/cgroup/memory"
V2 = "/sys/fs/cgroup"
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def size(text):
    """'1.5G' in bytes."""
    unit = UNITS.get(text[-1:].upper())
    return int(float(text[:-1]) * unit) if unit else int(text)


def gib(n):
    return f"{n / (1 << 30):.3g}"


class Group:
    """A memory cgroup for one run."""

    def __init__(self, limit):
        self.v1 = os.path.exists(os.path.join(V1, "memory.limit_in_bytes"))
        name = f"sluice-budget-{os.getpid()}"
        if self.v1:
            self.dir = os.path.join(V1, name)
        else:
            with open(os.path.join(V2, "cgroup.subtree_control"), "w") as f:
                f.write("+memory")
            self.dir = os.path.join(V2, name)
        os.mkdir(self.dir)
        self.write("memory.limit_in_bytes" if self.v1 else "memory.max", limit)
        if not self.v1 and os.path.exists(os.path.join(self.dir, "memory.swap.max")):
            self.write("memory.swap.max", 0)

    def write(self, name, value):
        with open(os.path.join(self.dir, name), "w") as f:
            f.write(str(value))

    def read(self, name):
        with open(os.path.join(self.dir, name)) as f:
            return f.read()

    def enter(self):
        self.write("cgroup.procs", 0)

    def peak(self):
        return int(self.read("memory.max_usage_in_bytes" if self.v1 else "memory.peak"))

    def failures(self):
        if self.v1:
            return int(self.read("memory.failcnt"))
        return int(dict(line.split() for line in self.read("memory.events").splitlines())["max"])

    def remove(self):
        for _ in range(50):
            try:
                os.rmdir(self.dir)
                return
            except OSError:             # its last process is still going away
                time.sleep(0.1)


def drop_page_cache():
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as f:
        f.write("3")


def run(cmd, limit, timeout, lock):
    """JSON that cmd prints (None: why is the last line of stderr), with the group's peak and failures."""
    with open(lock or os.devnull) as held:
        if lock:
            fcntl.flock(held, fcntl.LOCK_EX)
        group = Group(limit)
        try:
            drop_page_cache()
            p = subprocess.Popen(cmd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=group.enter)
            try:
                out, err = p.communicate(timeout=timeout)
                why = err.decode(errors="replace").strip().splitlines()[-1:] or [f"exit code {p.returncode}"]
            except subprocess.TimeoutExpired:
                p.kill()
                out, why = p.communicate()[0], [f"not done after {timeout} s"]
            try:
                result = json.loads(out) if p.returncode == 0 else None
            except ValueError:
                result = None
            return result, why[0], group.peak(), group.failures()
        finally:
            group.remove()


def median(rows, key):
    values = [r[key] for r in rows if key in r]
    return statistics.median(values) if values else None


def in_ram(a, test):
    """tok/s with all weights in RAM, outside any group."""
    what = ["-p", "0", "-n", str(a.n)] if test == "decode" else ["-p", str(a.p), "-n", "0"]
    cmd = [a.sluice, "bench", "-m", a.model, "-t", str(a.threads), "-r", "3", "-o", "json"] + what
    with open(a.lock or os.devnull) as held:
        if a.lock:
            fcntl.flock(held, fcntl.LOCK_EX)
        return median(json.loads(subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout),
                      "tok_per_s")


def bench(a, test, budget):
    """One row of the table."""
    what = ["-p", "0", "-n", str(a.n)] if test == "decode" else ["-p", str(a.p), "-n", "0"]
    cmd = [a.sluice, "bench", "-m", a.model, "-t", str(a.threads), "-r", "1", "-o", "json", "--ram", str(budget),
           "--warmup", str(a.warmup)] + what + (["--machine", a.machine] if a.machine else [])
    rows, peaks, failures, why, resident = [], [], 0, "", None
    if a.in_ram:
        resident = in_ram(a, test)
        cmd += ["--in-ram-tg" if test == "decode" else "--in-ram-pp", str(resident)]
    for _ in range(a.repeats):
        result, text, peak, fails = run(cmd, budget + a.margin, a.timeout, a.lock)
        peaks.append(peak)
        failures += fails
        if result:
            rows += result
        else:
            why = text
    row = {"budget": budget, "test": test, "peak": max(peaks), "failcnt": failures, "error": why, "runs": len(rows),
           "in_ram_tok_per_s": resident}
    for key in ("tok_per_s", "bound_tok_per_s", "share", "hit_rate", "disk_bytes_per_s", "probed_disk_bytes_per_s",
                "probed_dram_bytes_per_s", "disk_bytes_per_token", "stall_share", "ttft_s"):
        row[key] = median(rows, key)
    row["spread"] = [r["tok_per_s"] for r in rows]
    return row


def bench_peer(a, test, budget):
    what = ["-p", "0", "-n", str(a.peer_n)] if test == "decode" else ["-p", str(a.p), "-n", "0"]
    cmd = shlex.split(a.peer) + ["-m", a.model, "-t", str(a.threads), "-r", "1", "-o", "json"] + what
    result, why, _, _ = run(cmd, budget + a.margin, a.timeout, a.lock)
    return (result[0]["avg_ts"], "") if result else (None, why)


def number(value, form, scale=1.0):
    return "-" if value is None else form.format(value * scale)


HEAD = ["budget GiB", "test", "tok/s", "in RAM", "bound", "share", "hits", "disk GB/s", "of", "MB a token", "waits", "TTFT s",
        "peak GiB", "peak/budget", "failcnt", "peer tok/s", "times"]


def cells(r):
    return [gib(r["budget"]), r["test"], number(r["tok_per_s"], "{:.2f}"), number(r["in_ram_tok_per_s"], "{:.2f}"),
            number(r["bound_tok_per_s"], "{:.2f}"),
            number(r["share"], "{:.1f} %", 100), number(r["hit_rate"], "{:.1f} %", 100),
            number(r["disk_bytes_per_s"], "{:.2f}", 1e-9), number(r["probed_disk_bytes_per_s"], "{:.2f}", 1e-9),
            number(r["disk_bytes_per_token"], "{:.1f}", 1e-6), number(r["stall_share"], "{:.0f} %", 100),
            number(r["ttft_s"], "{:.2f}"), f"{r['peak'] / (1 << 30):.3f}", f"{100 * r['peak'] / r['budget']:.1f} %",
            str(r["failcnt"]), number(r.get("peer"), "{:.2f}"),
            "-" if not r.get("peer") or not r["tok_per_s"] else f"{r['tok_per_s'] / r['peer']:.1f}"]


def print_markdown(rows):
    print("| " + " | ".join(HEAD) + " |")
    print("|" + "|".join("---" if h == "test" else "---:" for h in HEAD) + "|")
    for r in rows:
        print("| " + " | ".join(cells(r)) + " |")
    for r in rows:
        for who, why in (("sluice", r["error"]), ("peer", r.get("peer_error"))):
            if why:
                print(f"\n{gib(r['budget'])} GiB, {r['test']}, {who}: {why}")


def nice_step(most):
    """A round step that makes four to ten marks."""
    step = 1e-3
    while most / step > 10:
        for factor in (2, 2.5, 2):
            if most / step > 10:
                step *= factor
    return step


def plot(rows, path, title):
    """Medians over budgets as lines in an SVG: sluice, its bound, the peer."""
    w, h, left, top, right, bottom = 760, 400, 64, 44, 20, 52
    lines = [("tok_per_s", "sluice, median of runs", "#1f5fbf", ""), ("bound_tok_per_s", "causal bound", "#b04a1e", "6 4"),
             ("peer", "peer", "#5b7a3a", "2 3")]
    xs = [r["budget"] / (1 << 30) for r in rows]
    most = 1.05 * max(r.get(k) or 0 for r in rows for k, *_ in lines)
    x_step, y_step = nice_step(max(xs)), nice_step(most)

    def x(v):
        return left + (w - left - right) * v / (1.03 * max(xs))

    def y(v):
        return h - bottom - (h - top - bottom) * v / most

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" viewBox="0 0 {w} {h}" '
           'font-family="sans-serif" font-size="13" fill="#222">',
           f'<rect width="{w}" height="{h}" fill="#fff"/>', f'<text x="{left}" y="20" font-size="15">{escape(title)}</text>']
    for i in range(int(1.03 * max(xs) / x_step) + 1):
        at = x(i * x_step)
        out.append(f'<text x="{at:.1f}" y="{h - bottom + 18}" text-anchor="middle">{i * x_step:g}</text>')
    for i in range(int(most / y_step) + 1):
        at = y(i * y_step)
        out.append(f'<path d="M{left} {at:.1f}H{w - right}" stroke="#ddd"/>')
        out.append(f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{i * y_step:g}</text>')
    out.append(f'<text x="{(left + w) / 2}" y="{h - 10}" text-anchor="middle">--ram, GiB</text>')
    out.append(f'<text transform="translate(18 {(top + h - bottom) / 2}) rotate(-90)" text-anchor="middle">tok/s</text>')
    legend = left + 12
    for key, name, colour, dash in lines:
        points = [(x(r["budget"] / (1 << 30)), y(r[key])) for r in rows if r.get(key)]
        if not points:
            continue
        path_d = "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in points)
        out.append(f'<path d="{path_d}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>')
        out += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.5" fill="{colour}"/>' for px, py in points]
        out.append(f'<path d="M{legend} 36h24" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>')
        out.append(f'<text x="{legend + 30}" y="40">{escape(name)}</text>')
        legend += 50 + 7 * len(name)
    for r in rows:      # every run, so that the spread is seen
        at = x(r["budget"] / (1 << 30))
        out += [f'<circle cx="{at:.1f}" cy="{y(v):.1f}" r="1.8" fill="none" stroke="#1f5fbf"/>' for v in r["spread"]]
    with open(path, "w") as f:
        f.write("\n".join(out) + "\n</svg>\n")


def escape(text):
    return text.replace("&", "&amp;").replace("<", "&lt;")


def budgets(a):
    if not a.sweep:
        return [size(b) for b in a.budgets.split(",")]
    lo, hi, n = a.sweep.split(":")
    lo, hi, n = size(lo), size(hi), int(n)
    return [(lo + (hi - lo) * i // max(n - 1, 1)) >> 20 << 20 for i in range(n)]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("-m", "--model", required=True)
    p.add_argument("--sluice", default="build/tools/sluice", help="the program (default: build/tools/sluice)")
    p.add_argument("--budgets", default="1G,2G,3G")
    p.add_argument("--sweep", help="LOW:HIGH:N budgets instead")
    p.add_argument("--tests", default="decode,prefill")
    p.add_argument("-t", "--threads", type=int, default=os.cpu_count())
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("-n", type=int, default=32, help="tokens decoded (default: 32)")
    p.add_argument("-p", type=int, default=512, help="tokens of the prompt (default: 512)")
    p.add_argument("--warmup", type=int, default=64)
    p.add_argument("--margin", type=size, default=512 << 20, help="of the group's limit above the budget (default: 512M)")
    p.add_argument("--machine", help="a machine file for sluice bench")
    p.add_argument("--in-ram", action="store_true", help="measure the model in RAM before each cell, without a group: "
                   "the bound computes at that speed")
    p.add_argument("--peer", help="a llama-bench, with options")
    p.add_argument("--peer-n", type=int, default=8)
    p.add_argument("--timeout", type=float, default=600, help="seconds of one run (default: 600)")
    p.add_argument("--lock", help="a file to lock before each run")
    p.add_argument("--csv", help="the table, with every run's tok/s, to a file")
    p.add_argument("--svg", help="decode (or the only test) over budgets, to a file")
    a = p.parse_args()
    if os.geteuid():
        sys.exit("measure_budgets: needs root, for cgroups and to drop the page cache")
    rows = []
    for test in a.tests.split(","):
        for b in budgets(a):
            rows.append(bench(a, test, b))
            if a.peer:
                rows[-1]["peer"], rows[-1]["peer_error"] = bench_peer(a, test, b)
            print("  ".join(cells(rows[-1])), file=sys.stderr, flush=True)
    print_markdown(rows)
    if a.csv:
        with open(a.csv, "w", newline="") as f:
            out = csv.writer(f)
            keys = [k for k in rows[0] if k not in ("spread", "peer_error")]
            out.writerow(keys + ["runs_tok_per_s"])
            for r in rows:
                out.writerow([r.get(k) for k in keys] + [" ".join(f"{v:.4g}" for v in r["spread"])])
    if a.svg:
        only = a.tests.split(",")[0]
        plot([r for r in rows if r["test"] == only and r["tok_per_s"]], a.svg, f"{os.path.basename(a.model)}, {only}, "
             f"{a.threads} threads")
    bad = [r for r in rows if r["peak"] > r["budget"] or r["failcnt"] or r["error"]]
    for r in bad:
        print(f"measure_budgets: {gib(r['budget'])} GiB, {r['test']}: peak {r['peak']} of {r['budget']}, failcnt {r['failcnt']}"
              f"{', ' + r['error'] if r['error'] else ''}", file=sys.stderr)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
