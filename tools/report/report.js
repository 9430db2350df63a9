'use strict';
/* Draws the page from the one JSON object in #data. Text from outside (names of models, files,
 * machines) only ever becomes text nodes. */
(() => {
const D = JSON.parse(document.getElementById('data').textContent);
const HAVE_CHARTS = typeof Chart !== 'undefined';
const charts = [];

/* ---- numbers as text ---- */

const NONE = '–';
function digits(v, n = 3) {
    if (v === null || v === undefined || !isFinite(v)) return NONE;
    if (v === 0) return '0';
    const whole = Math.floor(Math.log10(Math.abs(v))) + 1;
    const text = whole >= n ? Math.round(v).toString() : v.toFixed(Math.min(n - whole, 6));
    const [a, b] = text.split('.');
    return (a.length > 4 ? a.replace(/\B(?=(\d{3})+$)/g, '\u202f') : a) + (b ? '.' + b : '');
}
function scaled(v, steps, n) {
    if (v === null || v === undefined || !isFinite(v)) return NONE;
    let s = steps[steps.length - 1];
    for (const step of steps) if (Math.abs(v) >= step[0] * 0.9995) { s = step; break; }
    return digits(v / s[0], n) + '\u00a0' + s[1];
}
const bytes = v => scaled(v, [[2 ** 40, 'TiB'], [2 ** 30, 'GiB'], [2 ** 20, 'MiB'], [2 ** 10, 'KiB'], [1, 'B']]);
const rate = v => scaled(v, [[1e12, 'TB/s'], [1e9, 'GB/s'], [1e6, 'MB/s'], [1e3, 'kB/s'], [1, 'B/s']]);
const ops = v => scaled(v, [[1e12, 'TMAC/s'], [1e9, 'GMAC/s'], [1e6, 'MMAC/s'], [1, 'MAC/s']]);
const count = v => scaled(v, [[1e12, 'T'], [1e9, 'G'], [1e6, 'M'], [1, '']]).trim();
const secs = v => v === 0 ? '0\u00a0s' : scaled(v, [[1, 's'], [1e-3, 'ms'], [1e-6, 'µs']]);
const tps = v => v ? digits(v) + '\u00a0tok/s' : NONE;
const pct = (v, n = 0) => v === null || v === undefined || !isFinite(v) ? NONE : (100 * v).toFixed(n) + '\u00a0%';
const tick = v => plain(v);
const signed = (v, n = 1) => (v > 0 ? '+' : v < 0 ? '−' : '±') + pct(Math.abs(v), n);
const plain = v => Number.isFinite(v) && Math.abs(v) < 1e15 ? digits(v, Number.isInteger(v) ? 1 : 6).replace(/(\.\d*?)0+$/, '$1').replace(/\.$/, '') : NONE;

/* ---- elements ---- */

function el(tag, attrs, ...inside) {
    const e = document.createElement(tag);
    for (const [k, v] of Object.entries(attrs || {})) e.setAttribute(k, v);
    for (const i of inside.flat()) if (i !== null && i !== undefined) e.append(i);
    return e;
}
const $ = id => document.getElementById(id);
function say(id, ...text) {
    const p = el('p', {}, ...text);
    $(id).append(p);
    return p;
}
function drop(id) { $(id).remove(); }

/* columns: [title, of row -> text, is it a number] */
function table(caption, columns, rows) {
    const named = columns.some(c => c[0]);
    const head = columns.map(c => el('th', c[2] ? { class: 'n', scope: 'col' } : { scope: 'col' }, c[0]));
    const body = rows.map(r => el('tr', {}, columns.map((c, i) => i || c[2]
        ? el('td', c[2] ? { class: 'n' } : {}, c[1](r)) : el('th', { scope: 'row' }, c[1](r)))));
    return el('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': caption },
              el('table', {}, el('caption', {}, caption),
                 named ? el('thead', {}, el('tr', {}, head)) : null, el('tbody', {}, body)));
}

function grid(id, kind) {
    const g = el('div', { class: 'grid ' + (kind || '') });
    $(id).append(g);
    return g;
}

/* ---- charts ---- */

let css = getComputedStyle(document.documentElement);
const colour = name => css.getPropertyValue('--' + name).trim();
const RESOURCE = { disk: 'disk', dram: 'dram', cpu: 'cpu', sync: 'sync', h2d: 'gpu', d2h: 'gpu',
                   gpu: 'gpu', vram: 'gpu' };
const resourceColour = r => colour(RESOURCE[r] || 'line');
const resourceName = r => D.resources[r] || r;
const small = () => window.innerWidth < 520;

/* A figure with a title, a sentence or two, the chart and its numbers. make() gives the chart's
 * configuration in the colours of the moment; it is called again when these change. */
function figure(parent, id, title, words, height, make, key, numbers) {
    const cap = el('figcaption', {}, el('h3', {}, title), words ? el('p', {}, words) : null);
    const f = el('figure', { id: 'fig-' + id }, cap);
    parent.append(f);
    if (HAVE_CHARTS) {
        const canvas = el('canvas', { id: 'chart-' + id, role: 'img', 'aria-label': title + '. ' + words });
        f.append(el('div', { class: 'box', style: `height:${height}px` }, canvas));
        const legend = el('div', { class: 'key' });
        if (key) f.append(legend);
        const draw = () => {
            if (draw.chart) draw.chart.destroy();
            legend.replaceChildren(...(key ? key() : []).map(([name, c, dash]) =>
                el('span', {}, el('i', { class: dash ? 'dash' : '', style: `background:${c};border-color:${c}` }), name)));
            draw.chart = new Chart(canvas, make());
        };
        charts.push(draw);
        draw();
    }
    if (numbers) f.append(HAVE_CHARTS ? el('details', {}, el('summary', {}, 'Numbers'), numbers) : numbers);
}

function axis(title, fmt, more) {
    return Object.assign({
        title: { display: !!title, text: title, color: colour('soft'), font: { size: 12 } },
        grid: { color: colour('rule'), drawBorder: false, tickLength: 4 },
        ticks: { color: colour('soft'), maxRotation: 0, autoSkipPadding: 14, includeBounds: false, callback: v => fmt(v) }
    }, more || {});
}
/* Names of bars, none left out. */
function names(fmt, more) {
    const a = axis('', fmt, { grid: { display: false }, ...more });
    a.ticks.autoSkip = false;
    return a;
}
/* Ticks at the given values only. */
const at = values => ({ afterBuildTicks: s => { s.ticks = values.map(value => ({ value })); } });
/* Ticks at powers of 2, not too many. */
function powers(lo, hi) {
    const all = [];
    for (let e = Math.ceil(Math.log2(lo) - 1e-9); e <= Math.log2(hi) + 1e-9; e++) all.push(2 ** e);
    const step = Math.ceil(all.length / (small() ? 5 : 8));
    return at(all.filter((d, i) => i % step === 0));
}
/* Powers of 10; with 2 and 5 between where there are few. */
const decades = { afterBuildTicks: s => {
    const ticks = [], steps = s.max / s.min < 150 ? [1, 2, 5] : [1];
    for (let e = Math.floor(Math.log10(s.min) + 1e-9); e <= Math.log10(s.max); e++)
        for (const k of steps) if (k * 10 ** e >= s.min * 0.999 && k * 10 ** e <= s.max * 1.001) ticks.push({ value: k * 10 ** e });
    s.ticks = ticks;
} };

function config(type, datasets, scales, tip, more) {
    return {
        type, data: { datasets, ...(more && more.labels ? { labels: more.labels } : {}) },
        plugins: (more && more.plugins) || [],
        options: {
            animation: false, responsive: true, maintainAspectRatio: false, normalized: true,
            ...(more && more.indexAxis ? { indexAxis: more.indexAxis } : {}),
            layout: { padding: { right: 10, top: 4, ...(more && more.padding) } },
            interaction: (more && more.interaction) || { mode: 'nearest', intersect: false },
            plugins: { legend: { display: false },
                       tooltip: { displayColors: false, callbacks: { title: () => '', label: tip },
                                  filter: i => !i.dataset.quiet } },
            scales
        }
    };
}

function line(label, points, c, more) {
    return Object.assign({ label, data: points, borderColor: c, backgroundColor: c, borderWidth: 2,
                           pointRadius: 2.5, pointHoverRadius: 5, tension: 0, clip: 8, showLine: true }, more || {});
}

/* Text beside points, where it covers no other; `labels` of a dataset, one a point. */
const beside = {
    id: 'beside',
    afterDatasetsDraw(chart) {
        const c = chart.ctx, area = chart.chartArea, taken = [];
        c.save();
        c.font = `${small() ? 11 : 12}px ${Chart.defaults.font.family}`;
        c.textBaseline = 'middle';
        chart.data.datasets.forEach((d, k) => {
            if (d.labels) chart.getDatasetMeta(k).data.forEach(p =>
                taken.push([p.x - 5, p.y - 5, p.x + 5, p.y + 5]));
        });
        chart.data.datasets.forEach((d, k) => {
            if (!d.labels) return;
            c.fillStyle = d.labelColor || d.borderColor;
            chart.getDatasetMeta(k).data.forEach((p, i) => {
                const text = d.labels[i], w = text ? c.measureText(text).width : 0;
                const places = [[9, 0], [-9 - w, 0], [-w / 2, -13], [-w / 2, 13], [7, -11], [7, 11], [-7 - w, -11],
                                [-7 - w, 11], [9, -22], [9, 22]];
                for (const [dx, dy] of text ? places : []) {
                    const r = [p.x + dx, p.y + dy - 7, p.x + dx + w, p.y + dy + 7];
                    if (r[0] < area.left || r[2] > area.right || r[1] < area.top - 4 || r[3] > area.bottom) continue;
                    if (taken.some(t => r[0] < t[2] && t[0] < r[2] && r[1] < t[3] && t[1] < r[3])) continue;
                    taken.push(r);
                    c.fillText(text, r[0], p.y + dy);
                    break;
                }
            });
        });
        c.restore();
    }
};

/* Vertical bars of `low` and `high` of each point of the datasets that have them. */
const spreads = {
    id: 'spreads',
    beforeDatasetsDraw(chart) {
        const c = chart.ctx, y = chart.scales.y;
        chart.data.datasets.forEach((d, k) => {
            if (!d.spreads) return;
            c.save();
            c.strokeStyle = d.borderColor;
            c.lineWidth = 1.2;
            chart.getDatasetMeta(k).data.forEach((p, i) => {
                const lo = y.getPixelForValue(d.data[i].low), hi = y.getPixelForValue(d.data[i].high);
                c.beginPath();
                for (const v of [lo, hi]) { c.moveTo(p.x - 3, v); c.lineTo(p.x + 3, v); }
                c.moveTo(p.x, lo);
                c.lineTo(p.x, hi);
                c.stroke();
            });
            c.restore();
        });
    }
};

/* A vertical line at options.at of x, with a word. */
function mark(value, word) {
    return {
        id: 'mark',
        afterDatasetsDraw(chart) {
            const x = chart.scales.x.getPixelForValue(value), a = chart.chartArea, c = chart.ctx;
            if (!(x >= a.left - 1 && x <= a.right + 1)) return;
            c.save();
            c.strokeStyle = c.fillStyle = colour('soft');
            c.setLineDash([2, 3]);
            c.beginPath();
            c.moveTo(x, a.top);
            c.lineTo(x, a.bottom);
            c.stroke();
            c.font = `11px ${Chart.defaults.font.family}`;
            c.textAlign = x > (a.left + a.right) / 2 ? 'right' : 'left';
            c.fillText(word, x + (c.textAlign === 'right' ? -5 : 5), a.bottom - 7);
            c.restore();
        }
    };
}

/* ---- sections ---- */

const GRADES = {
    datasheet: 'The machine is described by data sheets; nobody measured it, so expect errors of tens of percent',
    quick: 'From a probe of two seconds; “sluice probe” measures thoroughly',
    cold: 'The machine is measured; how this model chooses experts is assumed to be that of trained models on average',
    calibrated: 'The machine is measured, and this model’s choice of experts was recorded'
};
const LIMIT = {
    disk: 'the disk', dram: 'reading memory', cpu: 'the arithmetic of the cores', sync: 'fixed costs of each step',
    h2d: 'copies to the GPU', d2h: 'copies from the GPU', gpu: 'the GPU’s arithmetic', vram: 'reading GPU memory'
};
const bigFigure = (value, unit, what) => el('div', { class: 'figure' },
    el('div', { class: 'value' }, value, ' ', el('span', { class: 'unit' }, unit)), el('div', { class: 'what' }, what));

function limits(p, what) {
    if (!p.seconds) return '';
    const share = p.busy[p.binding] / p.seconds, wait = p.wait_s / p.seconds;
    let s = `${what} is limited by ${LIMIT[p.binding]}, busy ${pct(Math.min(share, 1))} of the time`;
    if (p.next !== p.binding) s += `; next comes ${LIMIT[p.next]} (${pct(Math.min(p.busy[p.next] / p.seconds, 1))})`;
    s += '. ';
    if (wait > 0.02) s += `The cores wait for bytes during ${pct(wait)} of it. `;
    return s;
}

function header() {
    const m = D.model, f = D.forecast, l = D.load;
    document.title = `${m.name}: sluice report`;
    $('title').textContent = `${m.name} on ${D.machine.name}`;
    const facts = [m.quant, count(m.n_params) + ' weights', bytes(m.bytes),
                   m.n_expert ? `${m.n_used} of ${m.n_expert} experts a token` : 'no experts',
                   `${D.plan.n_threads} threads`,
                   D.plan.budget_bytes ? bytes(D.plan.budget_bytes) + ' of RAM allowed' : 'no limit of RAM',
                   `context ${plain(D.plan.n_ctx)}`];
    $('subtitle').textContent = facts.filter(Boolean).join(' · ');
    $('headline').className = 'figures';
    if (l.n_gen)
        $('headline').append(bigFigure(digits(f.decode.tok_per_s), 'tok/s', `writing, behind ${plain(l.n_prompt)} tokens`));
    $('headline').append(bigFigure(digits(f.prompt.tok_per_s), 'tok/s', `reading a prompt of ${plain(l.n_prompt)}`));
    $('headline').append(bigFigure(secs(f.ttft_s).split('\u00a0')[0], secs(f.ttft_s).split('\u00a0')[1], 'to the first token'));
    $('headline').append(bigFigure(bytes(f.peak_bytes).split('\u00a0')[0], bytes(f.peak_bytes).split('\u00a0')[1], 'of RAM at most'));
    const v = $('verdict');
    v.append(el('p', {}, limits(l.n_gen ? f.decode : f.prompt, l.n_gen ? 'Writing' : 'Reading')));
    if (l.n_gen && f.hit_rate < 1)
        v.append(el('p', {}, `${pct(f.hit_rate)} of the experts that a token asks for are in RAM; for the others `
            + `${bytes(f.disk_bytes_per_token)} come from the disk for each token.`));
    if (f.hit_rate < 1 && !D.machine.disk.curves.length)
        v.append(el('p', {}, el('strong', {}, 'The disk was not measured'), ': what it takes to read from it counts as nothing here, '
            + 'so the real speed is lower. “sluice probe” measures it.'));
    v.append(el('p', {}, el('span', { class: 'grade' }, 'grade: ' + f.grade),
        (GRADES[f.grade] || '') + '. No plan of this kind can exceed '
        + `${tps(D.bound.decode.tok_per_s || D.bound.prompt.tok_per_s)} here, the bound of its resources.`));
}

function timeShares() {
    const g = grid('top', 'two');
    for (const [id, what] of [['decode', 'Writing'], ['prompt', 'Reading the prompt']]) {
        const p = D.forecast[id];
        if (!p.seconds) continue;
        const keys = Object.keys(p.busy).filter(r => p.busy[r] > 0).sort((a, b) => p.busy[b] - p.busy[a]);
        const rows = keys.map(r => ({ name: resourceName(r), s: p.busy[r], c: () => resourceColour(r) }));
        if (p.wait_s > 0) rows.push({ name: 'cores wait for bytes', s: p.wait_s, c: () => colour('wait') });
        figure(g, 'busy-' + id, `${what}: how busy is what`,
            'Share of the time in which each part is at work; the longest bar is the limit.',
            44 + 30 * rows.length, () => config('bar',
                [{ data: rows.map(r => 100 * Math.min(r.s / p.seconds, 1)), backgroundColor: rows.map(r => r.c()),
                   barThickness: 16 }],
                { x: axis('', v => v + '\u00a0%', { min: 0, max: 100 }),
                  y: names(v => rows[v].name) },
                i => `${rows[i.dataIndex].name}: ${secs(rows[i.dataIndex].s)} of ${secs(p.seconds)}`,
                { labels: rows.map(r => r.name), indexAxis: 'y' }),
            null, table(`${what}: busy seconds of ${secs(p.seconds)}`,
                [['part', r => r.name], ['busy', r => secs(r.s), 1], ['share', r => pct(r.s / p.seconds), 1]], rows));
    }
}

/* n shades of one meaning's colour, from full to pale. */
const shade = (name, i, n) => colour(name) + ['ff', 'd0', 'a4', '7c', '58', '40'][Math.min(Math.round(i * 5 / Math.max(n - 1, 3)), 5)];

function machine() {
    const m = D.machine;
    const said = { datasheet: 'Described by data sheets', quick: 'Measured for two seconds', measured: 'Measured' };
    say('machine', `${m.name}: ${plain(m.cores)} cores, ${plain(m.hw_threads)} hardware threads, `
        + `${bytes(m.ram_bytes)} of memory, ${m.l3_bytes ? bytes(m.l3_bytes) + ' of last cache, ' : ''}`
        + `instructions ${m.isa || 'plain C'}. ${said[m.source] || ''}. ${m.notes ? m.notes.replace(/\.?$/, '.') : ''}`
        + (m.disk.latency_s ? ` One read of 4 KiB takes ${secs(m.disk.latency_s)}.` : ''));
    for (const u of m.gpus)
        say('machine', `${u.name}: ${bytes(u.vram_bytes)}, ${rate(u.vram_bytes_s)} from its memory, `
            + `${scaled(u.flops_s, [[1e12, 'TFLOP/s'], [1e9, 'GFLOP/s']])} in 16 bits, ${rate(u.h2d_bytes_s)} to it. `
            + 'The forecasts of this page do not use it: sluice computes on the CPU.');
    const g = grid('machine', 'three');
    const threads = m.dram.map(p => p.threads);
    figure(g, 'dram', 'Memory by threads', 'What so many threads read together: every token needs its weights once.', 230,
        () => config('line', [line('read', m.dram.map(p => ({ x: p.threads, y: p.bytes_s / 1e9 })), colour('dram'))],
            { x: axis('threads', plain, { type: threads.length > 5 ? 'logarithmic' : 'linear',
                                          ...at(threads.length > 10 ? threads.filter((t, i) => i % 2 === 0) : threads) }),
              y: axis('GB/s', plain, { beginAtZero: true }) },
            i => `${i.raw.x} threads: ${rate(i.raw.y * 1e9)}`),
        null, table('Memory reads by threads', [['threads', r => plain(r.threads), 1], ['read', r => rate(r.bytes_s), 1]], m.dram));
    if (m.disk.curves.length) {
        const curves = m.disk.curves, depths = [...new Set(curves.flatMap(c => c.points.map(p => p.depth)))].sort((a, b) => a - b);
        figure(g, 'disk', 'Disk by reads in flight', 'Small reads need many in flight; large ones fill the drive sooner.', 230,
            () => config('line', curves.map((c, k) => line(bytes(c.bytes), c.points.map(p => ({ x: p.depth, y: p.bytes_s / 1e9 })), shade('disk', curves.length - 1 - k, curves.length))),
                { x: axis('reads in flight', plain, { type: 'logarithmic', ...at(depths) }),
                  y: axis('GB/s', plain, { beginAtZero: true }) },
                i => `${i.raw.x} reads of ${i.dataset.label}: ${rate(i.raw.y * 1e9)}`),
            () => curves.map((c, k) => [bytes(c.bytes), shade('disk', curves.length - 1 - k, curves.length)]),
            table(`Disk, past the page cache${m.disk.where ? ': ' + m.disk.where : ''}`,
                [['in flight', r => plain(r), 1], ...curves.map(c => [bytes(c.bytes), d => {
                    const p = c.points.find(q => q.depth === d);
                    return p ? rate(p.bytes_s) : '';
                }, 1])], depths));
    }
    if (m.gemm.length) {
        const rows = [...new Set(m.gemm.flatMap(c => c.points.map(p => p.rows)))].sort((a, b) => a - b);
        figure(g, 'gemm', 'Multiplying by rows', `With few rows the weights’ way from memory counts, with many the arithmetic (${plain(m.gemm[0].threads)} threads).`,
            230, () => config('line', m.gemm.map((c, k) => line(c.type, c.points.map(p => ({ x: p.rows, y: p.ops_s / 1e9 })), shade('cpu', k, m.gemm.length),
                    c.measured ? {} : { borderDash: [5, 4] })),
                { x: axis('rows of activations', plain, { type: 'logarithmic', ...at(rows.filter(r => Number.isInteger(Math.log2(r)) && Math.log2(r) % 2 === 0)) }),
                  y: axis('GMAC/s', plain, { type: 'logarithmic', ...decades }) },
                i => `${i.dataset.label}, ${i.raw.x} rows: ${ops(i.raw.y * 1e9)}`),
            () => m.gemm.map((c, k) => [c.type + (c.measured ? '' : ' (derived)'), shade('cpu', k, m.gemm.length), !c.measured]),
            table('Multiply-adds a second by rows', [['rows', r => plain(r), 1], ...m.gemm.map(c => [c.type, r => {
                const p = c.points.find(q => q.rows === r);
                return p ? ops(p.ops_s) : '';
            }, 1])], rows));
    }
}

const CLASS = { embedding: 'other', attention: 'cpu2', shared: 'shared', experts: 'cpu', kv: 'kv', work: 'wait' };

function modelBytes() {
    const m = D.model, bars = D.bytes.bars, parts = D.bytes.parts.filter(p => bars.some(b => p[b.key] > 0));
    const sum = b => parts.reduce((s, p) => s + p[b.key], 0);
    say('bytes', m.n_expert
        ? `${m.arch}: ${plain(m.n_layer)} layers, ${plain(m.n_moe_layers)} of them with ${plain(m.n_expert)} experts of ${bytes(m.expert_bytes)}; `
          + `a token uses ${plain(m.n_used)}. ${m.exact ? 'Bytes are those of the file.' : 'Bytes are computed from the published dimensions.'}`
        : `${m.arch}: ${plain(m.n_layer)} layers without experts; every token needs every weight.`);
    figure(grid('bytes'), 'bytes', 'Where the bytes are',
        'Each bar is a whole of its own. A token touches a small part of the experts: why they may stay on disk.',
        56 + 46 * bars.length, () => config('bar', parts.map(p => ({
                label: p.name, data: bars.map(b => sum(b) ? 100 * p[b.key] / sum(b) : 0), backgroundColor: colour(CLASS[p.id]),
                barThickness: 22, borderWidth: 0 })),
            { x: axis('', v => v + '\u00a0%', { stacked: true, min: 0, max: 100 }),
              y: names(v => [bars[v].name, bytes(sum(bars[v]))], { stacked: true }) },
            i => `${bars[i.dataIndex].name}, ${i.dataset.label}: ${bytes(parts[i.datasetIndex][bars[i.dataIndex].key])}`,
            { labels: bars.map(b => b.name), indexAxis: 'y', interaction: { mode: 'nearest', intersect: true } }),
        () => parts.map(p => [p.name, colour(CLASS[p.id])]),
        table('Bytes by part', [['part', p => p.name], ...bars.map(b => [b.name, p => bytes(p[b.key]), 1])],
            [...parts, Object.assign({ name: 'together' }, ...bars.map(b => ({ [b.key]: sum(b) })))]));
}

function roofline() {
    const r = D.roofline;
    const all = r.stages.filter(s => s.ops_s > 0 && s.intensity > 0);
    if (!all.length) return drop('roofline');
    say('roofline', 'A stage on the slope waits for bytes: only fewer bytes or a faster memory help it. One under the flat lines computes. '
        + 'Reading a prompt multiplies each weight by many rows, so its points lie to the right.');
    const xs = all.map(s => s.intensity), x0 = 10 ** Math.floor(Math.log10(Math.min(...xs, 0.3))), top = Math.max(r.int8_ops_s, r.f32_ops_s);
    const x1 = 10 ** Math.ceil(Math.log10(Math.max(...xs, 2 * top / r.dram_bytes_s)));
    const y0 = 10 ** Math.floor(Math.log10(0.6 * Math.min(...all.map(s => s.ops_s), x0 * r.dram_bytes_s * 2) / 1e9));
    const roof = (bw, peak) => [{ x: x0, y: x0 * bw / 1e9 }, { x: peak / bw, y: peak / 1e9 }, { x: x1, y: peak / 1e9 }];
    const quiet = { quiet: true, pointRadius: 0, pointHoverRadius: 0, clip: 0 };
    const make = () => {
        const lines = [line('memory', roof(r.dram_bytes_s, r.int8_ops_s || top), colour('dram'), quiet)];
        if (r.f32_ops_s) lines.push(line('float32', [{ x: r.f32_ops_s / r.dram_bytes_s, y: r.f32_ops_s / 1e9 }, { x: x1, y: r.f32_ops_s / 1e9 }],
            colour('dram'), { ...quiet, borderDash: [5, 4], borderWidth: 1.5 }));
        if (r.disk_bytes_s) lines.push(line('disk', roof(r.disk_bytes_s, top).slice(0, 2), colour('disk'), { ...quiet, borderWidth: 1.5 }));
        const points = ['decode', 'prompt'].map(p => {
            const list = all.filter(s => s.phase === p);
            return Object.assign(line(p, list.map(s => ({ x: s.intensity, y: s.ops_s / 1e9, s })), colour(p === 'decode' ? 'line' : 'read')),
                { showLine: false, pointRadius: 5, pointHoverRadius: 7, pointStyle: p === 'decode' ? 'circle' : 'rectRot',
                  labels: list.map(s => s.stage) });
        });
        return config('scatter', [...lines, ...points],
            { x: axis('multiply-adds for each byte from memory', tick, { type: 'logarithmic', min: x0, max: x1, ...decades }),
              y: axis('GMAC/s', tick, { type: 'logarithmic', min: y0, max: 10 ** Math.ceil(Math.log10(top / 1e9) + 0.05), ...decades }) },
            i => `${i.raw.s.phase}, ${i.raw.s.stage}: ${ops(i.raw.s.ops_s)}, ${digits(i.raw.x)} for each byte, ${secs(i.raw.s.seconds)} a pass`,
            { plugins: [beside], padding: { top: 10 } });
    };
    figure(grid('roofline'), 'roofline', 'Roofline', `Both axes are logarithmic. Points are the forecast’s stages, all layers together, in one pass of ${plain(r.rows)} rows or of one token.`,
        small() ? 340 : 420, make, () => [['writing', colour('line')], ['reading a prompt', colour('read')], ['memory and int8 arithmetic', colour('dram')],
            ...(r.f32_ops_s ? [['float32 arithmetic', colour('dram'), 1]] : []), ...(r.disk_bytes_s ? [['disk', colour('disk')]] : [])],
        table('Stages of a pass', [['pass', s => s.phase === 'decode' ? 'one token' : `${plain(r.rows)} rows`], ['stage', s => s.stage],
            ['multiply-adds', s => count(s.ops), 1], ['bytes', s => bytes(s.bytes), 1], ['for each byte', s => digits(s.intensity), 1],
            ['time', s => secs(s.seconds), 1], ['speed', s => s.ops_s ? ops(s.ops_s) : NONE, 1]], r.stages));
}

/* One curve of bound and forecast over x. value: of a forecast. */
function sweepFigure(g, id, title, words, s, xname, xfmt, yname, value, binding, yscale) {
    const pts = s.points.filter(p => p.forecast);
    if (pts.length < 2) return;
    const lo = pts[0].x / s.unit, hi = pts[pts.length - 1].x / s.unit;
    const scale = s.log ? { type: 'logarithmic', ...powers(lo, hi) } : { type: 'linear' };
    const xy = of => pts.filter(p => p[of]).map(p => ({ x: p.x / s.unit, y: value(p[of]), p }));
    figure(g, id, title, words, 270, () => config('line', [
            line('forecast', xy('forecast'), colour('line'), { pointRadius: 4, pointHoverRadius: 6,
                pointBackgroundColor: pts.map(p => resourceColour(p.forecast[binding])),
                pointBorderColor: pts.map(p => resourceColour(p.forecast[binding])) }),
            line('bound', xy('bound'), colour('bound'), { borderDash: [5, 4], pointRadius: 0, borderWidth: 1.5 })],
        { x: axis(xname, xfmt, { ...scale, min: lo, max: hi }),
          y: axis(yname, tick, yscale || { beginAtZero: true }) },
        i => `${i.dataset.label} at ${xfmt(i.raw.x)} ${xname}: ${digits(i.raw.y)} ${yname}`
             + (i.dataset.label === 'forecast' ? `, ${resourceName(i.raw.p.forecast[binding])}` : ''),
        { plugins: s.at ? [mark(s.at / s.unit, 'this plan')] : [] }),
        () => [['forecast', colour('line')], ['bound', colour('bound'), 1],
               ...[...new Set(pts.map(p => p.forecast[binding]))].map(r => ['limit: ' + resourceName(r), resourceColour(r)])],
        null);
}

function sweepTable(id, title, s, xname, xfmt, gen) {
    const known = s.points.filter(p => p.forecast);
    const num = (name, f) => [name, p => f(p), 1];
    $(id).append(el('details', HAVE_CHARTS ? {} : { open: '' }, el('summary', {}, 'Numbers'), table(title, [
        num(xname, p => xfmt(p.x)), num('RAM', p => bytes(p.forecast.peak_bytes)),
        ...(gen ? [num('writing', p => tps(p.forecast.decode_tok_per_s)), num('its bound', p => tps(p.bound.decode_tok_per_s)),
                   ['limit', p => resourceName(p.forecast.decode_binding)], num('hits', p => pct(p.forecast.hit_rate))] : []),
        num('reading', p => tps(p.forecast.prompt_tok_per_s)), num('its bound', p => tps(p.bound.prompt_tok_per_s)),
        ['limit', p => resourceName(p.forecast.prompt_binding)], num('first token', p => secs(p.forecast.ttft_s))], known)));
}

function sweeps() {
    const s = D.sweeps, gen = D.load.n_gen > 0;
    if (!s.ram || s.ram.points.length < 2) drop('memory');
    else {
        say('memory', `The same load and choices for each amount of RAM that the model may take, its weights placed anew. Below ${bytes(s.ram.floor)} nothing runs; `
            + `from ${bytes(s.ram.whole)} on, all weights stay in RAM and more of it gains nothing.`);
        const g = grid('memory', 'two');
        if (gen) sweepFigure(g, 'ram-decode', 'Writing', 'Points have the colour of what limits there; the dashed line cannot be passed.',
            s.ram, 'GiB of RAM', tick, 'tok/s', f => f.decode_tok_per_s, 'decode_binding');
        sweepFigure(g, 'ram-prompt', 'Reading a prompt', 'A pass of many rows wants nearly every expert, so slots help less.',
            s.ram, 'GiB of RAM', tick, 'tok/s', f => f.prompt_tok_per_s, 'prompt_binding');
        sweepTable('memory', 'By RAM', s.ram, 'RAM allowed', bytes, gen);
    }
    if (!s.ctx || s.ctx.points.length < 2) drop('context');
    else {
        say('context', 'Every token reads the keys and values of those before it, and they take RAM from the experts.');
        const g = grid('context', 'two');
        if (gen) sweepFigure(g, 'ctx-decode', 'Writing at that length', '', s.ctx, 'tokens of context', plain, 'tok/s', f => f.decode_tok_per_s, 'decode_binding');
        sweepFigure(g, 'ctx-ttft', 'Time to the first token behind it', '', s.ctx, 'tokens of context', plain, 's', f => f.ttft_s, 'prompt_binding', { type: 'logarithmic', ...decades });
        sweepTable('context', 'By context', s.ctx, 'context', plain, gen);
    }
    if (!s.rows || s.rows.points.length < 2) drop('chunk');
    else {
        say('chunk', 'A prompt goes through the model in passes of so many rows. More rows use each weight that was read more often; their activations take RAM.');
        sweepFigure(grid('chunk', 'two'), 'rows', 'Reading a prompt', '', s.rows, 'rows a pass', plain, 'tok/s', f => f.prompt_tok_per_s, 'prompt_binding');
        sweepTable('chunk', 'By rows of a pass', s.rows, 'rows', plain, gen);
    }
    lens();
}

/* Bounds of what the engine has no path for yet: many sequences, a GPU. */
function lens() {
    const list = [['batch', D.sweeps.batch, 'sequences', plain], ['vram', D.sweeps.vram, 'GiB of GPU memory', tick]]
        .filter(([, t]) => t && t.curves.some(c => c.points.length > 1));
    if (!list.length) return drop('batch');
    say('batch', 'Upper bounds by closed forms (sluice has no path of this kind yet, so nothing is simulated): what the parts allow if all overlap.');
    const g = grid('batch', 'two'), dashes = [[], [5, 4]];
    for (const [id, t, name, fmt] of list) {
        const curves = t.curves.filter(c => c.points.length > 1), all = curves.flatMap(c => c.points), lo = Math.min(...all.map(p => p.x)) / t.unit,
            hi = Math.max(...all.map(p => p.x)) / t.unit, scale = t.log ? { type: 'logarithmic', ...powers(lo, hi) } : { type: 'linear' };
        figure(g, id, t.title, t.words, 270, () => config('line', curves.map((c, k) =>
                line(c.name, c.points.map(p => ({ x: p.x / t.unit, y: p.tok_per_s, p })), colour('bound'), { borderDash: dashes[k % 2], pointRadius: 4,
                    pointBackgroundColor: c.points.map(p => resourceColour(p.binding)), pointBorderColor: c.points.map(p => resourceColour(p.binding)) })),
                { x: axis(name, fmt, { ...scale, min: lo, max: hi }),
                  y: axis('tok/s', tick, { beginAtZero: true }) },
                i => `${i.dataset.label}, ${fmt(i.raw.x)} ${name}: ${tps(i.raw.y)}, ${resourceName(i.raw.p.binding)}`,
                { plugins: t.at ? [mark(t.at / t.unit, t.mark)] : [] }),
            () => [...curves.map((c, k) => [c.name, colour('bound'), k % 2]), ...[...new Set(all.map(p => p.binding))].map(r => ['limit: ' + resourceName(r), resourceColour(r)])],
            table(t.title, [['', r => r.name], [name, r => fmt(r.x / t.unit), 1], ['bound', r => tps(r.tok_per_s), 1], ['limit', r => resourceName(r.binding)]],
                curves.flatMap(c => c.points.map(p => ({ name: c.name, ...p })))));
    }
}

/* The order is that of the kinds in the data. */
const KIND = { experts: ['experts', 'cpu'], attention: ['attention and router', 'cpu2'], head: ['embedding and head', 'other'],
               wait: ['waiting for bytes', 'wait'], disk: ['disk reads', 'disk'] };

/* Lanes of a pass, a column a pixel: what shares a pixel's time shares its height, so that what is
 * too short to be seen alone still counts. */
function lanes(names, kinds, spans, from, to) {
    return {
        id: 'lanes',
        beforeDatasetsDraw(chart) {
            const a = chart.chartArea, n = Math.max(1, Math.round(a.right - a.left)), scale = n / (to - from), c = chart.ctx, left = Math.round(a.left);
            for (const [k, name] of names.entries()) {
                const mid = chart.scales.y.getPixelForValue(k), shares = kinds.map(() => new Float64Array(n));
                for (const s of spans) {
                    if ((s.kind === 'disk') !== (name === 'disk')) continue;
                    const x0 = Math.max(0, (s.from - from) * scale), x1 = Math.min(n, (s.to - from) * scale), of = shares[kinds.indexOf(s.kind)];
                    for (let x = Math.floor(x0); x < x1; x++) of[x] += Math.min(x + 1, x1) - Math.max(x, x0);
                }
                for (let x = 0; x < n; x++) {
                    let y = mid + LANE / 2;
                    for (const [q, kind] of kinds.entries()) {
                        const h = LANE * Math.min(shares[q][x], 1);
                        if (h <= 0) continue;
                        c.fillStyle = colour(KIND[kind][1]);
                        c.fillRect(left + x, y - h, 1, h);
                        y -= h;
                    }
                }
            }
        }
    };
}
const LANE = 30;

function passFigure(g, id, title, words, t, from, to) {
    const span = to - from, unit = span < 2e-3 ? [1e-6, 'µs'] : span < 2 ? [1e-3, 'ms'] : [1, 's'];
    const rows = t.spans.some(s => s.kind === 'disk') ? ['cores', 'disk'] : ['cores'];
    const kinds = Object.keys(KIND).filter(k => t.spans.some(s => s.kind === k));
    const inside = t.spans.filter(s => s.to > from && s.from < to);
    figure(g, id, title, words, 70 + 44 * rows.length, () => config('bar', kinds.map(k => ({    /* for the pointer; lanes draws */
            label: KIND[k][0], grouped: false, barThickness: LANE, backgroundColor: 'transparent', borderWidth: 0,
            data: inside.filter(s => s.kind === k).map(s => ({ y: k === 'disk' ? 'disk' : 'cores', s,
                x: [(Math.max(s.from, from) - from) / unit[0], (Math.min(s.to, to) - from) / unit[0]] })) })),
        { x: axis(unit[1], tick, { min: 0, max: span / unit[0] }), y: names(v => rows[v]) },
        i => `${i.dataset.label}${i.raw.s.layer === null ? '' : ', layer ' + i.raw.s.layer}: ${secs(i.raw.s.to - i.raw.s.from)}`,
        { labels: rows, indexAxis: 'y', interaction: { mode: 'nearest', intersect: true }, plugins: [lanes(rows, kinds, inside, from, to)] }),
        () => kinds.map(k => [KIND[k][0], colour(KIND[k][1])]), null);
}

function passes() {
    const t = {};
    for (const [k, p] of Object.entries(D.timeline))
        t[k] = { ...p, spans: p.spans.map(([kind, layer, from, to]) => ({ kind: Object.keys(KIND)[kind], layer, from, to })) };
    const have = ['decode', 'prompt'].filter(k => t[k] && t[k].spans.length);
    if (!have.length) return drop('passes');
    say('passes', 'What the simulation did when, in a typical pass. Reads of a layer cannot begin before its router has chosen. Where several things '
        + 'happen within one pixel, each has its share of the height.');
    const g = grid('passes');
    const sums = [];
    for (const k of have) {
        const p = t[k], name = k === 'decode' ? 'One token' : `A pass of ${plain(p.rows)} rows of a prompt`;
        passFigure(g, 'pass-' + k, name, `${secs(p.seconds)} in all${p.left_out ? ` (not all of its steps are shown)` : ''}.`, p, 0, p.seconds);
        const mid = Math.floor(D.model.n_layer / 2), three = p.spans.filter(s => s.layer !== null && s.layer >= mid && s.layer < mid + 3);
        if (D.model.n_layer > 8 && three.length)
            passFigure(g, 'zoom-' + k, `${name}: layers ${mid} to ${mid + 2}`, 'The same, enlarged.', p,
                three.reduce((a, s) => Math.min(a, s.from), Infinity), three.reduce((a, s) => Math.max(a, s.to), 0));
        for (const q of Object.keys(KIND)) {
            const of = p.spans.filter(s => s.kind === q);
            if (of.length) sums.push({ name, what: KIND[q][0], s: of.reduce((a, s) => a + s.to - s.from, 0), of: p.seconds });
        }
    }
    $('passes').append(el('details', HAVE_CHARTS ? {} : { open: '' }, el('summary', {}, 'Numbers'), table('Where the time of a pass goes', [['pass', r => r.name],
        ['what', r => r.what], ['time', r => secs(r.s), 1], ['of the pass', r => pct(r.s / r.of, 1), 1]], sums)));
}

function buy() {
    const f = D.forecast, gen = D.load.n_gen > 0;
    const base = gen ? f.decode.tok_per_s : f.prompt.tok_per_s;
    const list = D.gains.map(x => ({ ...x, gain: gen ? x.decode_tok_per_s : x.prompt_tok_per_s })).sort((a, b) => b.gain - a.gain);
    if (!list.length) return drop('buy');
    const best = list[0], worth = best.gain > 0.01 * base;
    say('buy', worth ? `Most for ${gen ? 'writing' : 'reading'}: ${best.what}, ${digits(best.gain)} tok/s more (${signed(best.gain / base, 0)}). `
                       + 'Each row is planned anew with that much more of one thing.'
                     : 'None of these alone makes this model more than 1 % faster here.');
    figure(grid('buy'), 'gains', gen ? 'Tokens a second gained, writing' : 'Tokens a second gained, reading', '', 50 + 30 * list.length,
        () => config('bar', [{ data: list.map(x => Math.max(x.gain, 0)), backgroundColor: list.map(x => resourceColour(x.on)), barThickness: 16 }],
            { x: axis('tok/s', v => '+' + plain(v), { beginAtZero: true, suggestedMax: 0.02 * base }), y: names(v => list[v].what) },
            i => `${list[i.dataIndex].what}: +${tps(list[i.dataIndex].gain)}`, { labels: list.map(x => x.what), indexAxis: 'y' }), null,
        table('What more of one thing gains', [['more', x => x.what], ['writing', x => '+' + digits(x.decode_tok_per_s) + '\u00a0tok/s', 1],
            ['', x => signed(x.decode_tok_per_s / (f.decode.tok_per_s || 1)), 1], ['reading', x => '+' + digits(x.prompt_tok_per_s) + '\u00a0tok/s', 1],
            ['', x => signed(x.prompt_tok_per_s / (f.prompt.tok_per_s || 1)), 1]], list));
}

const QUANTITY = { decode_tok_per_s: 'writing, tok/s', prompt_tok_per_s: 'reading, tok/s', batch_tok_per_s: 'batch, tok/s', ttft_s: 'first token, s',
                   hit_rate: 'hits', bytes_per_token: 'bytes a token', disk_bytes_per_token: 'bytes a token', peak_rss_bytes: 'peak memory' };

function checked() {
    const rows = D.validation.flatMap(v => Object.entries(v.quantities).map(([name, q]) => ({ ...v, name, ...q })))
        .filter(r => r.predicted > 0 && r.measured > 0);
    if (!rows.length) {
        say('checked', 'No measurement is at hand. “sluice verify” predicts, runs and keeps both; “sluice report --log FILE” draws its log.');
        return;
    }
    const speeds = rows.filter(r => r.name.endsWith('tok_per_s'));
    const mean = speeds.reduce((s, r) => s + Math.abs(r.error), 0) / speeds.length, worst = speeds.reduce((s, r) => Math.max(s, Math.abs(r.error)), 0);
    const colds = speeds.filter(r => r.cold_error !== undefined);
    const without = colds.length ? `Without the recorded routing ${pct(colds.reduce((s, r) => s + Math.abs(r.cold_error), 0) / colds.length, 1)}. ` : '';
    if (speeds.length) say('checked', `${plain(speeds.length)} speeds were predicted before they were measured: off by ${pct(mean, 1)} on average, ${pct(worst, 1)} at worst. `
        + without + 'Bars through the points are the spread of repeated runs.');
    const g = grid('checked', 'two'), lo = Math.min(...speeds.map(r => Math.min(r.predicted, r.measured))), hi = Math.max(...speeds.map(r => Math.max(r.predicted, r.measured)));
    const groups = [['decode_tok_per_s', 'writing', 'line', 'circle'], ['prompt_tok_per_s', 'reading', 'read', 'rectRot'], ['batch_tok_per_s', 'batch', 'gpu', 'triangle']]
        .filter(q => speeds.some(r => r.name === q[0]));
    const key = () => groups.map(q => [q[1], colour(q[2])]);
    const points = xy => groups.map(q => {
        const list = speeds.filter(r => r.name === q[0]);
        return Object.assign(line(q[1], list.map(r => ({ ...xy(r), r })), colour(q[2])), { showLine: false, spreads: true, pointRadius: 4, pointStyle: q[3] });
    });
    const tip = i => `${i.raw.r.model}, ${i.raw.r.threads} threads, ${i.raw.r.budget_bytes ? bytes(i.raw.r.budget_bytes) : 'all in RAM'}, ${i.raw.r.grade}: `
                     + `${digits(i.raw.r.predicted)} predicted, ${digits(i.raw.r.measured)} measured`;
    if (speeds.length) {
        figure(g, 'predicted', 'Predicted and measured', 'On the line the forecast was right; above it, the machine was faster.', 330,
            () => config('scatter', [...points(r => ({ x: r.predicted, y: r.measured, low: r.runs ? Math.min(...r.runs) : r.measured * (1 - (r.spread || 0) / 2), high: r.runs ? Math.max(...r.runs) : r.measured * (1 + (r.spread || 0) / 2) })),
                    line('', [{ x: lo / 1.3, y: lo / 1.3 }, { x: hi * 1.3, y: hi * 1.3 }], colour('bound'), { quiet: true, pointRadius: 0, borderWidth: 1.2, borderDash: [5, 4] })],
                { x: axis('predicted, tok/s', tick, { type: 'logarithmic', min: lo / 1.3, max: hi * 1.3, ...decades }),
                  y: axis('measured, tok/s', tick, { type: 'logarithmic', min: lo / 1.3, max: hi * 1.3, ...decades }) }, tip, { plugins: [spreads] }), key, null);
        speeds.forEach((r, i) => { r.i = i + 1; });
        const most = 100 * Math.max(worst, ...speeds.map(r => Math.abs(r.error) + 0.7 * (r.spread || 0)), 0.06);
        figure(g, 'errors', 'Error of each', 'Above zero more was predicted than came. In the order of the log.', 330,
            () => config('scatter', [...points(r => ({ x: r.i, y: 100 * r.error, low: 100 * (r.predicted / (r.runs ? Math.max(...r.runs) : r.measured * (1 + (r.spread || 0) / 2)) - 1), high: 100 * (r.predicted / (r.runs ? Math.min(...r.runs) : r.measured * (1 - (r.spread || 0) / 2)) - 1) }))],
                { x: axis('', plain, { min: 0, max: speeds.length + 1, ticks: { display: false }, grid: { display: false, drawBorder: false } }),
                  y: axis('error', v => signed(v / 100, 0), { min: -Math.ceil(most), max: Math.ceil(most) }) }, tip, { plugins: [spreads] }), key, null);
    }
    $('checked').append(el('details', HAVE_CHARTS ? {} : { open: '' }, el('summary', {}, 'Numbers'), table('Predicted against measured', [
        ['date', r => String(r.date).slice(0, 10)], ['model', r => r.model], ['quant', r => r.quant], ['threads', r => plain(r.threads), 1],
        ['RAM', r => r.budget_bytes ? bytes(r.budget_bytes) : NONE, 1], ['grade', r => r.grade], ['what', r => QUANTITY[r.name] || r.name],
        ['predicted', r => amount(r.name, r.predicted), 1], ['measured', r => amount(r.name, r.measured), 1],
        ['error', r => signed(r.error), 1], ['spread', r => r.spread === undefined ? NONE : pct(r.spread, 1), 1]], rows)));
}
const amount = (name, v) => name.includes('bytes') ? bytes(v) : name.endsWith('_s') && !name.endsWith('per_s') ? secs(v)
    : name === 'hit_rate' ? pct(v, 1) : digits(v, 4);

function numbers() {
    const p = D.plan, f = D.forecast, b = D.bound;
    say('numbers', p.mode + '.');
    if (D.why.length) $('numbers').append(el('ul', { class: 'why' }, D.why.map(w => el('li', {}, w))));
    const g = grid('numbers', 'two');
    const two = (title, rows) => g.append(table(title, [['', r => r[0]], ['', r => r[1], 1]], rows));
    two('The plan', [['mode', p.weights], ['threads', plain(p.n_threads)], ['context', plain(p.n_ctx) + ' tokens'], ['sequences', plain(p.n_seq)],
        ['rows of a pass', plain(p.max_rows)], ['keys and values', `${bytes(p.kv_bytes)}, ${p.kv_type}`],
        ['dense weights in RAM', bytes(p.dense_bytes)], ...(p.n_experts ? [['experts with a slot', `${plain(p.n_slots)} of ${plain(p.n_experts)}`]] : []),
        ['slots', bytes(p.slots_bytes)], ['activations', bytes(p.scratch_bytes)], ['the process', bytes(p.process_bytes)],
        ['needed in all', bytes(p.need_bytes)], ['allowed', p.budget_bytes ? bytes(p.budget_bytes) : 'no limit'],
        ...(p.read_bytes ? [['disk reads', `${plain(p.read_depth)} of ${bytes(p.read_bytes)}`]] : [])]);
    const gen = D.load.n_gen > 0, both = k => [f[k], b[k]];
    const lines = [['forecast', a => tps(a.tok_per_s)], ['bound', (a, c) => tps(c.tok_per_s)],
        ['share of the bound', (a, c) => c.tok_per_s ? pct(a.tok_per_s / c.tok_per_s) : NONE], ['time', a => secs(a.seconds)],
        ['limit', a => resourceName(a.binding)], ['next limit', a => resourceName(a.next)],
        ['waiting for bytes', a => pct(a.wait_s / (a.seconds || 1), 1)], ['from the disk', a => bytes(a.disk_bytes)]];
    g.append(table(`Forecast, grade ${f.grade}: a prompt of ${plain(D.load.n_prompt)} tokens, then ${plain(D.load.n_gen)} more`,
        [['', r => r[0]], ...(gen ? [['writing', r => r[2] || r[1](...both('decode')), 1]] : []), ['reading', r => r[3] || r[1](...both('prompt')), 1]],
        [...lines, ['first token', null, NONE, secs(f.ttft_s)], ['hits', null, pct(f.hit_rate, 1), NONE],
         ['from the disk, a token', null, bytes(f.disk_bytes_per_token), NONE], ['peak memory', null, bytes(f.peak_bytes), bytes(f.peak_bytes)]]));
}

function finish() {
    for (const s of document.querySelectorAll('section'))
        $('contents').append(el('a', { href: '#' + s.id }, s.querySelector('h2').textContent), ' ');
    $('made').textContent = `Made by sluice ${D.sluice} on ${D.date}. This file is complete: it loads nothing.`
        + (HAVE_CHARTS ? ' Charts: Chart.js, MIT licence.' : ' This build of sluice has no chart library, so the numbers stand in tables.');
}

function redraw() {
    css = getComputedStyle(document.documentElement);
    if (HAVE_CHARTS) theme();
    for (const draw of charts) draw();
}
function theme() {
    Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
    Chart.defaults.color = colour('soft');
    Chart.defaults.plugins.tooltip.backgroundColor = colour('ink');
    Chart.defaults.plugins.tooltip.bodyColor = colour('bg');
}

if (HAVE_CHARTS) theme();
header();
timeShares();
machine();
modelBytes();
roofline();
sweeps();
passes();
buy();
checked();
numbers();
finish();
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw);
matchMedia('print').addEventListener('change', redraw);
})();
