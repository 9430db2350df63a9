#!/usr/bin/env python3
"""tests/t_report.py - `sluice report` as a reader meets it: the page in headless Chromium, at desktop and phone
width, dark and printed. No console message, no request, every chart drawn, nothing wider than the window; names
from outside stay text. Skips the pages where there is no Chromium.
    t_report.py --pictures FOLDER REPORT...     PNGs and a PDF of reports, for people to look at"""
import base64
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile


class Browser:
    """Chromium over its remote debugging pipe: messages end with a NUL."""

    def __init__(self, path):
        self.folder = tempfile.mkdtemp()
        r3, self.out = os.pipe()
        self.inp, w4 = os.pipe()

        def pipes():
            a, b = os.dup(r3), os.dup(w4)
            os.dup2(a, 3)
            os.dup2(b, 4)
        self.process = subprocess.Popen(
            [path, '--headless', '--no-sandbox', '--disable-gpu', '--remote-debugging-pipe', '--hide-scrollbars',
             '--no-first-run', '--disable-background-networking', '--disable-dev-shm-usage', '--disable-extensions',
             '--disable-component-update', f'--user-data-dir={self.folder}', 'about:blank'],
            preexec_fn=pipes, close_fds=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        os.close(r3)
        os.close(w4)
        self.rest, self.n, self.events, self.session = b'', 0, [], None
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        self.session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'Network'):
            self.call(domain + '.enable')

    def receive(self):
        while b'\0' not in self.rest:
            more = os.read(self.inp, 1 << 20)
            if not more:
                raise RuntimeError('Chromium ended')
            self.rest += more
        message, self.rest = self.rest.split(b'\0', 1)
        return json.loads(message)

    def call(self, method, **params):
        self.n += 1
        message = {'id': self.n, 'method': method, 'params': params}
        if self.session:
            message['sessionId'] = self.session
        data = json.dumps(message).encode() + b'\0'
        while data:
            data = data[os.write(self.out, data):]
        while True:
            m = self.receive()
            if m.get('id') == self.n:
                if 'error' in m:
                    raise RuntimeError(f'{method}: {m["error"]}')
                return m['result']
            self.events.append(m)

    def open(self, path, width, height, dark=False, media=''):
        """Returns what the console said and which other addresses were asked for."""
        self.events = []
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)
        self.call('Emulation.setEmulatedMedia', media=media,
                  features=[{'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}])
        url = 'file://' + os.path.abspath(path)
        self.call('Page.navigate', url=url)
        while not any(e.get('method') == 'Page.loadEventFired' for e in self.events):
            self.events.append(self.receive())
        self.run('new Promise(f => requestAnimationFrame(() => requestAnimationFrame(f)))')
        said, asked = [], []
        for e in self.events:
            method, p = e.get('method'), e.get('params', {})
            if method in ('Runtime.consoleAPICalled', 'Runtime.exceptionThrown', 'Log.entryAdded'):
                said.append(json.dumps(p)[:400])
            if method == 'Network.requestWillBeSent' and p['request']['url'] != url:
                asked.append(p['request']['url'])
        return said, asked

    def run(self, script):
        r = self.call('Runtime.evaluate', expression=script, awaitPromise=True, returnByValue=True)
        if 'exceptionDetails' in r:
            raise RuntimeError(str(r['exceptionDetails'])[:400])
        return r['result'].get('value')

    def picture(self, path):
        shot = self.call('Page.captureScreenshot', captureBeyondViewport=True, format='png')
        with open(path, 'wb') as f:
            f.write(base64.b64decode(shot['data']))

    def pdf(self, path):
        with open(path, 'wb') as f:
            f.write(base64.b64decode(self.call('Page.printToPDF', printBackground=False)['data']))

    def close(self):
        self.call('Browser.close')
        os.close(self.out)
        os.close(self.inp)
        self.process.wait(20)
        shutil.rmtree(self.folder, ignore_errors=True)


def find_browser():
    return shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')


def pictures(folder, reports):
    b = Browser(find_browser())
    for path in reports:
        name = os.path.join(folder, os.path.splitext(os.path.basename(path))[0])
        for width, dark, what in ((1280, False, 'wide'), (390, False, 'phone'), (1280, True, 'dark')):
            print(b.open(path, width, 900, dark))
            b.call('Emulation.setDeviceMetricsOverride', width=width, height=b.run('document.body.scrollHeight'),
                   deviceScaleFactor=1, mobile=width < 600)
            b.run('new Promise(f => setTimeout(f, 100))')
            b.picture(f'{name}-{what}.png')
        b.open(path, 1280, 900)
        b.pdf(name + '.pdf')
    b.close()


SLUICE = os.path.join(os.environ.get('SLUICE_BUILD_DIR', 'build'), 'tools', 'sluice')
ROOT = os.environ.get('SLUICE_SOURCE_DIR', '.')
SKIP = 77
failed = []


def check(ok, what):
    print(('ok   ' if ok else 'FAIL ') + what)
    if not ok:
        failed.append(what)


def sluice(*args, env=None):
    return subprocess.run([SLUICE, *args], env={**os.environ, **(env or {})}, capture_output=True, text=True,
                          timeout=120)


def refused(what, r, code, *words):
    check(r.returncode == code and r.stdout == '' and all(w in r.stderr for w in words),
          f'{what}: {r.returncode} {r.stderr.strip()[:200]}')


HOSTILE = 'x</script><script>window.hit=1</script><img src=x onerror="window.hit=2"><!-- \u2028 "\'&amp; é'


def log_line(model, n):
    """A line as tools/validation.h describes it."""
    measured = 10.0 * (n + 1)
    return json.dumps({
        'sluice_validation': 1, 'kind': 'verified', 'id': f'20261122T0600{n:02}-1-1', 'date': '2026-11-22T06:00:41Z',
        'model': model, 'arch': 'qwen3moe', 'quant': 'Q4_K', 'cpu': 'X', 'threads': 2, 'budget_bytes': n << 30,
        'grade': 'calibrated', 'quantities': {
            'decode_tok_per_s': {'predicted': measured * 1.03, 'measured': measured, 'error': 0.03, 'spread': 0.02,
                                 'runs': [measured * 0.99, measured, measured * 1.01]},
            'prompt_tok_per_s': {'predicted': measured * 9, 'measured': measured * 10, 'error': -0.1, 'spread': 0.04},
            'hit_rate': {'predicted': 0.7, 'measured': 0.71, 'error': -0.01, 'spread': 0.0}}})


def write_model(path, name):
    """The bundled model under another name. What follows stays where 32 bytes align it."""
    with open(os.path.join(ROOT, 'models', 'sluice-bard-q8_0.gguf'), 'rb') as f:
        data = f.read()
    at = data.index(b'general.name') + 16       # behind the key and its type
    old, = struct.unpack_from('<Q', data, at)
    text = name.encode()
    text += b' ' * ((old - len(text)) % 32)
    with open(path, 'wb') as f:
        f.write(data[:at] + struct.pack('<Q', len(text)) + text + data[at + 8 + old:])


def make(tmp):
    """Reports by name: options and what must stand in them."""
    log = os.path.join(tmp, 'log.jsonl')
    with open(log, 'w', encoding='utf-8') as f:
        f.write(''.join(log_line(HOSTILE, n) + '\n' for n in range(6)))
    hostile = os.path.join(tmp, 'hostile.gguf')
    write_model(hostile, HOSTILE)
    made = {}
    for name, args in {
            'bundled': ['--machine', 'laptop-16gb'],
            'streamed': ['-m', 'qwen3-7b-a1b', '--quant', 'Q4_K', '--machine', 'laptop-16gb', '--ram', '2G', '--log', log],
            'large': ['-m', 'kimi-k2', '--machine', 'desktop-64gb-rtx4090', '-p', '2000', '-n', '0'],
            'hostile': ['-m', hostile, '--machine', 'minipc-n100-16gb', '--log', log]}.items():
        path = os.path.join(tmp, name + '.html')
        r = sluice('report', *args, '-o', path, env={'XDG_DATA_HOME': tmp})
        check(r.returncode == 0 and r.stdout == '' and os.path.exists(path), f'{name} is written: {r.stderr.strip()}')
        if r.returncode == 0:
            made[name] = path
    return made


def data_of(path):
    page = open(path, encoding='utf-8').read()
    text = page.split('<script type="application/json" id="data">')[1].split('</script>')[0]
    return page, text, json.loads(text)


def check_file(name, path):
    page, text, data = data_of(path)
    check(len(page) < 1.5e6, f'{name}: {len(page)} bytes')
    check(not any(c in text for c in '<>&'), f'{name}: the data cannot end its element')
    addresses = {a for a in re.findall(r'https?://[^\s"\')]+', page) if 'chartjs.org' not in a
                 and 'github.com/kurkle/color' not in a}
    loads = re.findall(r'\burl\(|@import|<[a-z]+ [^<>]*\b(?:src|href)=[^<>]*', page)
    check(not addresses and not loads, f'{name}: loads nothing: {addresses} {loads}')
    f, b = data['forecast'], data['bound']
    phases = ('prompt', 'decode') if data['load']['n_gen'] else ('prompt',)
    for k in phases:
        check(0 < f[k]['tok_per_s'] <= b[k]['tok_per_s'] * 1.0001, f'{name}: {k} {f[k]["tok_per_s"]} of {b[k]["tok_per_s"]}')
    check(f['grade'] == 'datasheet', f'{name}: grade {f["grade"]}')
    for p in data['bytes']['parts']:
        check(all(p[k] >= 0 for k in ('file', 'ram', 'token')), f'{name}: bytes of {p["id"]}')
    total = sum(p['file'] for p in data['bytes']['parts'])
    check(abs(total / data['model']['bytes'] - 1) < 0.01, f'{name}: parts {total} of {data["model"]["bytes"]}')
    ram = [p['forecast'][phases[-1] + '_tok_per_s'] for p in data['sweeps']['ram']['points']]
    check(len(ram) > 5 and ram[-1] >= ram[0], f'{name}: over RAM {ram}')
    check(all(data['timeline'][k]['spans'] for k in phases), f'{name}: spans of passes')


DRAWN = """[...document.querySelectorAll('canvas')].map(c => {
    const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
    let n = 0;
    for (let i = 3; i < d.length; i += 4) n += d[i] > 0;
    return [c.id, n / (c.width * c.height || 1)];
})"""


def check_page(browser, name, path, charts):
    for width, dark, media in ((1280, False, ''), (390, False, ''), (390, True, ''), (800, False, 'print')):
        where = f'{name}, {width} px{", dark" if dark else ""}{", " + media if media else ""}'
        said, asked = browser.open(path, width, 900, dark, media)
        check(not said, f'{where}: a silent console {said[:2]}')
        check(not asked, f'{where}: no request {asked[:2]}')
        drawn = browser.run(DRAWN)
        empty = [d for d in drawn if d[1] < 0.004]
        check(len(drawn) >= charts and not empty, f'{where}: {len(drawn)} charts drawn {empty}')
        browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
        wide = browser.run('document.documentElement.scrollWidth')
        check(wide <= width, f'{where}: {wide} px wide')
        check(browser.run('window.hit') is None, f'{where}: names stay text')
        ground = browser.run('getComputedStyle(document.body).backgroundColor')
        light = sum(int(v) for v in re.findall(r'\d+', ground)[:3]) > 600
        check(light != dark, f'{where}: ground {ground}')
    empty = browser.run("[...document.querySelectorAll('section')].filter(s => s.children.length < 2).map(s => s.id)")
    check(not empty, f'{name}: no empty section {empty}')
    text = browser.run("document.querySelector('main').innerText")
    stray = re.findall(r'.{0,40}\b(?:NaN|undefined|Infinity|null)\b.{0,20}', text)
    check(not stray, f'{name}: no stray words {stray[:2]}')


def check_hostile(browser, path):
    browser.open(path, 1280, 900)
    title = browser.run("document.getElementById('title').textContent")
    model = data_of(path)[2]['model']['name']
    check('script>' in model and title.startswith(model), f'the name as it is: {title[:60]}')
    check(browser.run("document.querySelectorAll('img, main script').length") == 0, 'no element comes from a name')
    check(browser.run("document.getElementById('checked').textContent").count(HOSTILE) > 5, 'nor from the log')


def check_without_charts(browser, path):
    """As a build makes it that found no chart library."""
    page = open(path, encoding='utf-8').read()
    start = page.index('<script>', page.index('id="data"'))
    bare = path + '-bare.html'
    with open(bare, 'w', encoding='utf-8') as f:
        f.write(page[:start] + page[page.index('<script>', start + 8):])
    said, _ = browser.open(bare, 390, 900)
    check(not said, f'without charts: a silent console {said[:2]}')
    check(browser.run("document.querySelectorAll('canvas').length") == 0, 'without charts: no canvas')
    check(browser.run("[...document.querySelectorAll('table')].filter(t => t.offsetHeight > 0).length") > 12,
          'without charts: tables')
    check(browser.run('document.documentElement.scrollWidth') <= 390, 'without charts: nothing too wide')


def check_refusals(tmp):
    out = os.path.join(tmp, 'none.html')
    refused('no such model', sluice('report', '-m', 'gpt-5', '-o', out), 1, 'gpt-5')
    refused('no such machine', sluice('report', '--machine', 'cray', '-o', out), 1, 'cray', 'laptop-16gb')
    refused('no such log', sluice('report', '--machine', 'laptop-16gb', '--log', tmp + '/no', '-o', out), 1, tmp + '/no')
    refused('a small context', sluice('report', '-c', '100', '--machine', 'laptop-16gb', '-o', out), 1, 'context of 100')
    refused('a small budget', sluice('report', '--ram', '8M', '--machine', 'laptop-16gb', '-o', out), 1, 'floor')
    refused('no folder', sluice('report', '--machine', 'laptop-16gb', '-o', tmp + '/no/r.html'), 1, tmp + '/no')
    refused('an argument', sluice('report', 'x'), 2, 'usage')
    check(not any('none.html' in f for f in os.listdir(tmp)), 'nothing half-written')
    with open('/dev/full', 'w') as full:
        r = subprocess.run([SLUICE, 'report', '--machine', 'laptop-16gb', '-o', '-'], stdout=full, stderr=subprocess.PIPE)
    check(r.returncode == 1 and r.stderr.count(b'\n') == 1, f'a full disk: {r.stderr}')


def main():
    sanitized = bool(os.environ.get('SLUICE_SANITIZED'))    # the pages are the same ones
    browser = None if sanitized else find_browser()
    with tempfile.TemporaryDirectory() as tmp:
        made = make(tmp)
        check_refusals(tmp)
        for name, path in made.items():
            check_file(name, path)
        if browser and made:
            b = Browser(browser)
            for name, path in made.items():
                check_page(b, name, path, 12)
            check_hostile(b, made['hostile'])
            check_without_charts(b, made['streamed'])
            b.close()
    print(f'{len(failed)} failed')
    if failed:
        return 1
    if not browser and not sanitized:
        print('no Chromium: the pages were not looked at')
        return SKIP
    return 0


if __name__ == '__main__':
    if sys.argv[1:2] == ['--pictures']:
        pictures(sys.argv[2], sys.argv[3:])
    else:
        raise SystemExit(main())
