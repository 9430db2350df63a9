#!/usr/bin/env python3
"""Makes the header that is installed: a public header and those it includes, each once, as one file that needs
no other. one_header.py ROOT HEADER OUT DEPFILE"""
import os
import re
import sys

OWN = re.compile(r'^#include "([^"]+)"\n', re.M)
SYSTEM = re.compile(r'^#include <[^>]+>\n', re.M)
MANUAL = re.compile(r'/\*.*?\*/\n', re.S)   # the comment that a header begins with


def parts(root, path, seen):
    """Paths and texts, what a header stands on before itself."""
    seen.add(path)
    with open(os.path.join(root, path), encoding='utf-8') as f:
        text = f.read()
    for below in OWN.findall(text):
        if below not in seen:
            yield from parts(root, below, seen)
    yield path, OWN.sub('', text)


def main(root, header, out, depfile):
    texts = dict(parts(root, header, set()))
    manual = MANUAL.match(texts[header]).group()
    texts[header] = texts[header][len(manual):]
    system = {line: None for text in texts.values() for line in SYSTEM.findall(text)}
    body = ''.join(SYSTEM.sub('', text) for text in texts.values())
    with open(out, 'w', encoding='utf-8') as f:
        f.write(f'{manual}/* Made by the build from {len(texts)} headers: what others stand on first, the library itself last. */\n'
                '#ifndef SLUICE_ALL_H\n#define SLUICE_ALL_H\n\n' + ''.join(system)
                + '\n#ifdef __cplusplus\nextern "C" {\n#endif\n\n' + re.sub(r'\n{3,}', '\n\n', body)
                + '\n#ifdef __cplusplus\n}\n#endif\n\n#endif\n')
    with open(depfile, 'w', encoding='utf-8') as f:
        f.write(out + ': ' + ' '.join(os.path.join(root, path).replace(' ', '\\ ') for path in texts) + '\n')


main(*sys.argv[1:])
