#!/usr/bin/env python3
"""tests/t_plan_cli.py - `sluice plan` as a user meets it: what it prints for every preset on every described
machine, within a second each; saved plans that `run` takes or refuses; bad input."""
import glob
import json
import os
import resource
import subprocess
import tempfile

ROOT = os.environ['SLUICE_SOURCE_DIR']
SLUICE = os.path.join(os.environ['SLUICE_BUILD_DIR'], 'tools/sluice')
SANITIZED = bool(os.environ.get('SLUICE_SANITIZED'))
SECONDS = 60 if SANITIZED else 1
failed = []
n_checks = 0


def check(ok, what):
    global n_checks
    n_checks += 1
    if not ok:
        print('FAIL ' + what)
        failed.append(what)


def sluice(*args, cache=None):
    env = {k: v for k, v in os.environ.items() if k not in ('HOME', 'XDG_CACHE_HOME')}
    if cache:
        env['XDG_CACHE_HOME'] = cache
    return subprocess.run([SLUICE, *args], env=env, capture_output=True, text=True, timeout=120)


def plan(*args, cache=None):
    r = sluice('plan', *args, '--json', cache=cache)
    check(r.returncode == 0, f'plan {args}: {r.stderr.strip()[:300]}')
    return json.loads(r.stdout) if r.returncode == 0 else None


def refused(what, r, code, *words):
    check(r.returncode == code and r.stdout == '' and all(w in r.stderr for w in words)
          and (code == 2 or r.stderr.count('\n') == 1), f'{what}: {r.returncode} {r.stderr.strip()[:300]}')


def cpu_s():
    """Of all children so far: other work on the machine does not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def check_requests():
    """A file of requests: tokens an hour for every preset, more of them in less time with more RAM."""
    for preset, ram in (('qwen3-30b-a3b', ('4G', '8G', '32G')), ('mixtral-8x7b', ('8G', '40G'))):
        before = 0
        for r in ram:
            start = cpu_s()
            p = plan('-m', preset, '--quant', 'Q4_K_M', '--machine', 'desktop-64gb', '--ram', r, '--requests', '10000', '-p',
                     '300', '-n', '64')
            seconds = cpu_s() - start
            f = p['forecast']
            what = f'{preset}, {r}: {f}'
            check(seconds < 10 * SECONDS, f'{what}: planned in {seconds:.1f} s')
            check(before < f['predicted_tok_per_s'] <= f['bound_tok_per_s'], what)
            check(abs(p['tok_per_hour'] / 3600 - f['predicted_tok_per_s']) < 1e-6 * p['tok_per_hour'], what)
            check(abs(f['predicted_s'] * f['predicted_tok_per_s'] / (10000 * 364) - 1) < 1e-6, what)
            check(p['placement']['need_bytes'] <= p['placement']['budget_bytes'], what)
            check(p['params']['threads'] >= 1 and p['sequences'] >= 1 and len(p['tried']) > 2 and ' batch ' in p['command'], what)
            check(min(t['seconds'] for t in p['tried']) <= 1.1 * f['predicted_s'], what)
            before = f['predicted_tok_per_s']
    r = sluice('plan', '-m', 'qwen3-30b-a3b', '--machine', 'desktop-64gb', '--requests', '500', '-np', '8', '-p', '100', '-n',
               '20')
    check(r.returncode == 0 and '500 requests of 100 tokens' in r.stdout and '  8 at once' in r.stdout
          and 'in an hour' in r.stdout, r.stdout + r.stderr)
    refused('nothing written', sluice('plan', '--requests', '5', '-n', '0'), 2, '--requests')
    refused('saved', sluice('plan', '--requests', '5', '-o', 'x'), 2, '--requests')
    refused('at once', sluice('plan', '-np', '5'), 2, '--requests')


def check_usage(tmp):
    refused('no preset', sluice('plan', '-m', 'gpt-7', '--machine', 'desktop-64gb'), 1, 'gpt-7')
    refused('no file', sluice('plan', '-m', tmp + '/x.gguf', '--machine', 'desktop-64gb'), 1, 'x.gguf')
    refused('no machine', sluice('plan', '-m', 'olmoe-1b-7b', '--machine', 'desktop-65gb'), 1, 'desktop-65gb')
    refused('bad quant', sluice('plan', '-m', 'olmoe-1b-7b', '--quant', 'Q9', '--machine', 'desktop-64gb'), 1, 'Q9')
    refused('no trace', sluice('plan', '-m', 'olmoe-1b-7b', '--machine', 'desktop-64gb', '--trace', tmp + '/t'), 1,
            tmp + '/t')
    refused('no prompt', sluice('plan', '-p', '0'), 2, '--n-prompt')
    refused('text of a prompt', sluice('plan', '-p', 'Once'), 2, '--n-prompt')
    refused('two forms', sluice('plan', '--json', '--llama-cpp'), 2, '--llama-cpp')
    refused('a plan for planning', sluice('plan', '--plan', 'x'), 2, '-o')
    refused('context too small', sluice('plan', '-m', 'olmoe-1b-7b', '--machine', 'desktop-64gb', '-c', '256'), 1,
            'raise it with -c')
    refused('below the floor', sluice('plan', '-m', 'deepseek-v3', '--machine', 'desktop-64gb', '--ram', '1G'), 1,
            'floor', '-ctk q8_0')
    refused('no folder', sluice('plan', '-m', 'olmoe-1b-7b', '--machine', 'desktop-64gb', '-o', tmp + '/no/p.json'),
            1, tmp + '/no/p.json')
    r = sluice('plan', '-m', 'olmoe-1b-7b', '--machine', 'desktop-64gb', '--isa', 'avx2')
    check(r.returncode == 0 and '--isa has no effect' in r.stderr, 'a flag without effect: ' + r.stderr)


def check_text():
    r = sluice('plan', '-m', 'qwen3-30b-a3b', '--machine', 'laptop-16gb', '--ram', '8G')
    for words in ('Qwen3 30B-A3B', '30.5 billion weights', '8.0 GiB', 'of 6144', 'tok/s', 'at most', 'datasheet',
                  '+4 GiB RAM', 'is limited by', 'sluice run -m MODEL.gguf --ram 8G'):
        check(words in r.stdout, f'"{words}" in the text: {r.stdout}{r.stderr}')
    check(max(map(len, r.stdout.splitlines())) <= 120, 'lines that fit a terminal')
    r = sluice('plan', '-m', 'qwen3-30b-a3b', '--machine', 'desktop-64gb-rtx4070', '--vram', '6G')
    for words in ('of the 128 of each layer', 'Any program: at most', '+4 GiB on the device', 'emulated devices only'):
        check(words in r.stdout, f'{words!r} is missing:\n{r.stdout}{r.stderr}')
    check(max(map(len, r.stdout.splitlines())) <= 120, 'lines that fit a terminal')
    r = sluice('plan', '-m', 'qwen3-30b-a3b', '--machine', 'desktop-64gb', '-n', '0')
    check(r.returncode == 0 and 'all 6144' in r.stdout and 'writing' not in r.stdout, 'a prompt only: ' + r.stdout)


def check_json():
    p = plan('-m', 'qwen3-30b-a3b', '--machine', 'laptop-16gb', '--ram', '8G', '-p', '1000', '-n', '50')
    f, b, place = p['forecast'], p['bound'], p['placement']
    check(p['sluice_plan'] == 1 and p['load'] == {'n_prompt': 1000, 'n_gen': 50}, 'version and load')
    check(f['grade'] == 'datasheet' and 0 < f['hit_rate'] < 1 and f['disk_bytes_per_token'] > 0, 'forecast')
    for k in ('prompt_tok_per_s', 'decode_tok_per_s'):
        check(0 < f[k] <= b[k] * 1.0001, f'{k}: {f[k]}, bound {b[k]}')
    check(f['ttft_s'] >= b['ttft_s'] * 0.9999 and f['decode']['binding'] in f['decode']['busy_s'], 'phases')
    check(place['need_bytes'] <= place['budget_bytes'] == 8 << 30 and place['weights'] == 'streamed'
          and 0 < place['experts_in_ram'] < place['experts'] == 6144, 'placement')
    check([g['what'] for g in p['gains']][0] == '+4 GiB RAM' and len(p['why']) > 2, 'gains and reasons')
    more = plan('-m', 'qwen3-30b-a3b', '--machine', 'laptop-16gb', '--ram', '12G', '-p', '1000', '-n', '50')
    check(more['forecast']['decode_tok_per_s'] > f['decode_tok_per_s'], 'more RAM is faster')
    gpu = plan('-m', 'gpt-oss-120b', '--machine', 'desktop-64gb-rtx4090')
    check(gpu['gpus'][0]['bound']['decode_tok_per_s'] > gpu['bound']['decode_tok_per_s'], 'a GPU bounds from above')
    check('RAM' in gpu['gpus'][0]['no_plan'], 'a GPU does not help what RAM cannot hold')
    gpu = plan('-m', 'gpt-oss-20b', '--machine', 'desktop-64gb-rtx4090', '--vram', '8G')
    shared = gpu['gpus'][0]['plan']
    check(7 << 30 < shared['placement']['need_bytes'] <= 8 << 30, '--vram holds')
    check(shared['forecast']['decode_tok_per_s'] <= shared['bound']['decode_tok_per_s'] * 1.0001
          and shared['forecast']['decode_tok_per_s'] > gpu['forecast']['decode_tok_per_s'],
          'a GPU helps')
    check(p['gpus'] == [], 'no GPU')
    q8 = plan('-m', 'qwen3-30b-a3b', '--quant', 'Q8_0', '--machine', 'laptop-16gb', '--ram', '8G')
    check(q8['model']['bytes'] > 1.6 * p['model']['bytes'] and q8['model']['quant'] == 'Q8_0', 'another quant')


def check_all():
    """Every preset on every described machine, a second for each plan at most (one without the machine's GPU, one with
    it): the slowest is named. Cores of a shared host are slower for moments: what takes longer gets two more tries."""
    names = [line.split()[0] for line in sluice('synth', '--list').stdout.splitlines()[1:] if line.strip()]
    machines = sorted(os.path.basename(m)[:-5] for m in glob.glob(ROOT + '/machines/*.json'))
    check(len(names) >= 22 and len(machines) >= 12, f'{len(names)} presets, {len(machines)} machines')
    slowest = (0, '')
    for i, name in enumerate(names):
        for k, machine in enumerate(machines):
            if (i + 3 * k) % (64 if SANITIZED else 16) and (SANITIZED or i):
                continue    # a sixteenth of the pairs, and one preset on all machines
            with open(f'{ROOT}/machines/{machine}.json', encoding='utf-8') as f:
                plans = 1 + len(json.load(f).get('gpus', []))
            took = float('inf')
            for _ in range(3):
                start = cpu_s()
                r = sluice('plan', '-m', name, '--machine', machine, '--json')
                took = min(took, (cpu_s() - start) / plans)
                if took < SECONDS:
                    break
            slowest = max(slowest, (took, f'{name} on {machine}'))
            fits = r.returncode == 0
            check(fits or 'floor' in r.stderr, f'{name} on {machine}: {r.stderr.strip()[:200]}')
            if fits:
                p = json.loads(r.stdout)
                f, b = p['forecast'], p['bound']
                check(p['placement']['need_bytes'] <= p['placement']['budget_bytes']
                      and 0 < f['decode_tok_per_s'] <= 1.001 * b['decode_tok_per_s']
                      and 0 < f['prompt_tok_per_s'] <= 1.001 * b['prompt_tok_per_s'], f'{name} on {machine}')
    print(f'slowest plan: {slowest[0]:.2f} s, {slowest[1]}')
    check(slowest[0] < SECONDS, f'{slowest[1]} took {slowest[0]:.2f} s')


def check_llama_cpp():
    def flags(*args):
        r = sluice('plan', '--llama-cpp', *args)
        check(r.returncode == 0 and r.stdout.startswith('llama-cli -m '), f'{args}: {r.stdout}{r.stderr}')
        return r.stdout.split()
    f = flags('-m', 'qwen3-30b-a3b', '--machine', 'desktop-64gb', '-c', '2048')
    check(f[f.index('-ngl') + 1] == '0' and f[f.index('-c') + 1] == '2048' and '--no-mmap' in f, f'CPU: {f}')
    f = flags('-m', 'qwen3-30b-a3b', '--machine', 'laptop-16gb')
    check('--no-mmap' not in f, f'larger than RAM: {f}')
    f = flags('-m', 'qwen3-30b-a3b', '--machine', 'desktop-64gb-rtx4090')
    check(f[f.index('-ngl') + 1] == '99' and '--n-cpu-moe' not in f, f'all on the GPU: {f}')
    f = flags('-m', 'gpt-oss-120b', '--machine', 'desktop-64gb-rtx4090')
    n = int(f[f.index('--n-cpu-moe') + 1])
    check(f[f.index('-ngl') + 1] == '99' and 15 < n < 30, f'experts on the CPU: {f}')
    f = flags('-m', 'deepseek-v3', '--machine', 'desktop-64gb', '--vram', '8G', '-ctk', 'q8_0')
    check('-ot' in f and 'q8_0' in f and '-fa' in f, f'some layers on the GPU: {f}')


def spoil(p, path, value):
    q = json.loads(json.dumps(p))
    at = q
    for k in path[:-1]:
        at = at[k]
    if value is None:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return q


def check_saved(tmp):
    """A plan for the bundled model goes to `run`, is named field by field where it is wrong, and is refused for
    another model and for other hardware."""
    cache = tmp + '/cache'
    path, bad = tmp + '/plan.json', tmp + '/bad.json'
    r = sluice('probe', '--quick', cache=cache)
    check(r.returncode == 0, 'probe: ' + r.stderr)
    r = sluice('plan', '-p', '8', '-n', '16', '-t', '1', '-b', '64', '-c', '128', '-o', path, cache=cache)
    check(r.returncode == 0 and '--plan' in r.stderr, 'save: ' + r.stderr)
    p = json.load(open(path))
    check(p['params']['threads'] == 1 and p['params']['max_rows'] == 64 and p['params']['n_ctx'] == 128, 'params')
    go = ('run', '-p', 'ROMEO:', '-n', '16', '--seed', '1', '--json', '--ignore-eos')
    r = sluice(*go, '--plan', path, cache=cache)
    check(r.returncode == 0 and '1 thread,' in r.stderr and 'context 128' in r.stderr, 'run the plan: ' + r.stderr)
    out = json.loads(r.stdout)
    check(out['forecast_grade'] == 'quick' and out['predicted_decode_tok_per_s'] > 0
          and out['predicted_prompt_tok_per_s'] > 0 and out['predicted_ttft_s'] > 0, f'predicted: {out}')
    check('forecast' in r.stderr and 'limited by' in r.stderr, 'banner and footer: ' + r.stderr)
    same = sluice(*go, cache=cache)
    check(json.loads(same.stdout)['text'] == out['text'], 'the same text without the plan')
    r = sluice(*go, '--plan', path, '-c', '200', cache=cache)
    check('context 200' in r.stderr, 'a flag goes before the plan: ' + r.stderr)
    r = sluice(*go)
    check(r.returncode == 0 and 'forecast' not in r.stderr, 'small, nothing measured: no forecast: ' + r.stderr)
    for field, value, words in (
            (('sluice_plan',), 2, 'sluice_plan'), (('params',), None, 'params'),
            (('params', 'threads'), 0, 'params.threads'), (('params', 'max_rows'), 'x', 'params.max_rows'),
            (('params', 'kv_type'), 'q4_0', 'params.kv_type'), (('params', 'policy'), 7, 'params.policy'),
            (('params', 'lookahead'), 1, 'params.lookahead'), (('params', 'n_ctx'), -1, 'params.n_ctx'),
            (('params', 'read_bytes'), 5000, 'params.read_bytes'), (('params', 'read_depth'), 1e9, 'params.read_depth'),
            (('params', 'ram_bytes'), -5, 'params.ram_bytes'), (('model', 'shape'), 'xyz', 'model.shape'),
            (('machine', 'cpu'), None, 'machine.cpu'), (('load', 'n_prompt'), 0, 'load.n_prompt'),
            (('forecast', 'grade'), 'good', 'forecast.grade'), (('forecast', 'ttft_s'), -1, 'forecast.ttft_s'),
            (('forecast', 'decode', 'binding'), 'luck', 'forecast.decode.binding')):
        json.dump(spoil(p, field, value), open(bad, 'w'))
        refused(f'{words} {value}', sluice(*go, '--plan', bad, cache=cache), 1, words, bad)
    open(bad, 'w').write('{"sluice_plan": 1,')
    refused('a damaged plan', sluice(*go, '--plan', bad, cache=cache), 1, 'line 1')
    refused('no plan', sluice(*go, '--plan', tmp + '/none', cache=cache), 1, tmp + '/none')
    json.dump(spoil(p, ('model', 'shape'), '0' * 16), open(bad, 'w'))
    refused('another model', sluice(*go, '--plan', bad, cache=cache), 1, 'another model', '0' * 16)
    json.dump(spoil(p, ('machine', 'cpu'), 'Another CPU'), open(bad, 'w'))
    refused('other hardware', sluice(*go, '--plan', bad, cache=cache), 1, 'Another CPU', '--force')
    r = sluice(*go, '--plan', bad, '--force', cache=cache)
    check(r.returncode == 0 and 'warning' in r.stderr and 'Another CPU' in r.stderr, 'forced: ' + r.stderr)


def check_device(tmp):
    """With an accelerator: `run` says before and behind it what `plan` says, runs that plan, and so does `batch`."""
    cache, device = tmp + '/cache', 'emu:mem=20M,h2d=1G,cores=1'
    p = plan('-p', '3', '-n', '16', '-t', '1', '--device', device, cache=cache)
    f, where = p['forecast'], p['placement']['device']
    check(f' --device {device}' in p['command'], 'the command: ' + p['command'])
    r = sluice('run', '-p', 'ROMEO:', '-n', '16', '--seed', '1', '-t', '1', '--json', '--ignore-eos', '--device', device,
               cache=cache)
    check(r.returncode == 0, 'run with a device: ' + r.stderr)
    out = json.loads(r.stdout)
    check(out['n_prompt'] == 3 and out['forecast_grade'] == f['grade'] == 'quick', f'a forecast: {out}')
    for k in ('prompt_tok_per_s', 'decode_tok_per_s', 'ttft_s'):
        check(abs(out['predicted_' + k] / f[k] - 1) < 1e-6, f'{k}: run {out["predicted_" + k]}, plan {f[k]}')
    line = next((s for s in r.stderr.splitlines() if 'device:' in s), '')
    check(f'{where["experts_a_layer"]} experts of each' in line and f'{where["dense_layers"]} of ' in line,
          f'the plan that runs: {line}, {where}')
    lines = [s for s in r.stderr.splitlines() if 'forecast' in s]
    check(len(lines) == 2 and 'limited by' in lines[0] and lines[1].count(' %') == 2, 'first and last: ' + r.stderr)
    plain = sluice('run', '-p', 'ROMEO:', '-n', '16', '--seed', '1', '--json', '--ignore-eos', '--device', 'cpu', cache=cache)
    check(json.loads(plain.stdout)['text'] == out['text'], 'the same text without it')
    with open(tmp + '/in.jsonl', 'w', encoding='utf-8') as into:
        for i in range(6):
            print(json.dumps({'custom_id': f'r{i}', 'prompt': 'ROMEO:' * (i + 1), 'max_tokens': 8}), file=into)
    r = sluice('batch', '-i', tmp + '/in.jsonl', '-o', tmp + '/out.jsonl', '--json', '--device', device, cache=cache)
    check(r.returncode == 0, 'batch with a device: ' + r.stderr)
    out = json.loads(r.stdout)
    check(out['answered'] == 6 and 0 < out['predicted_tok_per_s'] <= out['bound_tok_per_s'], f'its forecast: {out}')
    check('error' in r.stderr.splitlines()[-2], 'its error: ' + r.stderr)


def check_other_sources(tmp):
    """config.json of an architecture that the engine does not know, and a model without experts."""
    config = {'model_type': 'newmoe', 'architectures': ['NewMoeForCausalLM'], 'hidden_size': 2048,
              'num_hidden_layers': 24, 'num_attention_heads': 16, 'num_key_value_heads': 4, 'head_dim': 128,
              'vocab_size': 32000, 'intermediate_size': 8192, 'moe_intermediate_size': 1024, 'num_experts': 32,
              'num_experts_per_tok': 4, 'max_position_embeddings': 32768, 'tie_word_embeddings': False}
    path = tmp + '/config.json'
    json.dump(config, open(path, 'w'))
    p = plan('-m', path, '--machine', 'laptop-16gb', '--ram', '3G')
    check(p and p['model']['arch'] == 'newmoe' and not p['model']['runs'] and p['placement']['experts'] == 24 * 32,
          f'an unknown architecture: {p and p["model"]}')
    r = sluice('plan', '-m', path, '--machine', 'laptop-16gb')
    check('cannot run' in r.stdout and 'sluice run' not in r.stdout, 'what it cannot do is said: ' + r.stdout[-300:])
    for k in ('moe_intermediate_size', 'num_experts', 'num_experts_per_tok'):
        del config[k]
    config.update(model_type='llama', architectures=['LlamaForCausalLM'])
    json.dump(config, open(path, 'w'))
    p = plan('-m', path, '--machine', 'laptop-16gb')
    check(p and p['placement']['experts'] == 0 and p['forecast']['hit_rate'] == 1, 'a model without experts')
    config['hidden_size'] = -1
    json.dump(config, open(path, 'w'))
    refused('a bad config', sluice('plan', '-m', path, '--machine', 'laptop-16gb'), 1, 'hidden_size')


with tempfile.TemporaryDirectory() as tmp:
    check_usage(tmp)
    check_requests()
    check_text()
    check_json()
    check_all()
    check_llama_cpp()
    check_saved(tmp)
    check_device(tmp)
    check_other_sources(tmp)
print(f'{n_checks} checks, {len(failed)} failed')
raise SystemExit(bool(failed))
