#!/usr/bin/env python3
"""Joins the report's page, style, script and chart library into the two texts around its data, as C
arrays. embed.py OUT PAGE STYLE SCRIPT [CHARTS]: without CHARTS the page shows tables only."""
import sys


def text(path):
    with open(path, encoding='utf-8') as f:
        return f.read()


def array(name, data):
    lines = [','.join(str(b) for b in data[i:i + 32]) for i in range(0, len(data), 32)]
    return (f'const unsigned char {name}[{len(data)}] = {{\n' + ',\n'.join(lines) + '\n};\n'
            f'const size_t {name}_n = {len(data)};\n')


def main(out, page, style, script, charts=None):
    parts = {'report.css': text(style), 'report.js': text(script), 'chart.js': text(charts) if charts else ''}
    for name, part in parts.items():
        if '</script' in part.lower() or '<!--' in part or '@@' in part or '</style' in part.lower():
            raise SystemExit(f'{name} would end the element that holds it')
    whole = text(page)
    for name, part in parts.items():
        whole = whole.replace(f'@@{name}@@', part.strip())
    head, tail = whole.split('@@data@@')
    with open(out, 'w', encoding='ascii') as f:
        f.write('/* Made by tools/report/embed.py. */\n#include "tools/report_page.h"\n\n')
        f.write(array('report_head', head.encode()) + '\n' + array('report_tail', tail.encode()))


main(*sys.argv[1:])
