#!/usr/bin/env python3
"""tests/t_probe_cli.py - `sluice probe` and `sluice synth` as a user meets them: where the result is kept,
when it is stale, what is refused and with which exit code."""
import json
import os
import subprocess
import tempfile

SLUICE = os.path.join(os.environ['SLUICE_BUILD_DIR'], 'tools/sluice')
failed = []


def check(ok, what):
    print(('ok   ' if ok else 'FAIL ') + what)
    if not ok:
        failed.append(what)


def sluice(*args, env=None):
    e = {k: v for k, v in os.environ.items() if k not in ('HOME', 'XDG_CACHE_HOME')}
    return subprocess.run([SLUICE, *args], env={**e, **(env or {})}, capture_output=True, text=True, timeout=120)


def refused(what, r, code, *words):
    check(r.returncode == code and r.stdout == '' and all(w in r.stderr for w in words)
          and (code == 2 or r.stderr.count('\n') == 1), f'{what}: {r.returncode} {r.stderr.strip()[:200]}')


def check_probe(tmp):
    cache = {'XDG_CACHE_HOME': tmp + '/cache'}
    kept = tmp + '/cache/sluice/machine.json'
    refused('no home', sluice('probe', '--quick'), 1, 'HOME')
    refused('nothing kept yet', sluice('probe', '--show', env=cache), 1, kept)
    r = sluice('probe', '--quick', env=cache)
    check(r.returncode == 0 and 'DRAM read GB/s' in r.stdout and kept in r.stderr, 'quick probe: ' + r.stderr)
    m = json.load(open(kept))
    check(m['source'] == 'quick' and m['dram_read'][0]['threads'] == 1, 'the file holds what was measured')
    check(os.listdir(tmp + '/cache/sluice') == ['machine.json'], 'no test file is left behind')
    if 'disk' in m:
        check('in flight' in r.stdout and m['disk']['latency_s'] > 0 and len(m['disk']['reads']) == 3, 'the disk')
    else:
        check('the disk is not measured' in r.stderr, 'why the disk is not measured: ' + r.stderr)
    r = sluice('probe', '--show', '--json', env=cache)
    check(r.returncode == 0 and json.loads(r.stdout) == m and 'fits' in r.stderr, 'show it again: ' + r.stderr)
    check(sluice('probe', '--show', env={'HOME': tmp}).returncode == 1, 'HOME is another place')

    m['hardware']['cpu'] = 'Another CPU'
    json.dump(m, open(kept, 'w'))
    r = sluice('probe', '--show', env=cache)
    check(r.returncode == 0 and 'stale' in r.stderr and 'Another CPU' in r.stderr, 'stale: ' + r.stderr)
    m['dram_read'][0]['bytes_s'] = -1
    json.dump(m, open(kept, 'w'))
    refused('a bad field', sluice('probe', '--show', env=cache), 1, 'dram_read[0].bytes_s', 'found -1')
    open(kept, 'w').write('{"sluice_machine": 1,')
    refused('a damaged file', sluice('probe', '--show', env=cache), 1, 'line 1')
    refused('a folder that cannot be', sluice('probe', '--quick', '-o', '/proc/x/machine.json'), 1, '/proc/x')
    refused('no threads', sluice('probe', '-t', '0'), 2, '--threads')
    for types, word in (('Q4_K,Q9_X', 'Q9_X'), ('', '""'), ('Q4_K,', '""'), ('F64', 'F64'), ('Q4_K,' * 24 + 'Q4_K', '24')):
        refused('bad types', sluice('probe', '--types', types, '-o', tmp + '/m.json'), 1, '--types', word)
    refused('types with nothing to measure', sluice('probe', '--show', '--types', 'Q4_K'), 2, '--types')
    r = sluice('probe', '--types', 'q6_k,F32', '-t', '1', '-m', SLUICE, '-o', tmp + '/m.json')
    check(r.returncode in (0, 1) and (r.returncode == 1 or 'Q6_K' in r.stdout and 'Q4_K' not in r.stdout),
          'chosen types: ' + r.stderr)
    os.path.exists(tmp + '/m.json') and os.remove(tmp + '/m.json')
    refused('a model that is too small', sluice('probe', '--quick', '-m', 'meson.build', '-o', tmp + '/m.json'), 1,
            'meson.build', '4 MiB')
    refused('too many threads', sluice('probe', '--quick', '-t', '4096', '-o', tmp + '/m.json'), 1, '4096')


def check_synth(tmp):
    out = tmp + '/m.gguf'
    refused('no preset', sluice('synth', '-o', out), 2, '--like')
    refused('no file', sluice('synth', '--like', 'kimi-k2'), 2, '-o FILE')
    refused('unknown preset', sluice('synth', '--like', 'gpt-5', '-o', out), 1, 'gpt-5', 'mixtral-8x7b')
    refused('unknown type', sluice('synth', '--like', 'kimi-k2', '-q', 'Q3_X', '-o', out), 1, 'Q3_X', 'Q4_K_M')
    refused('too many layers', sluice('synth', '--like', 'olmoe-1b-7b', '--layers', '17', '-o', out), 1, '16 layers')
    refused('a folder that is not there', sluice('synth', '--like', 'olmoe-1b-7b', '--layers', '1', '-o',
            tmp + '/no/m.gguf'), 1, tmp + '/no/m.gguf')
    disk = os.statvfs(tmp)
    if disk.f_bavail * disk.f_frsize < 4e12:
        refused('a full disk', sluice('synth', '--like', 'kimi-k2', '-q', 'f32', '-o', out), 1, 'free')
    check(os.listdir(tmp + '/') in (['cache'], []), 'nothing is left behind')
    r = sluice('synth', '--list')
    check(r.returncode == 0 and len(r.stdout.splitlines()) > 12, 'the list')
    r = sluice('synth', '--like', 'granite-3-1b-a400m', '--layers', '1', '-q', 'Q4_0', '-o', out)
    check(r.returncode == 0 and os.path.getsize(out) > 3e7, 'a model: ' + r.stderr)
    r = sluice('run', '-m', out, '-p', 'hello', '-n', '4', '--ignore-eos', '--temp', '0')
    check(r.returncode == 0 and r.stdout.startswith('hello'), 'it runs: ' + r.stdout)


with tempfile.TemporaryDirectory() as folder:
    check_probe(folder)
    check_synth(folder)
print(f'{len(failed)} failed')
raise SystemExit(1 if failed else 0)
