#!/usr/bin/env python3
"""tests/t_verify_cli.py - `sluice verify` as a user meets it: what is predicted is written down before the runs, the
result behind it; errors and spreads are those of the numbers beside them; what is refused."""
import json
import os
import re
import subprocess
import tempfile

ROOT = os.environ.get('SLUICE_SOURCE_DIR', '.')
SLUICE = os.path.join(os.environ['SLUICE_BUILD_DIR'], 'tools/sluice')
TEXT = os.path.join(ROOT, 'tests/data/tinyshakespeare-heldout.txt')
failed = []


def check(ok, what):
    print(('ok   ' if ok else 'FAIL ') + what)
    if not ok:
        failed.append(what)


def sluice(*args, env=None):
    e = {k: v for k, v in os.environ.items() if k not in ('HOME', 'XDG_CACHE_HOME', 'XDG_DATA_HOME')}
    return subprocess.run([SLUICE, *args], env={**e, **(env or {})}, capture_output=True, text=True, timeout=120)


def refused(what, r, code, *words):
    check(r.returncode == code and r.stdout == '' and all(w in r.stderr for w in words), f'{what}: {r.returncode} '
          + r.stderr.strip()[:200])


def lines(path):
    with open(path) as f:
        return [json.loads(line) for line in f]


def near(a, b):
    return abs(a - b) <= 1e-6 * max(abs(a), abs(b), 1e-2)      # nine digits are written


def check_quantities(q, calibrated, n_runs):
    """Every error and spread follows from what stands beside it."""
    for name, c in q.items():
        runs, share = sorted(c['runs']), name in ('hit_rate', 'stall_share')
        middle = runs[len(runs) // 2] if len(runs) % 2 else (runs[len(runs) // 2 - 1] + runs[len(runs) // 2]) / 2
        ok = len(runs) == n_runs and near(c['measured'], middle) and ('cold' in c) == calibrated

        def error(predicted):
            return predicted - middle if share else predicted / middle - 1 if middle else float(predicted > 0)
        ok &= near(c['error'], error(c['predicted'])) and (not calibrated or near(c['cold_error'], error(c['cold'])))
        ok &= near(c['spread'], (runs[-1] - runs[0]) / (1 if share else middle or 1))
        check(ok, f'{name}: {c}')


def check_run(tmp, machine):
    log, quick = tmp + '/log/v.jsonl', ('-p', '40', '-n', '8', '-r', '2', '-t', '1', '--machine', machine)
    r = sluice('verify', *quick, '--log', log, '--json')
    check(r.returncode == 0, 'it runs: ' + r.stderr)
    out, kept = json.loads(r.stdout), lines(log)
    check([v['kind'] for v in kept] == ['prediction', 'verified'], 'two lines')
    first, last = kept
    check(last == out, 'stdout has the last line of the log')
    check(first['id'] == last['id'] and first['predicted_at'] == last['predicted_at'] <= last['date'] and 'date' not in first,
          'the prediction has its own time')
    check(all(set(c) == {'predicted', 'cold'} and c['predicted'] == last['quantities'][n]['predicted']
              for n, c in first['quantities'].items()), 'and nothing measured')
    check(last['grade'] == last['probe'] == 'quick', 'a machine measured quickly: ' + last['grade'])
    check({'prompt_tok_per_s', 'ttft_s', 'decode_tok_per_s', 'batch_tok_per_s', 'peak_rss_bytes'} <= set(last['quantities']),
          'quantities: ' + ' '.join(last['quantities']))
    check('hit_rate' not in last['quantities'], 'no hit rate where nothing is streamed')
    check('moved' not in last, 'a machine file is not measured again')
    for key, value in (('n_prompt', 40), ('n_gen', 8), ('repeats', 2), ('threads', 1), ('quant', 'Q8_0'),
                       ('model', 'Sluice Bard MoE'), ('sluice_validation', 1), ('attempt', 1), ('n_batch', 8)):
        check(last[key] == value, f'{key}: {last[key]}')
    check_quantities(last['quantities'], True, 2)

    streams = 'SLUICE_SANITIZED' not in os.environ     # a sanitizer's own memory outweighs the model
    if streams:
        trace = tmp + '/t.jsonl'
        floor = int(re.search(r'floor of (\d+) MiB', sluice('run', '--ram', '1M', '-c', '512').stderr)[1])
        budget = floor + 4          # for some of the 4.8 MiB of experts
        ram = ('--ram', f'{budget}M', '--policy', 'lru')
        r = sluice('verify', *quick, *ram, '--log', log, '--json', '-f', TEXT, '--trace-routing', trace)
        check(r.returncode == 0, 'a streamed run of a text: ' + r.stderr)
        streamed = json.loads(r.stdout)
        check({'hit_rate', 'disk_bytes_per_token', 'stall_share'} <= set(streamed['quantities']), 'what streams have')
        check(streamed['budget_bytes'] == budget << 20, 'the budget')
        check_quantities(streamed['quantities'], True, 2)
        hits = streamed['quantities']['hit_rate']
        check(hits['spread'] < 0.05 and 0 <= hits['measured'] < 1, 'much the same hits in every run: ' + str(hits))
        r = sluice('verify', *quick, *ram, '--log', log, '--json', '-f', TEXT, '--trace', trace)
        again = json.loads(r.stdout)['quantities']['hit_rate']
        # the process's own share of the budget, and so the slots, differ a little from start to start
        check(abs(again['predicted'] - again['measured']) < 0.1, f'the kept trace forecasts the hits: {again}')
    r = sluice('verify', *quick, '--log', log, '--cold')
    check(r.returncode == 0 and 'decode tok/s' in r.stdout and 'predicted (quick) at' in r.stdout
          and 'batch of 8 prompts of 10, 2 drawn each' in r.stdout, 'a table: ' + r.stdout)
    check('calibrated' not in r.stdout and 'another prompt' not in r.stderr, 'cold: nothing is run before')
    check(len(lines(log)) == (8 if streams else 4), 'each run adds two lines')

    r = sluice('verify', *quick, '--log', tmp + '/device.jsonl', '--json', '--device', 'emu:mem=20M,h2d=1G,cores=1')
    check(r.returncode == 0, 'with an emulated device: ' + r.stderr)
    device = json.loads(r.stdout)
    check(device['device'].startswith('emu:') and 'device' in device['mode'] and 'device' not in last, 'which: ' + device['mode'])
    check(set(device['quantities']) == {'prompt_tok_per_s', 'ttft_s', 'decode_tok_per_s', 'batch_tok_per_s'}, 'its memory is not in the plan')
    check_quantities(device['quantities'], True, 2)

    for model in ('olmoe', 'qwen3'):    # without text; without experts too
        r = sluice('verify', *quick, '--log', log, '--json', '-m', os.path.join(ROOT, f'tests/golden/arch/{model}.gguf'))
        check(r.returncode == 0 and ('cold' in json.loads(r.stdout)['quantities']['ttft_s']) == (model == 'olmoe'),
              f'{model}: {r.stderr}')

    data = {'XDG_DATA_HOME': tmp + '/data'}
    r = sluice('verify', '-n', '2', '-p', '8', '-r', '1', '--machine', machine, '--cold', '--batch', '0', env=data)
    check('batch' not in r.stdout, 'without a batch: ' + r.stdout)
    check(r.returncode == 0 and len(lines(tmp + '/data/sluice/validation.jsonl')) == 2, 'the usual log: ' + r.stderr)


def check_refusals(tmp, machine):
    quick = ('--machine', machine, '--log', tmp + '/no.jsonl')
    refused('one token', sluice('verify', '-n', '1'), 2, '--n-gen')
    refused('no runs', sluice('verify', '-r', '0'), 2, '--repetitions')
    refused('two ways', sluice('verify', '--cold', '--trace', 'x'), 2, '--cold')
    refused('a text on the line', sluice('verify', 'x'), 2, 'usage')
    refused('no machine', sluice('verify', '--machine', '/no/m.json', '--log', tmp + '/no.jsonl'), 1, '/no/m.json')
    refused('no model', sluice('verify', *quick, '-m', '/no/m.gguf'), 1, '/no/m.gguf')
    refused('no trace', sluice('verify', *quick, '--trace', '/no/t.jsonl'), 1, '/no/t.jsonl')
    refused('a short text', sluice('verify', *quick, '-f', os.path.join(ROOT, 'meson_options.txt'), '-p', '400', '-n', '2'), 1,
            'two prompts')
    refused('a small context', sluice('verify', *quick, '-c', '32'), 1, '-c 32')
    refused('no log', sluice('verify', '--machine', machine, '--log', '/proc/x/v.jsonl', '--cold'), 1, '/proc/x')
    refused('no home', sluice('verify', '--machine', machine), 1, '--log')
    refused('a budget below the floor', sluice('verify', *quick, '--ram', '1M'), 1, 'floor')
    other = tmp + '/other.jsonl'
    with open(other, 'w') as f:
        f.write('{"trace": "sluice-routing", "version": 1, "model": "x", "layers": 2, "experts": 8, "used": 2}\n'
                '{"pass": 0, "sequence": 1, "layer": 0, "position": 0, "experts": [1, 2]}\n')
    refused('another trace', sluice('verify', *quick, '--trace', other), 1, 'layers')
    check(not os.path.exists(tmp + '/no.jsonl'), 'what is refused is not written down')


with tempfile.TemporaryDirectory() as folder:
    described = folder + '/machine.json'
    kept = subprocess.run([SLUICE, 'probe', '--quick', '-t', '1', '-o', described], capture_output=True, text=True)
    check(kept.returncode == 0, 'a machine to forecast by: ' + kept.stderr)
    check_run(folder, described)
    check_refusals(folder, described)
print(f'{len(failed)} failed')
raise SystemExit(1 if failed else 0)
