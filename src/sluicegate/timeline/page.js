"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const OUTCOMES = ["active", "completed", "failed", "cancelled", "dropped"];
  const ROW = 18, BAR = 12, GAP = 10, RULER = 30;
  let D, inv, ev, wait, stream, T, count;
  // Tables "of" an invocation: a start for each, and the rows in between.
  let waitsOf, streamOf, emittedOf, causesOf, questionsOf, childrenOf;
  let lanes = [], laneOf, rowOf, height = 0, grouping = "step";
  const folded = new Set();
  let t0 = 0, scale = 1, scrollY = 0, width = 0, tall = 0, left = 200, ratio = 1;
  let selected = -1, related = null, match = null, matches = [], hovered = -1, showsPath = true;
  let ink = {}, hatch = null, dirty = false, chips = [];
  const canvas = $("canvas"), g = canvas.getContext("2d");

  // -- data ---------------------------------------------------------------------------------------

  async function load() {
    const element = $("data");
    // In a frame, the page around it has the data.
    if (!element) return new Promise((resolve) => document.addEventListener("renew", (event) => resolve(event.detail), { once: true }));
    let text = element.textContent;
    if (element.type === "application/gzip") {
      if (typeof DecompressionStream === "undefined") throw new Error("this browser cannot decompress the data; a newer one can");
      const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
      const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      text = await new Response(plain).text();
    }
    element.textContent = "";
    return JSON.parse(text);
  }

  function sums(column) {
    const found = new Float64Array(column.length);
    let value = 0;
    for (let i = 0; i < column.length; i++) found[i] = value += column[i];
    return found;
  }

  // Group rows by a key from 0 to size - 1; rows with the key -1 are in none.
  function grouped(keys, size) {
    const start = new Int32Array(size + 1);
    for (const key of keys) if (key >= 0) start[key + 1]++;
    for (let i = 0; i < size; i++) start[i + 1] += start[i];
    const place = start.slice(), rows = new Int32Array(start[size]);
    for (let i = 0; i < keys.length; i++) if (keys[i] >= 0) rows[place[keys[i]]++] = i;
    return (key) => rows.subarray(start[key], start[key + 1]);
  }

  function read(data) {
    D = data; T = data.texts; inv = data.inv; ev = data.ev; wait = data.wait; stream = data.stream;
    count = inv.step.length;
    for (const name of ["run", "number", "queued", "ready", "started"]) inv[name] = sums(inv[name]);
    for (const name of ["unwinding", "ended"]) inv[name] = Float64Array.from(inv[name], (more, i) => inv.started[i] + more);
    for (const name of ["at", "source", "taker"]) ev[name] = sums(ev[name]);
    for (const name of ["inv", "start"]) wait[name] = sums(wait[name]);
    for (const name of ["inv", "run", "at"]) stream[name] = sums(stream[name]);
    waitsOf = grouped(wait.inv, count);
    streamOf = grouped(stream.inv, count);
    emittedOf = grouped(ev.source, count);
    questionsOf = grouped(D.question.map((one) => one.inv), count);
    childrenOf = grouped(D.runs.map((one) => one.parent), count);
    ev.first = new Int32Array(ev.takers.length + 1);
    for (let i = 0; i < ev.takers.length; i++) ev.first[i + 1] = ev.first[i] + ev.takers[i];
    const of = new Int32Array(ev.taker.length);
    for (let i = 0; i < ev.takers.length; i++) of.fill(i, ev.first[i], ev.first[i + 1]);
    const into = grouped(ev.taker, count);
    causesOf = (one) => Array.from(into(one), (place) => of[place]);
    for (const part of D.path) part.inv ??= -1;
  }

  const takers = (event) => ev.taker.subarray(ev.first[event], ev.first[event + 1]);
  const name = (one) => `${T[inv.step[one]]} #${inv.number[one]}`;

  // -- lanes ----------------------------------------------------------------------------------------

  class Heap {
    constructor(less) { this.items = []; this.less = less; }
    get size() { return this.items.length; }
    push(item) {
      const a = this.items;
      let i = a.push(item) - 1;
      while (i > 0) {
        const up = (i - 1) >> 1;
        if (!this.less(a[i], a[up])) break;
        [a[i], a[up]] = [a[up], a[i]];
        i = up;
      }
    }
    pop() {
      const a = this.items, top = a[0], last = a.pop();
      if (a.length) {
        a[0] = last;
        for (let i = 0; ;) {
          let least = i;
          for (const down of [2 * i + 1, 2 * i + 2]) if (down < a.length && this.less(a[down], a[least])) least = down;
          if (least === i) break;
          [a[i], a[least]] = [a[least], a[i]];
          i = least;
        }
      }
      return top;
    }
  }

  function pack(members) {
    members.sort((a, b) => inv.started[a] - inv.started[b] || inv.ended[a] - inv.ended[b] || a - b);
    const free = new Heap((a, b) => a < b), busy = new Heap((a, b) => a[0] < b[0]), rows = [];
    for (const one of members) {
      while (busy.size && busy.items[0][0] <= inv.started[one]) free.push(busy.pop()[1]);
      const row = free.size ? free.pop() : rows.push([]) - 1;
      rows[row].push(one);
      rowOf[one] = row;
      busy.push([inv.ended[one], row]);
    }
    return rows.map(withCounts);
  }

  // How many of a row's first bars failed or were cancelled: bars narrower than a pixel show the worst.
  function withCounts(row) {
    const items = Int32Array.from(row), bad = [new Int32Array(row.length + 1), new Int32Array(row.length + 1)];
    for (let i = 0; i < row.length; i++) {
      bad[0][i + 1] = bad[0][i] + (inv.outcome[row[i]] === 2);
      bad[1][i + 1] = bad[1][i] + (inv.outcome[row[i]] === 3);
    }
    return { items, failed: bad[0], cancelled: bad[1] };
  }

  function branches() {
    const found = new Int32Array(count).fill(-1);
    for (let one = 0; one < count; one++) {
      const causes = causesOf(one);
      if (causes.length !== 1) continue;
      const by = ev.source[causes[0]];
      if (by < 0 || by >= one) continue;
      let made = 0;
      for (const event of emittedOf(by)) made += takers(event).length > 0;
      found[one] = found[by] >= 0 ? found[by] : made > 1 ? one : -1;
    }
    return found;
  }

  function keysOf(run) {
    if (grouping === "step") return [(one) => T[inv.step[one]], run.steps.map(([step]) => step)];
    if (grouping === "worker") return [(one) => `${T[inv.step[one]]} · ${inv.worker[one] < 0 ? "no worker" : inv.worker[one]}`, []];
    const branch = branches();
    return [(one) => (branch[one] < 0 ? "main line" : name(branch[one])), ["main line"]];
  }

  function arrange() {
    laneOf = new Int32Array(count).fill(-1);
    rowOf = new Int32Array(count);
    lanes = [];
    const inRun = grouped(inv.run, D.runs.length), children = new Map();
    D.runs.forEach((run, i) => {
      const parent = run.parent >= 0 ? inv.run[run.parent] : -1;
      children.set(parent, [...(children.get(parent) ?? []), i]);
    });
    const titles = D.runs.length > 1;
    const visit = (r, depth, isHidden) => {
      const run = D.runs[r];
      const key = `run ${r}`;
      if (titles && !isHidden) lanes.push({ key, run: r, depth, title: `${run.workflow} ${run.id}`, rows: [], members: [] });
      const inner = isHidden || folded.has(key);
      const [keyOf, first] = keysOf(run), groups = new Map(first.map((one) => [one, []]));
      for (const one of inRun(r)) {
        const group = keyOf(one);
        if (!groups.has(group)) groups.set(group, []);
        groups.get(group).push(one);
      }
      for (const [group, members] of groups) {
        const lane = { key: `${r} ${group}`, run: r, depth: depth + (titles ? 1 : 0), title: group, rows: pack(members), members, isHidden: inner };
        if (!inner) lanes.push(lane);
        for (const one of members) laneOf[one] = inner ? -1 : lanes.length - 1;
      }
      for (const child of children.get(r) ?? []) visit(child, depth + 1, inner);
    };
    for (const root of children.get(-1) ?? []) visit(root, 0, false);
    place();
  }

  function place() {
    let y = 28;
    for (const lane of lanes) {
      lane.y = y;
      lane.folded = folded.has(lane.key);
      lane.height = lane.key.startsWith("run ") ? 24 : (lane.folded ? 1 : Math.max(1, lane.rows.length)) * ROW;
      y += lane.height + GAP;
    }
    height = y;
    $("tall").style.height = `${height}px`;
    draw();
  }

  const laneAt = (y) => {
    let low = 0, high = lanes.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (lanes[middle].y + lanes[middle].height + GAP <= y) low = middle + 1; else high = middle;
    }
    return low;
  };

  // The first bar of a row that ends at or after a time; the bars of a row do not overlap.
  function firstEnding(items, time) {
    let low = 0, high = items.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (inv.ended[items[middle]] < time) low = middle + 1; else high = middle;
    }
    return low;
  }
  function firstStarting(items, time, low) {
    let high = items.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (inv.started[items[middle]] < time) low = middle + 1; else high = middle;
    }
    return low;
  }

  // -- drawing --------------------------------------------------------------------------------------

  function colors() {
    const style = getComputedStyle(document.documentElement);
    for (const one of ["paper", "wash", "ink", "muted", "faint", "accent", "done", "fail", "cancel", "unwind", "wait", "person", "queue", "stream", "path"]) ink[one] = style.getPropertyValue(`--${one}`).trim();
    ink.mono = style.getPropertyValue("--mono");
    ink.sans = style.getPropertyValue("--sans");
    const tile = document.createElement("canvas");
    tile.width = tile.height = 6;
    const p = tile.getContext("2d");
    p.strokeStyle = ink.cancel;
    p.lineWidth = 1.6;
    for (const x of [-6, 0, 6]) { p.beginPath(); p.moveTo(x, 6); p.lineTo(x + 6, 0); p.stroke(); }
    hatch = g.createPattern(tile, "repeat");
  }

  function resize() {
    const box = $("view").getBoundingClientRect();
    const shown = width > 0 ? (width - left) / scale : 0;
    width = box.width; tall = box.height; ratio = devicePixelRatio || 1;
    left = width < 560 ? 112 : 210;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(tall * ratio);
    if (shown) scale = (width - left) / shown;
    draw();
  }

  const X = (time) => left + (time - t0) * scale;
  const timeAt = (x) => t0 + (x - left) / scale;

  function draw() {
    if (dirty) return;
    dirty = true;
    requestAnimationFrame(() => { dirty = false; paint(); });
  }

  function clamp() {
    const whole = D.end * 1.02 + 1, least = (width - left) / whole;
    scale = Math.min(Math.max(scale, least), 200);
    const shown = (width - left) / scale;
    t0 = Math.min(Math.max(t0, -shown * 0.01), Math.max(-shown * 0.01, whole - shown));
    scrollY = Math.min(Math.max(0, scrollY), Math.max(0, height - tall + RULER));
  }

  function paint() {
    if (!D || width < 1) return;
    clamp();
    if (Math.abs($("scroll").scrollTop - scrollY) > 1) $("scroll").scrollTop = scrollY;
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.globalAlpha = 1;
    g.fillStyle = ink.paper;
    g.fillRect(0, 0, width, tall);
    grid();
    g.save();
    g.beginPath();
    g.rect(left, RULER, width - left, tall - RULER);
    g.clip();
    let seen = 0;
    const few = [];
    for (let i = laneAt(scrollY); i < lanes.length && lanes[i].y - scrollY < tall; i++) seen += drawLane(lanes[i], few);
    if (showsPath) drawPath();
    drawArrows(seen <= 40 && selected < 0 ? few : null);
    drawCancellations();
    g.restore();
    labels();
    ruler();
  }

  function step() {
    const rough = 90 / scale, power = 10 ** Math.floor(Math.log10(rough));
    return Math.max(1, [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough));
  }

  function grid() {
    const every = step();
    g.fillStyle = ink.faint;
    for (let at = Math.max(0, Math.ceil(t0 / every) * every); X(at) < width; at += every) g.fillRect(Math.round(X(at)), RULER - 6, 1, tall);
  }

  function ruler() {
    g.fillStyle = ink.paper;
    g.fillRect(0, 0, width, RULER - 6);
    const every = step();
    g.font = `11px ${ink.sans}`;
    g.fillStyle = ink.muted;
    g.textBaseline = "middle";
    for (let at = Math.max(0, Math.ceil(t0 / every) * every); X(at) < width - 20; at += every) g.fillText(duration(at, every), X(at) + 3, 13);
    g.fillStyle = ink.faint;
    g.fillRect(0, RULER - 6, width, 1);
  }

  const yOf = (lane, row) => RULER + lane.y - scrollY + (lane.folded ? 0 : row * ROW);

  function drawLane(lane, few) {
    if (lane.key.startsWith("run ")) { runBar(lane); return 0; }
    if (lane.folded) { drawFolded(lane); return 0; }
    const boxes = new Map(), first = Math.max(0, Math.floor((scrollY - lane.y) / ROW) - 1);
    let seen = 0;
    for (let row = first; row < lane.rows.length; row++) {
      const y = yOf(lane, row);
      if (y > tall) break;
      seen += drawRow(lane.rows[row], y, boxes, few);
    }
    flush(boxes);
    return seen;
  }

  function add(boxes, key, x, y, w, h) {
    let list = boxes.get(key);
    if (!list) boxes.set(key, (list = []));
    const last = list.length - 4;
    if (last >= 0 && list[last + 1] === y && list[last] + list[last + 2] === x) list[last + 2] += w;
    else list.push(x, y, w, h);
  }

  function flush(boxes) {
    for (const [key, list] of boxes) {
      const dim = key.startsWith("-");
      g.globalAlpha = dim ? 0.18 : 1;
      g.fillStyle = ink[dim ? key.slice(1) : key];
      for (let i = 0; i < list.length; i += 4) g.fillRect(list[i], list[i + 1], list[i + 2], list[i + 3]);
    }
    g.globalAlpha = 1;
  }

  function drawRow(row, y, boxes, few) {
    const { items } = row, limit = timeAt(width);
    let seen = 0, before = -Infinity;
    for (let i = Math.max(0, firstEnding(items, t0)); i < items.length; i++) {
      const one = items[i];
      if (inv.started[one] > limit && Math.max(inv.queued[one], before) > limit) break;
      const x = X(inv.started[one]), w = (inv.ended[one] - inv.started[one]) * scale;
      if (w < 1.5) {
        const pixel = Math.floor(x), next = Math.max(i + 1, firstStarting(items, timeAt(pixel + 1), i));
        let key = row.failed[next] > row.failed[i] ? "fail" : row.cancelled[next] > row.cancelled[i] ? "cancel" : "done";
        if (match && !anyMatch(items, i, Math.min(next, i + 64))) key = `-${key}`;
        add(boxes, key, pixel, y, 1, BAR);
        seen++;
        if (few.length < 80) few.push(one);
        if (one === selected) outline(x, y, 2);
        before = inv.ended[items[next - 1]];
        i = next - 1;
        continue;
      }
      // A narrow bar has no room for more than its outcome: it is drawn together with others.
      if (w < 6 && one !== selected && one !== hovered) narrow(one, x, w, y, boxes);
      else drawBar(one, x, w, y, before);
      before = inv.ended[one];
      seen++;
      if (few.length < 80) few.push(one);
    }
    return seen;
  }

  function anyMatch(items, from, to) {
    for (let i = from; i < to; i++) if (match[items[i]]) return true;
    return false;
  }

  function narrow(one, x, w, y, boxes) {
    const from = Math.round(x), key = inv.outcome[one] === 2 ? "fail" : inv.outcome[one] === 3 ? "cancel" : "done";
    add(boxes, match && !match[one] ? `-${key}` : key, from, y, Math.max(1, Math.round(x + w) - from - (w > 3)), BAR);
  }

  function drawBar(one, x, w, y, before) {
    const outcome = inv.outcome[one], dim = match && !match[one];
    const queued = Math.max(inv.queued[one], before), ready = Math.max(inv.ready[one], queued);
    g.globalAlpha = dim ? 0.18 : 1;
    if (ready > queued) dots(X(queued), X(ready), y + BAR / 2);
    if (inv.started[one] > ready) { g.fillStyle = ink.queue; g.fillRect(X(ready), y + 4.5, (inv.started[one] - ready) * scale, 3); }
    const unwinding = Math.min(inv.unwinding[one], inv.ended[one]), run = (unwinding - inv.started[one]) * scale;
    const from = Math.max(x, left - 4), to = Math.min(x + w, width + 4);
    g.fillStyle = outcome === 2 ? ink.fail : outcome === 3 ? ink.paper : ink.done;
    g.beginPath();
    g.roundRect(from, y, Math.max(0.5, Math.min(x + (outcome === 3 ? w : run), to) - from), BAR, w > 8 ? 2.5 : 0);
    g.fill();
    if (outcome === 3) { g.fillStyle = ink.done; g.fillRect(from, y + 1, Math.max(0, Math.min(x + run, to) - from), BAR - 2); }
    for (const place of waitsOf(one)) wash(X(wait.start[place]), wait.length[place] * scale, y, ink.wait, ink.done, T[wait.subject[place]] || T[wait.kind[place]]);
    for (const place of questionsOf(one)) wash(X(D.question[place].start), (D.question[place].end - D.question[place].start) * scale, y, ink.person, ink.person, D.question[place].type);
    if (unwinding < inv.ended[one]) unwind(X(unwinding), x + w, y);
    if (outcome === 3) { g.strokeStyle = ink.cancel; g.lineWidth = 1.5; g.strokeRect(from + 0.75, y + 0.75, Math.max(0.5, to - from - 1.5), BAR - 1.5); }
    ticks(one, y);
    mark(one, outcome, x + w, w, y);
    if (one === selected || one === hovered) outline(x, y, w);
    g.globalAlpha = 1;
  }

  function dots(from, to, y) {
    g.strokeStyle = ink.queue;
    g.lineWidth = 2;
    g.setLineDash([2, 3]);
    g.beginPath();
    g.moveTo(Math.max(from, left), y);
    g.lineTo(Math.min(to, width), y);
    g.stroke();
    g.setLineDash([]);
  }

  function wash(x, w, y, fill, edge, text) {
    if (w < 1) return;
    const from = Math.max(x, left - 3), to = Math.min(x + w, width + 3);
    if (to <= from) return;
    g.fillStyle = fill;
    g.fillRect(from, y + 1, to - from, BAR - 2);
    g.strokeStyle = edge;
    g.lineWidth = 1;
    g.strokeRect(from + 0.5, y + 0.5, to - from - 1, BAR - 1);
    if (text && to - from > 60) label(text, from + 4, to - 4, y, fill === ink.person ? "#1d2430" : ink.ink);
  }

  function unwind(from, to, y) {
    const x = Math.max(from, left - 3), end = Math.min(to, width + 3);
    if (end <= x) return;
    g.fillStyle = ink.paper;
    g.fillRect(x, y, end - x, BAR);
    g.fillStyle = hatch;
    g.fillRect(x, y, end - x, BAR);
    g.strokeStyle = ink.cancel;
    g.lineWidth = 1;
    g.strokeRect(x + 0.5, y + 0.5, Math.max(0, end - x - 1), BAR - 1);
  }

  function ticks(one, y) {
    g.fillStyle = ink.stream;
    let before = -9;
    for (const place of streamOf(one)) {
      const x = X(stream.at[place]);
      if (x < left - 2 || x - before < 3) continue;
      if (x > width) break;
      g.fillRect(x - 0.75, y - 2, 1.5, BAR + 3);
      before = x;
    }
  }

  function mark(one, outcome, end, w, y) {
    if (outcome === 2 && w > 10) {
      const x = Math.min(end, width) - 7, m = y + BAR / 2;
      g.strokeStyle = ink.paper;
      g.lineWidth = 1.6;
      g.beginPath();
      g.moveTo(x - 2.5, m - 2.5); g.lineTo(x + 2.5, m + 2.5);
      g.moveTo(x + 2.5, m - 2.5); g.lineTo(x - 2.5, m + 2.5);
      g.stroke();
    } else if (outcome === 4) {
      g.strokeStyle = ink.cancel;
      g.lineWidth = 1.5;
      g.strokeRect(end - 3, y + 2, 6, BAR - 4);
    }
  }

  function label(text, from, to, y, color) {
    g.font = `10px ${ink.mono}`;
    g.textBaseline = "middle";
    g.fillStyle = color;
    const most = Math.floor((to - from) / 6.1);
    g.fillText(text.length > most ? `${text.slice(0, Math.max(0, most - 1))}…` : text, from, y + BAR / 2 + 0.5);
  }

  function outline(x, y, w) {
    g.strokeStyle = ink.ink;
    g.lineWidth = 2;
    g.strokeRect(x - 2, y - 2, Math.max(3, w + 4), BAR + 4);
  }

  // A folded lane shows how many of its invocations run at a time, in steps of some pixels.
  function drawFolded(lane) {
    const cells = Math.ceil((width - left) / 3), busy = new Float64Array(cells + 1);
    for (const { items } of lane.rows) {
      for (let i = firstEnding(items, t0); i < items.length; i++) {
        const first = Math.floor((X(inv.started[items[i]]) - left) / 3);
        if (first >= cells) break;
        const last = Math.min(cells - 1, Math.floor((X(inv.ended[items[i]]) - left) / 3));
        busy[Math.max(0, first)]++;
        busy[last + 1]--;
        if (last - first < 1) i = Math.max(i, firstStarting(items, timeAt(left + (first + 1) * 3), i) - 1);
      }
    }
    let now = 0;
    g.fillStyle = ink.done;
    for (let i = 0; i < cells; i++) {
      now += busy[i];
      const h = (BAR * now) / Math.max(1, lane.rows.length);
      if (now > 0) g.fillRect(left + i * 3, yOf(lane, 0) + BAR - Math.max(2, h), 3, Math.max(2, h));
    }
  }

  function runBar(lane) {
    const run = D.runs[lane.run], y = yOf(lane, 0), x = Math.max(X(run.start), left), end = Math.min(X(run.end), width);
    g.fillStyle = run.status === "failed" || run.status === "timed_out" ? ink.fail : run.status === "cancelled" || run.status === "detached" || run.status === "parked" ? ink.cancel : ink.accent;
    if (end > x) g.fillRect(x, y + 9, Math.max(1, end - x), 3);
  }

  const placeOf = (one) => (one < 0 || laneOf[one] < 0 ? null : yOf(lanes[laneOf[one]], rowOf[one]) + BAR / 2);

  function drawPath() {
    g.strokeStyle = ink.path;
    g.lineWidth = 2;
    g.beginPath();
    let y = null, lastX = -Infinity;
    const end = timeAt(width);
    for (const part of D.path) {
      if (part.end < t0 || part.start > end) { y = null; continue; }
      const middle = placeOf(part.inv), x = Math.max(X(part.start), left - 2), to = Math.min(X(part.end), width + 2);
      if (middle === null || (to - lastX < 0.7 && y !== null)) continue;
      const at = middle + BAR / 2 + 2;
      if (y === null) g.moveTo(x, at); else g.lineTo(x, at);
      g.lineTo(to, at);
      y = at;
      lastX = to;
    }
    g.stroke();
  }

  function drawArrows(few) {
    const edges = related ? related.edges : [];
    if (few) for (const one of few) for (const event of causesOf(one)) edges.push([event, one]);
    g.lineWidth = related ? 1.6 : 1;
    g.strokeStyle = g.fillStyle = related ? ink.accent : ink.muted;
    for (const [event, to] of edges) arrow(event, to);
    if (!related && few) edges.length = 0;
  }

  function arrow(event, to) {
    const from = ev.source[event], y1 = placeOf(from), y2 = placeOf(to);
    if (y1 === null || y2 === null || from === to) return;
    const x1 = X(ev.at[event]), x2 = X(Math.max(ev.at[event], inv.begun[to] ? inv.started[to] : inv.queued[to]));
    if (Math.max(x1, x2) < left || Math.min(x1, x2) > width || Math.max(y1, y2) < 0 || Math.min(y1, y2) > tall) return;
    const bend = Math.min(60, Math.max(14, (x2 - x1) / 2));
    g.beginPath();
    g.moveTo(x1, y1);
    g.bezierCurveTo(x1 + bend, y1, x2 - bend, y2, x2 - 2, y2);
    g.stroke();
    g.beginPath();
    g.moveTo(x2, y2); g.lineTo(x2 - 6, y2 - 3.2); g.lineTo(x2 - 6, y2 + 3.2);
    g.fill();
  }

  function drawCancellations() {
    chips = [];
    let free = -Infinity;
    D.cancel.forEach((one, i) => {
      const x = X(one.at), end = X(one.end);
      if (end < left || x > width) return;
      let top = Infinity, bottom = -Infinity;
      for (const lane of lanes) if (one.scope === "run" && lane.run === one.run) { top = Math.min(top, lane.y); bottom = Math.max(bottom, lane.y + lane.height); }
      if (one.scope !== "run") for (const member of one.members) { const y = placeOf(member); if (y !== null) { top = Math.min(top, y - RULER + scrollY - BAR); bottom = Math.max(bottom, y - RULER + scrollY + BAR); } }
      if (bottom < top) return;
      bracket(x, Math.max(end, x + 1), RULER + top - scrollY - 5, RULER + bottom - scrollY);
      const text = `${one.scope} cancelled · ${one.by}: ${one.reason}`.slice(0, 60);
      g.font = `11px ${ink.sans}`;
      const w = g.measureText(text).width + 14, at = Math.min(Math.max(x, left), width - w - 18);
      if (at < free) return;
      free = at + w + 4;
      g.fillStyle = ink.paper;
      g.strokeStyle = ink.cancel;
      g.lineWidth = 1;
      g.beginPath(); g.roundRect(at, RULER + 1, w, 18, 9); g.fill(); g.stroke();
      g.fillStyle = ink.cancel;
      g.textBaseline = "middle";
      g.fillText(text, at + 7, RULER + 10.5);
      chips.push([at, at + w, i]);
    });
  }

  function bracket(from, to, top, bottom) {
    g.strokeStyle = ink.cancel;
    g.lineWidth = 1.5;
    g.beginPath();
    g.moveTo(from + 5, top); g.lineTo(from, top); g.lineTo(from, bottom); g.lineTo(from + 5, bottom);
    if (to - from > 3) { g.moveTo(to - 5, top); g.lineTo(to, top); g.lineTo(to, bottom); g.lineTo(to - 5, bottom); }
    g.stroke();
  }

  function labels() {
    g.fillStyle = ink.paper;
    g.fillRect(0, RULER - 6, left - 8, tall);
    g.textBaseline = "middle";
    for (let i = laneAt(scrollY); i < lanes.length && lanes[i].y - scrollY < tall; i++) {
      const lane = lanes[i], y = yOf(lane, 0) + BAR / 2, x = 12 + 12 * Math.min(lane.depth, 5), isRun = lane.key.startsWith("run ");
      if (i) { g.fillStyle = ink.faint; g.fillRect(0, RULER + lane.y - scrollY - GAP / 2 - 1, width, 0.5); }
      g.fillStyle = ink.muted;
      g.font = `10px ${ink.sans}`;
      if (isRun || lane.rows.length > 1) g.fillText(lane.folded ? "▸" : "▾", x - 9, y);
      g.font = `${isRun ? 600 : 500} 12px ${ink.mono}`;
      g.fillStyle = lane.members.length || isRun ? ink.ink : ink.muted;
      const most = Math.floor((left - 20 - x) / 7.3);
      g.fillText(lane.title.length > most ? `${lane.title.slice(0, most - 1)}…` : lane.title, x + 3, y);
      if (!isRun && lane.height > ROW && RULER + lane.y - scrollY + ROW < tall) {
        g.fillStyle = ink.muted;
        g.font = `11px ${ink.sans}`;
        g.fillText(`${lane.members.length.toLocaleString("en")} invocations`, x + 3, y + ROW - 2);
      }
    }
  }

  function duration(us, every = us) {
    const [unit, text] = every >= 3.6e9 ? [3.6e9, "h"] : every >= 6e7 ? [6e7, "min"] : every >= 1e6 || us >= 1e6 ? [1e6, "s"] : every >= 1e3 || us >= 1e3 ? [1e3, "ms"] : [1, "µs"];
    const digits = every === us ? 3 : Math.min(6, Math.max(0, Math.ceil(Math.log10(unit / every) - 1e-9)));
    return `${every === us ? Number((us / unit).toPrecision(digits)) : (us / unit).toFixed(digits)} ${text}`;
  }

  // -- the panel --------------------------------------------------------------------------------------

  function make(tag, text, className) {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  }

  function link(one, text = name(one)) {
    const button = make("button", text, "link");
    button.dataset.inv = one;
    return button;
  }

  function list(title, items, limit = 30) {
    const panel = $("panel");
    if (!items.length) return;
    panel.append(make("h3", items.length > 1 ? `${title} (${items.length.toLocaleString("en")})` : title));
    const ul = make("ul");
    for (const item of items.slice(0, limit)) { const li = make("li"); li.append(...item()); ul.append(li); }
    if (items.length > limit) ul.append(make("li", `and ${(items.length - limit).toLocaleString("en")} more`, "note"));
    panel.append(ul);
  }

  function table(rows) {
    const dl = make("dl");
    for (const [key, value] of rows) if (value !== null) dl.append(make("dt", key), make("dd", value));
    return dl;
  }

  function overview() {
    const panel = $("panel");
    panel.replaceChildren(make("h2", D.runs.length === 1 ? D.runs[0].workflow : `${D.runs.length} runs`));
    for (const run of D.runs.slice(0, 20)) {
      panel.append(make("span", run.status.replace("_", " "), `tag ${run.status}`));
      panel.append(table([["Run", run.id], ["Took", duration(run.end - run.start)], ["Began", new Date(run.wall * 1000).toISOString().replace("T", " ").slice(0, 23)], ["Backend", run.backend || null], ["Left out", run.leftOut ? `${run.leftOut} records` : null]]));
      if (run.error >= 0) panel.append(make("pre", T[run.error]));
    }
    list("Cancellations", D.cancel.map((one, i) => () => { const b = make("button", `${one.scope} by ${one.by}: ${one.reason}`.slice(0, 90), "link"); b.dataset.cancel = i; return [b, make("span", ` ${one.members.length.toLocaleString("en")} unwound in ${duration(one.end - one.at)}`, "note")]; }));
    const kinds = new Map();
    for (const part of D.path) { const key = part.inv < 0 ? part.kind : `${T[inv.step[part.inv]]}: ${part.kind}`; kinds.set(key, (kinds.get(key) ?? 0) + part.end - part.start); }
    list("Critical path", [...kinds].sort((a, b) => b[1] - a[1]).map(([key, time]) => () => [make("span", `${duration(time)}  ${key}`)]), 12);
    list("Resources", D.resource.map((one) => () => [make("span", `${one.name} (${one.lifetime})${one.failed ? ", failed" : ""}: ${duration(one.closed - one.opened)}`)]));
  }

  function cancellation(i) {
    const one = D.cancel[i], panel = $("panel");
    select(-1);
    panel.replaceChildren(make("h2", `${one.scope} cancelled`), table([["By", one.by], ["Reason", one.reason], ["At", duration(one.at)], ["Unwound in", duration(one.end - one.at)]]));
    if (one.inv >= 0) list("Asked for by", [() => [link(one.inv)]]);
    list("Slowest to end", one.members.map((member) => () => [link(member), make("span", ` ${duration(Math.max(0, inv.ended[member] - one.at))}`, "note")]), 100);
    panel.focus({ preventScroll: true });
  }

  function show(one) {
    const panel = $("panel"), outcome = OUTCOMES[inv.outcome[one]];
    const begun = inv.begun[one];
    panel.replaceChildren(make("h2", name(one)), make("span", outcome, `tag ${outcome}`));
    panel.append(table([
      ["Run", D.runs.length > 1 ? D.runs[inv.run[one]].id : null],
      ["Attempt", inv.attempt[one] > 1 ? String(inv.attempt[one]) : null],
      ["Worker", begun ? String(inv.worker[one]) : null],
      ["Queued", duration(Math.max(0, inv.started[one] - inv.ready[one]))],
      ["Delay", inv.ready[one] > inv.queued[one] ? duration(inv.ready[one] - inv.queued[one]) : null],
      ["Began", begun ? duration(inv.started[one]) : "never"],
      ["Took", begun ? duration(inv.ended[one] - inv.started[one]) : null],
      ["Unwinding", inv.ended[one] > inv.unwinding[one] ? duration(inv.ended[one] - inv.unwinding[one]) : null],
    ]));
    if (inv.error[one] >= 0) panel.append(make("h3", "Error"), make("pre", T[inv.error[one]]));
    const causes = causesOf(one), effects = Array.from(emittedOf(one));
    list("Given", causes.map((event) => () => [make("span", T[ev.type[event]]), make("span", " from ", "note"), ev.source[event] >= 0 ? link(ev.source[event]) : make("span", T[ev.origin[event]], "note"), make("pre", T[ev.fields[event]])]), 10);
    list("Made", effects.map((event) => () => [make("span", T[ev.type[event]]), ...Array.from(takers(event)).slice(0, 8).flatMap((to) => [make("span", " → ", "note"), link(to)]), make("pre", T[ev.fields[event]])]), 20);
    list("Waited for", Array.from(waitsOf(one), (w) => () => [make("span", `${T[wait.kind[w]]} ${T[wait.subject[w]]}: ${duration(wait.length[w])}, ${T[wait.outcome[w]].replace("_", " ")}`)]));
    list("Asked", Array.from(questionsOf(one), (q) => () => [make("span", `${D.question[q].type}: ${duration(D.question[q].end - D.question[q].start)}`), make("pre", T[D.question[q].fields])]));
    list("Published", Array.from(streamOf(one), (s) => () => [make("span", `${duration(stream.at[s])} ${T[stream.type[s]]} ${T[stream.fields[s]].slice(0, 200)}`)]), 12);
    list("Children", Array.from(childrenOf(one), (r) => () => [make("span", `${D.runs[r].workflow} ${D.runs[r].id}: ${D.runs[r].status}`)]));
    const other = [];
    if (inv.previous[one] >= 0) other.push(() => [make("span", "before: ", "note"), link(inv.previous[one])]);
    list("Attempts", other);
  }

  // -- selecting ----------------------------------------------------------------------------------------

  function relatedTo(one) {
    const edges = [], todo = [one], seen = new Set([one]);
    while (todo.length && edges.length < 60) for (const event of causesOf(todo.shift())) {
      const from = ev.source[event];
      if (from >= 0 && !seen.has(from)) { seen.add(from); todo.push(from); }
      if (from >= 0) edges.push([event, lastTaker(event, seen)]);
    }
    const after = [one], known = new Set([one]);
    const limit = edges.length + 60;
    while (after.length && edges.length < limit) for (const event of emittedOf(after.shift())) for (const to of takers(event)) {
      edges.push([event, to]);
      if (!known.has(to)) { known.add(to); after.push(to); }
    }
    return { edges };
  }

  const lastTaker = (event, seen) => Array.from(takers(event)).find((to) => seen.has(to)) ?? takers(event)[0];

  function select(one, { moves = false } = {}) {
    selected = one;
    related = one >= 0 ? relatedTo(one) : null;
    if (one >= 0) { show(one); say(`${name(one)}, ${OUTCOMES[inv.outcome[one]]}, ${duration(inv.ended[one] - inv.started[one])}`); } else overview();
    if (one >= 0 && moves) reveal(one);
    draw();
  }

  function say(text) { $("say").textContent = text; }

  function reveal(one) {
    if (laneOf[one] < 0) { folded.delete(`run ${inv.run[one]}`); arrange(); }
    const lane = lanes[laneOf[one]];
    if (!lane) return;
    const shown = (width - left) / scale;
    if (inv.ended[one] < t0 || inv.started[one] > t0 + shown) t0 = inv.started[one] - shown * 0.3;
    const y = lane.y + (lane.folded ? 0 : rowOf[one] * ROW);
    if (y < scrollY + 24 || y > scrollY + tall - RULER - 2 * ROW) scrollY = y - tall / 3;
  }

  function zoomTo(one) {
    const length = Math.max(20, inv.ended[one] - Math.min(inv.queued[one], inv.started[one]));
    scale = (width - left) / (length * 1.6);
    t0 = inv.started[one] - length * 0.3;
    reveal(one);
    draw();
  }

  function zoom(factor, x = left + (width - left) / 2) {
    const at = timeAt(x);
    scale *= factor;
    clamp();
    t0 = at - (x - left) / scale;
    draw();
  }

  function fit() { t0 = 0; scale = 0; clamp(); draw(); }

  function hit(x, y) {
    if (x < left || y < RULER) return -1;
    const at = y - RULER + scrollY, lane = lanes[laneAt(at)];
    if (!lane || lane.folded || at < lane.y || !lane.rows.length) return -1;
    const row = lane.rows[Math.floor((at - lane.y) / ROW)];
    if (!row) return -1;
    const time = timeAt(x), slack = 4 / scale;
    let found = -1, best = Infinity;
    for (let i = firstEnding(row.items, time - slack); i < row.items.length && inv.started[row.items[i]] <= time + slack; i++) {
      const one = row.items[i], off = Math.max(0, inv.started[one] - time, time - inv.ended[one]);
      if (off < best) { best = off; found = one; }
    }
    return found;
  }

  function fold(lane) {
    if (!lane) return;
    if (folded.has(lane.key)) folded.delete(lane.key); else folded.add(lane.key);
    say(`${lane.title} ${folded.has(lane.key) ? "folded" : "unfolded"}`);
    if (lane.key.startsWith("run ")) arrange(); else place();
  }

  function foldAll() {
    const all = lanes.filter((lane) => !lane.key.startsWith("run ") && lane.rows.length > 1);
    const unfold = all.every((lane) => folded.has(lane.key));
    for (const lane of all) if (unfold) folded.delete(lane.key); else folded.add(lane.key);
    $("fold").textContent = unfold ? "Fold" : "Unfold";
    place();
  }

  // -- searching ----------------------------------------------------------------------------------------

  function search() {
    const text = $("search").value.trim().toLowerCase(), outcome = Number($("outcome").value), step = $("step").value;
    matches = [];
    if (!text && outcome < 0 && !step) { match = null; $("found").textContent = ""; draw(); return; }
    match = new Uint8Array(count);
    const has = T.map((one) => text !== "" && one.toLowerCase().includes(text)), wanted = /^#\d+$/.test(text) ? Number(text.slice(1)) : null;
    const typed = new Uint8Array(count);
    if (text && wanted === null) for (let e = 0; e < ev.type.length; e++) if (has[ev.type[e]] || has[ev.fields[e]]) { if (ev.source[e] >= 0) typed[ev.source[e]] = 1; for (const to of takers(e)) typed[to] = 1; }
    for (let i = 0; i < count; i++) {
      if (outcome >= 0 && inv.outcome[i] !== outcome) continue;
      if (step && T[inv.step[i]] !== step) continue;
      if (text && !(wanted === null ? has[inv.step[i]] || typed[i] || (inv.error[i] >= 0 && has[inv.error[i]]) : inv.number[i] === wanted)) continue;
      match[i] = 1;
      matches.push(i);
    }
    $("found").textContent = matches.length ? matches.length.toLocaleString("en") : "none";
    draw();
  }

  function go(by) {
    const all = match ? matches : null, size = all ? all.length : count;
    if (!size) return;
    let at = all ? all.indexOf(selected) : selected;
    at = at < 0 ? (by > 0 ? 0 : size - 1) : (at + by + size) % size;
    select(all ? all[at] : at, { moves: true });
  }

  function follow(isCause) {
    if (selected < 0) return;
    const next = isCause ? causesOf(selected).map((event) => ev.source[event]).find((one) => one >= 0) : Array.from(emittedOf(selected)).flatMap((event) => Array.from(takers(event)))[0];
    if (next === undefined) say(isCause ? "no earlier invocation" : "no later invocation"); else select(next, { moves: true });
  }

  // -- input ----------------------------------------------------------------------------------------------

  function togglePath() {
    showsPath = !showsPath;
    $("path").setAttribute("aria-pressed", String(showsPath));
    draw();
  }

  const KEYS = {
    "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: fit,
    ArrowLeft: () => { t0 -= (width - left) / scale / 8; draw(); }, ArrowRight: () => { t0 += (width - left) / scale / 8; draw(); },
    ArrowUp: () => { scrollY -= 54; draw(); }, ArrowDown: () => { scrollY += 54; draw(); },
    PageUp: () => { scrollY -= tall * 0.8; draw(); }, PageDown: () => { scrollY += tall * 0.8; draw(); },
    n: () => go(1), p: () => go(-1), c: () => follow(true), e: () => follow(false), k: togglePath, F: foldAll,
    z: () => selected >= 0 && zoomTo(selected), f: () => selected >= 0 && fold(lanes[laneOf[selected]]),
    "/": () => $("search").focus(), Escape: () => { select(-1); canvas.focus(); },
  };

  function listen() {
    const pointers = new Map();
    let moved = 0, pinch = 0;
    const place2 = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); pointers.set(event.pointerId, place2(event)); moved = 0; pinch = 0; });
    canvas.addEventListener("pointermove", (event) => {
      const [x, y] = place2(event), before = pointers.get(event.pointerId);
      if (!before) { const one = hit(x, y); if (one !== hovered) { hovered = one; canvas.title = one < 0 ? "" : `${name(one)} · ${OUTCOMES[inv.outcome[one]]} · ${duration(inv.ended[one] - inv.started[one])}`; canvas.style.cursor = one < 0 ? "" : "pointer"; draw(); } return; }
      pointers.set(event.pointerId, [x, y]);
      moved += Math.abs(x - before[0]) + Math.abs(y - before[1]);
      if (pointers.size === 2) {
        const [a, b] = [...pointers.values()], apart = Math.hypot(a[0] - b[0], a[1] - b[1]);
        if (pinch) zoom(apart / pinch, (a[0] + b[0]) / 2);
        pinch = apart;
      } else if (moved > 4) { t0 -= (x - before[0]) / scale; scrollY -= y - before[1]; draw(); }
    });
    const up = (event) => {
      const [x, y] = place2(event);
      if (pointers.delete(event.pointerId) && moved <= 4 && event.type === "pointerup") click(x, y);
    };
    canvas.addEventListener("pointerup", up);
    canvas.addEventListener("pointercancel", up);
    canvas.addEventListener("dblclick", (event) => { const one = hit(...place2(event)); if (one >= 0) zoomTo(one); });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const unit = event.deltaMode === 1 ? 16 : 1;
      if (event.ctrlKey || event.metaKey) zoom(Math.exp(-event.deltaY * unit * 0.004), place2(event)[0]);
      else { t0 += ((event.shiftKey ? event.deltaY : event.deltaX) * unit) / scale; if (!event.shiftKey) scrollY += event.deltaY * unit; draw(); }
    }, { passive: false });
    $("scroll").addEventListener("scroll", () => { if (Math.abs($("scroll").scrollTop - scrollY) > 1) { scrollY = $("scroll").scrollTop; draw(); } });
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const isField = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
      if (isField) { if (event.key === "Enter" && event.target.id === "search") go(event.shiftKey ? -1 : 1); if (event.key === "Escape") canvas.focus(); return; }
      if (KEYS[event.key] && !(event.target.closest("#panel") && /^(Arrow|Page)/.test(event.key))) { KEYS[event.key](); event.preventDefault(); }
    });
    $("panel").addEventListener("click", (event) => {
      const { inv: one, cancel } = event.target.dataset;
      if (one !== undefined) select(Number(one), { moves: true });
      if (cancel !== undefined) cancellation(Number(cancel));
    });
    for (const id of ["search", "outcome", "step"]) $(id).addEventListener("input", search);
    $("group").addEventListener("input", () => { grouping = $("group").value; folded.clear(); arrange(); });
    for (const [id, act] of [["in", () => zoom(1.5)], ["out", () => zoom(1 / 1.5)], ["fit", fit], ["path", togglePath], ["fold", foldAll]]) $(id).addEventListener("click", act);
    $("help").addEventListener("click", () => { $("keys").hidden = !$("keys").hidden; $("help").setAttribute("aria-expanded", String(!$("keys").hidden)); });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { colors(); draw(); });
    for (const when of ["beforeprint", "afterprint"]) addEventListener(when, () => { colors(); resize(); dirty = false; paint(); });
    new ResizeObserver(resize).observe($("view"));
  }

  function click(x, y) {
    const chip = y > RULER && y < RULER + 20 ? chips.find(([from, to]) => x >= from && x <= to) : undefined;
    if (chip) { cancellation(chip[2]); return; }
    if (x < left && y > RULER) { fold(lanes[laneAt(y - RULER + scrollY)]); return; }
    select(hit(x, y));
  }

  function summary() {
    const failed = inv.outcome.filter((one) => one === 2).length, run = D.runs[0];
    $("status").textContent = [D.runs.length === 1 && run ? run.status.replace("_", " ") : `${D.runs.length} runs`, duration(D.end), `${count.toLocaleString("en")} invocation${count === 1 ? "" : "s"}`, ...(failed ? [`${failed.toLocaleString("en")} failed`] : [])].join(" · ");
    const steps = $("step"), chosen = steps.value;
    steps.replaceChildren(steps.options[0]);
    for (const step of [...new Set(inv.step)]) { const option = make("option", T[step]); option.value = T[step]; steps.append(option); }
    steps.value = chosen;
    if (steps.selectedIndex < 0) steps.value = "";
    canvas.setAttribute("aria-label", `Timeline of ${count.toLocaleString("en")} invocations. Press n for the next one; the panel describes it.`);
  }

  // Show newer data of the same runs, and keep what is selected and shown.
  function renew(data) {
    const key = (one) => `${D.runs[inv.run[one]].id} ${name(one)}`;
    const kept = selected < 0 ? null : key(selected), showsAll = scale <= ((width - left) / (D.end * 1.02 + 1)) * 1.001;
    read(data);
    selected = hovered = -1;
    for (let one = 0; kept !== null && one < count && selected < 0; one++) if (key(one) === kept) selected = one;
    related = selected >= 0 ? relatedTo(selected) : null;
    summary();
    arrange();
    search();
    if (showsAll) fit();
    if (selected >= 0) show(selected); else overview();
  }

  function open() {
    for (const id of ["app", "tools", "legend"]) $(id).hidden = false;
    summary();
    colors();
    listen();
    arrange();
    resize();
    fit();
    overview();
    document.addEventListener("renew", (event) => renew(event.detail));
    document.documentElement.dataset.ready = "true";
  }

  load().then((data) => { read(data); open(); }, (error) => { $("status").textContent = `The timeline cannot be shown: ${error.message}`; });
})();
