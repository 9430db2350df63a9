#!/usr/bin/env python3
"""tests/layers.py - who may include whom, and what each folder must not do.

  layers.py ROOT         checks the tree, prints `file:line: complaint`, exits 1 when there is one
  layers.py --self-test  builds a tree that breaks every rule once and demands every complaint
"""
import os
import re
import sys
import tempfile

# unit: units it may include besides itself. The longest matching folder names a file's unit.
ALLOWED = {
    'runtime/base': [],
    'kernels': ['runtime/base'],
    'perfmodel': ['runtime/base'],
    'offload': ['runtime/base', 'kernels', 'perfmodel'],
    'runtime': ['runtime/base', 'kernels', 'perfmodel', 'offload'],
    'tools': ['runtime/base', 'kernels', 'perfmodel', 'offload', 'runtime'],
    'tests': ['runtime/base', 'kernels', 'perfmodel', 'offload', 'runtime', 'tools'],
}
SOURCES = ('.c', '.h', '.cu', '.cuh', '.cpp', '.inc')
MAX_COLUMNS = 100       # but for lines that are one piece of text or of a macro
MAX_LINES = 1500

# Calls that a unit must not make, with the reason that is printed.
LIBRARIES = ('runtime/base', 'kernels', 'perfmodel', 'offload', 'runtime')
BANNED = [
    (LIBRARIES, r'(?:secure_)?getenv|setenv|putenv', 'the environment belongs to tools/'),
    (LIBRARIES, r'_?exit|_Exit|quick_exit|abort', 'libraries return a status'),
    (LIBRARIES, r'printf|vprintf|puts|putchar|perror|psignal', 'libraries do not print'),
    (('kernels',), r'malloc|calloc|realloc|aligned_alloc|posix_memalign|free|mmap|cudaMalloc\w*'
                   r'|sl_mem_alloc', 'kernels do not allocate'),
    (('kernels',), r'f?open|read|write|pread|pwrite|sl_log|pthread_\w+|nanosleep|usleep',
     'kernels do no I/O, do not log and do not block'),
    (('perfmodel',), r'clock_gettime|gettimeofday|time|clock|f?open|read|pread|pthread_create',
     'perfmodel is pure arithmetic'),
]
STREAMS = re.compile(r'\b(stdout|stderr)\b')
INCLUDE = re.compile(r'\s*#\s*include\s*(["<])([^">]+)[">]')
UNDONE = re.compile(r'\b(TODO|FIXME)\b')
DATA_ROW = re.compile(r'[\s{}()\[\]=0-9a-fA-FxXuUlL,.;+\-]*[0-9][\s{}()0-9a-fA-FxXuUlL,.;+\-]*$')


def unit_of(path):
    best = None
    for unit in ALLOWED:
        if path.startswith(unit + '/') and (best is None or len(unit) > len(best)):
            best = unit
    return best


def is_public(path):
    name = os.path.basename(path)
    return name == 'sluice.h' or (name.startswith('sl_') and name.endswith('.h'))


def find_sources(root):
    for folder, dirs, files in os.walk(root):
        dirs[:] = sorted(d for d in dirs if not d.startswith(('.', 'build', '__')))
        if folder == root and 'shared' in dirs:
            dirs.remove('shared')
        for name in sorted(files):
            if name.endswith(SOURCES):
                yield os.path.relpath(os.path.join(folder, name), root)


def blank(text):
    """Comments and literals become spaces; line breaks stay, so that line numbers hold."""
    pattern = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.S)
    return pattern.sub(lambda m: re.sub(r'[^\n]', ' ', m.group()), text)


def check_include(root, path, kind, target):
    unit, goal = unit_of(path), unit_of(target)
    if kind == '<':
        if os.path.exists(os.path.join(root, target)) and goal:
            yield f'own header <{target}> needs quotes'
        return
    if '/' not in target:
        yield f'"{target}" does not spell its folder'
        return
    if not os.path.exists(os.path.join(root, target)):
        yield f'"{target}" does not exist below the root'
        return
    if unit == goal:
        return
    if goal == 'tests' or goal is None or goal not in ALLOWED[unit]:
        yield f'{unit} must not include "{target}"'
    elif not is_public(target) and unit != 'tests':
        yield f'"{target}" is private to {goal}'


def check_calls(path, code):
    unit = unit_of(path)
    for number, line in enumerate(code.split('\n'), 1):
        if unit in LIBRARIES and STREAMS.search(line):
            yield number, 'libraries do not print (stdout, stderr)'
        for units, names, why in BANNED:
            m = re.search(r'(?<![\w.>])(' + names + r')\s*\(', line) if unit in units else None
            if m:
                yield number, f'{m.group(1)}(): {why}'


def check_file(root, path):
    with open(os.path.join(root, path), encoding='utf-8', errors='replace') as f:
        text = f.read()
    if unit_of(path) is None:
        yield 1, 'no folder of the table in tests/layers.py'
        return
    lines = text.split('\n')
    for number, line in enumerate(lines, 1):
        macro = line.endswith('\\') or number > 1 and lines[number - 2].endswith('\\')
        if len(line) > MAX_COLUMNS and not macro and not line.lstrip().startswith('"'):
            yield number, f'{len(line)} columns, {MAX_COLUMNS} are allowed'
        if '\t' in line:
            yield number, 'a tab'
        if UNDONE.search(line):
            yield number, 'unfinished: say what is, or do it'
        m = INCLUDE.match(line)
        if m:
            for complaint in check_include(root, path, m.group(1), m.group(2)):
                yield number, complaint
    code_lines = sum(1 for line in lines if not DATA_ROW.match(line))
    if code_lines > MAX_LINES:      # rows of a table do not count
        yield MAX_LINES, f'{code_lines} lines without table rows, {MAX_LINES} are allowed'
    yield from check_calls(path, blank(text))


def check_tree(root):
    complaints, seen, n_files = [], {}, 0
    for path in find_sources(root):
        n_files += 1
        name = os.path.basename(path)
        if name in seen:
            complaints.append(f'{path}:1: same name as {seen[name]}')
        seen.setdefault(name, path)
        for number, complaint in check_file(root, path):
            complaints.append(f'{path}:{number}: {complaint}')
    return n_files, complaints


# One line per broken rule: file, its text, a part of the complaint (None: must be clean).
BAD_TREE = [
    ('runtime/base/sl_base.h', '/* a printf( in a comment, and getenv( too */\n', None),
    ('runtime/base/private.h', '\n', None),
    ('runtime/sluice.h', '#include "runtime/base/sl_base.h"\n', None),
    ('offload/sl_store.h', '\n', None),
    ('tests/t.h', '#include "runtime/base/private.h"\n#include <stdio.h>\n', None),
    ('tools/fine.c', '#include "runtime/sluice.h"\nint main(void) { printf("x"); exit(0); }\n', None),
    ('kernels/table.c', '    1, 2, 0x3f,\n' * 2000, None),
    ('runtime/good.c', 'int f(struct s *p) { return p->read(1) + snprintf(b, 1, "stderr"); }\n', None),
    ('runtime/base/up.c', '#include "runtime/sluice.h"\n', 'runtime/base must not include'),
    ('kernels/up.cu', '#include "offload/sl_store.h"\n', 'kernels must not include'),
    ('perfmodel/side.c', '#include "offload/sl_store.h"\n', 'perfmodel must not include'),
    ('offload/up_o.c', '#include "runtime/sluice.h"\n', 'offload must not include'),
    ('runtime/peek.c', '#include "runtime/base/private.h"\n', 'private to runtime/base'),
    ('tools/peek_t.c', '#include "runtime/base/private.h"\n', 'private to runtime/base'),
    ('runtime/test.c', '#include "tests/t.h"\n', 'runtime must not include'),
    ('runtime/bare.c', '#include "sluice.h"\n', 'does not spell its folder'),
    ('runtime/angle.c', '#include <runtime/sluice.h>\n', 'needs quotes'),
    ('runtime/gone.c', '#include "runtime/sl_gone.h"\n', 'does not exist'),
    ('runtime/env.c', 'char *f(void) { return getenv("X"); }\n', 'getenv()'),
    ('offload/quit.c', 'void f(void) { exit(1); }\n', 'exit()'),
    ('offload/die.c', 'void f(void) { abort (); }\n', 'abort()'),
    ('runtime/print.c', 'void f(void) { printf("x"); }\n', 'printf()'),
    ('runtime/err.c', 'void f(void) { fprintf(stderr, "x"); }\n', 'stderr'),
    ('kernels/alloc.c', 'void *f(void) { return malloc(1); }\n', 'kernels do not allocate'),
    ('perfmodel/clock.c', 'int f(void) { return clock_gettime(0, 0); }\n', 'pure arithmetic'),
    ('runtime/wide.c', '/* ' + 'x' * MAX_COLUMNS + ' */\n', 'columns'),
    ('runtime/tab.c', 'int x;\t\n', 'a tab'),
    ('runtime/undone.c', '/* TO' 'DO */\n', 'unfinished'),
    ('runtime/long.c', 'int f(void);\n' * 1501, 'lines without table rows'),
    ('offload/twin.c', '\n', None),
    ('runtime/twin.c', '\n', 'same name as'),
    ('elsewhere/x.c', '\n', 'no folder of the table'),
]


def self_test():
    with tempfile.TemporaryDirectory() as root:
        for path, text, _ in BAD_TREE:
            os.makedirs(os.path.dirname(os.path.join(root, path)), exist_ok=True)
            with open(os.path.join(root, path), 'w', encoding='utf-8') as f:
                f.write(text)
        _, complaints = check_tree(root)
    wrong = 0
    for path, _, want in BAD_TREE:
        got = [c for c in complaints if c.startswith(path + ':')]
        if not (len(got) == 1 and want in got[0] if want else not got):
            print(f'{path}: wanted {want!r}, got {got}')
            wrong += 1
    print(f'{len(BAD_TREE)} cases, {wrong} wrong')
    return 1 if wrong else 0


def main():
    if sys.argv[1:] == ['--self-test']:
        return self_test()
    root = sys.argv[1] if len(sys.argv) > 1 else '.'
    n_files, complaints = check_tree(root)
    for c in complaints:
        print(c)
    print(f'{n_files} files, {len(complaints)} complaints')
    return 1 if complaints or not n_files else 0


if __name__ == '__main__':
    sys.exit(main())
