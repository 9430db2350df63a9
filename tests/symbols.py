#!/usr/bin/env python3
"""tests/symbols.py - what the compiled libraries hold and call: no mutable globals (static locals
included), nothing that reads the environment, ends the process or prints; and what the shared
library exports.

  symbols.py SHARED.so ARCHIVE.a...   prints `archive member: complaint`, exits 1 when there is one
  symbols.py --self-test              compiles a bad file and demands the complaints
"""
import os
import re
import subprocess
import sys
import tempfile

FORBIDDEN = {
    'getenv', 'secure_getenv', 'setenv', 'putenv', 'exit', '_exit', '_Exit', 'quick_exit', 'abort',
    'printf', 'vprintf', 'puts', 'putchar', 'perror', 'stdout', 'stderr', '__printf_chk',
    'setlocale', 'srand', 'rand', 'strtok', 'signal', 'sigaction', 'chdir', 'umask',
}
# objdump -t: value, seven flag characters, section, tab, size, name
ROW = re.compile(r'^[0-9a-f]{8,16} (.{7}) (\S+)\t([0-9a-f]+)\s+(?:\.hidden )?(\S+)$')
MUTABLE = re.compile(r'^(\.data|\.bss|\.tdata|\.tbss|\*COM\*)(?!\.rel\.ro)(\.|$)')


def tool(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def check_archive(path):
    member, n = '?', 0
    for line in tool('objdump', '-t', path).split('\n'):
        if line.endswith(('file format elf64-x86-64', 'file format elf64-littleaarch64')):
            member = line.split(':')[0]
        m = ROW.match(line)
        if not m:
            continue
        flags, section, size, name = m.groups()
        n += 1
        if member.endswith('.cu.o'):    # nvcc registers kernels in globals of its own
            continue
        if MUTABLE.match(section) and int(size, 16) and 'd' not in flags[:6]:
            yield f'{os.path.basename(path)} {member}: {name} in {section} is a mutable global'
        if section == '*UND*' and name in FORBIDDEN:
            yield f'{os.path.basename(path)} {member}: uses {name}'
    if not n and os.path.getsize(path) > 100:
        yield f'{path}: no symbols read'


def check_shared(path):
    n = 0
    for line in tool('nm', '-D', '--defined-only', path).split('\n'):
        fields = line.split()
        if len(fields) == 3 and fields[1] in 'TDBRVW':
            n += 1
            if not fields[2].startswith('sl_'):
                yield f'{os.path.basename(path)}: exports {fields[2]}'
    if not n:
        yield f'{path}: exports nothing'


BAD = '''#include <stdio.h>
#include <stdlib.h>
static const char *const fine[] = { "a", "b" };
int counter;
static int filled = 3;
int f(int i) { static int calls; filled++; printf("%s", fine[i & 1]); return calls++ + filled; }
void g(void) { if (getenv("X")) exit(1); }
'''
WANTED = ['counter', 'filled', 'calls', 'uses printf', 'uses getenv', 'uses exit']


def self_test():
    with tempfile.TemporaryDirectory() as folder:
        source, archive = os.path.join(folder, 'bad.c'), os.path.join(folder, 'bad.a')
        with open(source, 'w', encoding='utf-8') as f:
            f.write(BAD)
        tool(os.environ.get('CC', 'cc'), '-c', '-fPIC', source, '-o', source + '.o')
        tool('ar', 'rcs', archive, source + '.o')
        got = list(check_archive(archive))
    missing = [w for w in WANTED if not any(w in g for g in got)]
    print('\n'.join(got))
    print(f'{len(got)} complaints, {len(WANTED)} wanted, missing: {missing}')
    return 1 if missing or len(got) != len(WANTED) else 0


def main():
    if sys.argv[1:] == ['--self-test']:
        return self_test()
    complaints = list(check_shared(sys.argv[1]))
    for archive in sys.argv[2:]:
        complaints += check_archive(archive)
    for c in complaints:
        print(c)
    print(f'{len(sys.argv) - 2} archives, {len(complaints)} complaints')
    return 1 if complaints else 0


if __name__ == '__main__':
    sys.exit(main())
