"""The script of the page: zoom, fit, drag, search, and the neighbours of a step."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256


# Without it the page is complete: the picture is at its own size, in a frame that scrolls.
SCRIPT = """
'use strict';
(() => {
  const view = document.querySelector('.view');
  const picture = view.querySelector('.flow');
  const tools = document.querySelector('.tools');
  const shown = tools.querySelector('output');
  const search = tools.querySelector('input');
  const width = picture.viewBox.baseVal.width, height = picture.viewBox.baseVal.height;
  const least = 0.05, most = 4;
  let scale = 1;

  const zoom = (wanted, x, y) => {
    const box = view.getBoundingClientRect();
    const left = x === undefined ? box.width / 2 : x - box.left;
    const top = y === undefined ? box.height / 2 : y - box.top;
    const before = picture.getBoundingClientRect();
    const at = [(box.left + left - before.left) / before.width,
                (box.top + top - before.top) / before.height];
    scale = Math.min(most, Math.max(least, wanted));
    picture.style.width = width * scale + 'px';
    const after = picture.getBoundingClientRect();
    view.scrollLeft += after.left + at[0] * after.width - (box.left + left);
    view.scrollTop += after.top + at[1] * after.height - (box.top + top);
    shown.value = Math.round(scale * 100) + ' %';
  };
  const room = () => [view.clientWidth, Math.max(260, window.innerHeight - 210)];
  const fit = () => Math.min(1, room()[0] / width, room()[1] / height);
  const reveal = (element) => {
    const box = view.getBoundingClientRect(), target = element.getBoundingClientRect();
    view.scrollLeft += target.left + target.width / 2 - box.left - view.clientWidth / 2;
    view.scrollTop += target.top + target.height / 2 - box.top - view.clientHeight / 2;
  };
  const begin = () => {
    // All of it if its text can be read then; else as wide as the window, from the start.
    const whole = fit();
    zoom(whole >= 0.6 ? whole : Math.min(1, Math.max(0.6, room()[0] / width)));
    view.scrollTop = view.scrollLeft = 0;
    const start = picture.querySelector('.start').getBoundingClientRect();
    const box = view.getBoundingClientRect();
    if (start.left < box.left || start.right > box.right) {
      view.scrollLeft += start.left - box.left - view.clientWidth / 2;
    }
  };

  const acts = {
    in: () => zoom(scale * 1.25),
    out: () => zoom(scale / 1.25),
    fit: () => zoom(fit()),
    real: () => zoom(1),
  };
  tools.addEventListener('click', (event) => {
    const button = event.target.closest('button');
    if (button) acts[button.dataset.act]();
  });
  const keys = {'+': 'in', '=': 'in', '-': 'out', '0': 'real', 'f': 'fit'};
  view.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (keys[event.key]) {
      event.preventDefault();
      acts[keys[event.key]]();
    } else if (event.key === 'Enter' && event.target.dataset.at) {
      select(event.target);
    } else if (event.key === 'Escape') {
      select(null);
    }
  });
  view.addEventListener('wheel', (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoom(scale * Math.exp(-event.deltaY / 300), event.clientX, event.clientY);
  }, {passive: false});

  let drag = null, moved = false;
  view.addEventListener('pointerdown', (event) => {
    moved = false;
    if (event.pointerType === 'mouse' && event.button === 0) {
      drag = [event.clientX, event.clientY, view.scrollLeft, view.scrollTop];
    }
  });
  window.addEventListener('pointermove', (event) => {
    if (!drag) return;
    const x = event.clientX - drag[0], y = event.clientY - drag[1];
    moved ||= Math.abs(x) + Math.abs(y) > 4;
    if (moved) {
      view.classList.add('dragged');
      view.scrollLeft = drag[2] - x;
      view.scrollTop = drag[3] - y;
    }
  });
  window.addEventListener('pointerup', () => {
    drag = null;
    view.classList.remove('dragged');
  });

  const nodes = [...picture.querySelectorAll('[data-at]')];
  const ends = [...picture.querySelectorAll('[data-ends]')];
  let selected = null;
  function select(node) {
    selected = node === selected ? null : node;
    const near = new Set();
    for (const each of ends) {
      const all = each.dataset.ends.split(' ');
      const isNear = selected && all.includes(selected.dataset.at);
      if (isNear) all.forEach((at) => near.add(at));
      each.classList.toggle('far', Boolean(selected) && !isNear);
    }
    for (const each of nodes) {
      const isFar = selected && each !== selected && !near.has(each.dataset.at);
      each.classList.toggle('far', Boolean(isFar) && !each.querySelector('.frame'));
      each.classList.toggle('selected', each === selected);
    }
  }
  for (const node of nodes) node.setAttribute('tabindex', '0');
  view.addEventListener('click', (event) => {
    if (!moved && !event.target.closest('a')) select(event.target.closest('[data-at]'));
  });

  let place = -1;
  const find = () => {
    const text = search.value.trim().toLowerCase();
    const named = nodes.filter((node) => node.dataset.name);
    const found = text ? named.filter((node) => node.dataset.name.toLowerCase().includes(text)) : [];
    named.forEach((node) => node.classList.toggle('found', found.includes(node)));
    search.classList.toggle('none', Boolean(text) && !found.length);
    return found;
  };
  search.addEventListener('input', () => {
    place = 0;
    const found = find();
    if (found.length) reveal(found[0]);
  });
  search.addEventListener('keydown', (event) => {
    const found = find();
    if (event.key === 'Enter' && found.length) {
      place = (place + 1) % found.length;
      reveal(found[place]);
    } else if (event.key === 'Escape') {
      search.value = '';
      find();
    }
  });

  document.documentElement.classList.add('live');
  tools.hidden = false;
  view.tabIndex = 0;
  begin();
})();
""".strip()

#: The page may run this script and nothing else, and may load nothing.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; "
    f"script-src 'sha256-{b64encode(sha256(SCRIPT.encode()).digest()).decode()}'"
)
