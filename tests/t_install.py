#!/usr/bin/env python3
"""tests/t_install.py - what `meson install` gives: a program built with nothing but `pkg-config --cflags --libs
sluice`, as C and as C++; a binary that finds the bundled model and the described machines wherever it was
installed to. Skipped where a tool for it is missing."""
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.environ['SLUICE_SOURCE_DIR']
BUILD = os.environ['SLUICE_BUILD_DIR']
EXAMPLE = ROOT + '/tools/examples/two_prompts.c'
failed = []
n_checks = 0


def check(ok, what):
    global n_checks
    n_checks += 1
    if not ok:
        print('FAIL ' + what)
        failed.append(what)


def run(*command, **env):
    r = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=120)
    check(r.returncode == 0, f'{" ".join(command)}: {r.returncode} {r.stderr.strip()[:2000]}')
    return r


def check_example(tmp, prefix, flags, libs, model):
    program = tmp + '/two_prompts'
    if run('gcc', '-std=c11', '-Wall', '-Wextra', '-Werror', EXAMPLE, '-o', program, *flags).returncode:
        return
    a, b = 'ROMEO:\n', 'JULIET:\nWhat is it?\n'
    one = run(program, model, a, b, LD_LIBRARY_PATH=libs).stdout.split('\n')
    tokens = [line for line in one if re.match('[AB]: ', line)]
    check(all(sum(t.startswith(name) for t in tokens) > 8 for name in ('A: ', 'B: ')), f'few tokens: {one}')
    for name in 'AB':
        check(any(re.fullmatch(name + r': \d+ tokens read, the first written after 0\.\d+ s, \d+ in 0\.\d+ s', t)
                  for t in tokens), f'no statistics of {name}: {one}')
    two = run(program, model, a, a, LD_LIBRARY_PATH=libs).stdout
    alike = [re.findall(f'^{name}: (?!\\d+ tokens)(.*)$', two, re.M) for name in 'AB']
    check(alike[0] == alike[1], f'equal prompts and seeds give two texts: {alike}')
    r = subprocess.run([program, tmp + '/none.gguf', a, b], env={**os.environ, 'LD_LIBRARY_PATH': libs},
                       capture_output=True, text=True, timeout=60)
    check(r.returncode == 1 and 'none.gguf' in r.stderr and r.stderr.count('\n') == 1, f'no model: {r.stderr}')


def check_cxx(tmp, flags, libs):
    source = tmp + '/version.cc'
    with open(source, 'w', encoding='utf-8') as f:
        f.write('#include <sluice.h>\n#include <sluice.h>\n'
                'int main() { sl_ctx *c = sl_ctx_create(nullptr, nullptr); sl_ctx_destroy(&c); return c != nullptr; }\n')
    if run('g++', '-std=c++11', '-Wall', '-Wextra', '-Werror', source, '-o', tmp + '/version', *flags).returncode == 0:
        run(tmp + '/version', LD_LIBRARY_PATH=libs)


def main():
    missing = [tool for tool in ('meson', 'gcc', 'pkg-config') if not shutil.which(tool)]
    if missing or os.environ.get('SLUICE_SANITIZED'):
        print(f'SKIP: {missing or "a program that loads a library with sanitizers needs them itself"}')
        return 77
    with tempfile.TemporaryDirectory() as tmp:
        run('meson', 'install', '-C', BUILD, '--no-rebuild', '--destdir', tmp + '/root')
        pc = glob.glob(tmp + '/root/**/sluice.pc', recursive=True)
        check(len(pc) == 1, f'installed sluice.pc: {pc}')
        if failed:
            return 1
        # The prefix of the build, below the folder this was installed to: what pkg-config calls a sysroot.
        env = {'PKG_CONFIG_PATH': os.path.dirname(pc[0]), 'PKG_CONFIG_SYSROOT_DIR': tmp + '/root'}
        flags = run('pkg-config', '--cflags', '--libs', 'sluice', **env).stdout.split()
        libs = os.path.dirname(os.path.dirname(pc[0]))
        model, = glob.glob(tmp + '/root/**/sluice-bard-q8_0.gguf', recursive=True)
        headers = glob.glob(tmp + '/root/**/*.h', recursive=True)
        check([os.path.basename(h) for h in headers] == ['sluice.h'], f'installed headers: {headers}')
        check_example(tmp, libs, flags, libs, model)
        if shutil.which('g++'):
            check_cxx(tmp, flags, libs)
        program, = glob.glob(tmp + '/root/**/bin/sluice', recursive=True)
        check('Sluice Bard' in run(program, 'run', '-n', '4').stderr, 'the bundled model is not found')
        run(program, 'plan', '--machine', 'desktop-64gb', '-m', 'olmoe-1b-7b')
    print(f'{n_checks} checks, {len(failed)} failed')
    return 1 if failed or not n_checks else 0


sys.exit(main())
