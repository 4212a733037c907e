// The graph of a workflow, as the server draws it, with the state of each step on it.

import { h } from "./vendor/preact.js";
import { useEffect, useRef, useState } from "./vendor/hooks.js";
import { ask, path } from "./api.js";
import { Problem } from "./parts.js";
import { useFetched } from "./store.js";

const SVG = "http://www.w3.org/2000/svg";
const ELEMENTS = new Set(["svg", "g", "defs", "marker", "pattern", "path", "rect", "circle", "text", "title", "a"]);

// Parse a picture, and keep of it only what a picture of ours consists of: no script, no style, no link
// that leads out of the page.
function pictureOf(text) {
  const parsed = new DOMParser().parseFromString(text, "image/svg+xml");
  if (parsed.querySelector("parsererror") || parsed.documentElement.localName !== "svg") throw new Error("the server's picture cannot be read");
  const picture = document.importNode(parsed.documentElement, true);
  for (const element of [picture, ...picture.querySelectorAll("*")]) {
    if (element.namespaceURI !== SVG || !ELEMENTS.has(element.localName)) { element.remove(); continue; }
    for (const { name } of [...element.attributes]) if (/^on|^style$|href$|^(src|xmlns:)/i.test(name)) element.removeAttribute(name);
  }
  return picture;
}

const make = (name, attributes, text) => {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
};

// What is said at a step, the most urgent first.
function badgesOf(counts) {
  const found = [];
  if (counts.running) found.push(["running", counts.running > 1 ? `${counts.running} running` : "running"]);
  if (counts.failed) found.push(["failed", `✕ ${counts.failed}`]);
  if (counts.cancelled) found.push(["cancelled", `⊘ ${counts.cancelled}`]);
  if (counts.completed && counts.started > 1) found.push(["completed", `✓ ${counts.completed}`]);
  else if (counts.completed) found.push(["completed", "✓"]);
  if (counts.retried) found.push(["retried", `↻ ${counts.retried}`]);
  return found;
}

function mark(picture, flows, steps, isOver) {
  for (const badge of picture.querySelectorAll(".badge")) badge.remove();
  for (const step of picture.querySelectorAll(".step[data-name]")) {
    const workflow = flows[step.dataset.at.split(".")[0]];
    const counts = steps?.[workflow]?.[step.dataset.name];
    for (const look of ["running", "failed", "cancelled", "done", "never"]) step.classList.remove(look);
    if (!steps) continue;
    if (!counts?.started) { if (isOver) step.classList.add("never"); continue; }
    step.classList.add(counts.running ? "running" : counts.failed ? "failed" : counts.cancelled ? "cancelled" : "done");
    const box = step.querySelector("rect");
    let right = Number(box.getAttribute("x")) + Number(box.getAttribute("width")) + 6;
    const top = Number(box.getAttribute("y")) - 13;
    for (const [look, text] of badgesOf(counts)) {
      const width = text.length * 6.7 + 14, badge = make("g", { class: `badge ${look}` });
      badge.append(make("rect", { x: right - width, y: top, width, height: 18, rx: 9 }), make("text", { x: right - width / 2, y: top + 13 }, text));
      step.append(badge);
      right -= width + 3;
    }
  }
}

export function Graph({ workflow, steps, isOver }) {
  const { data, error } = useFetched((signal) => ask(`${path("workflows", workflow)}/picture`, { signal }), null, [workflow]);
  const view = useRef(null), picture = useRef(null);
  const [failure, setFailure] = useState("");
  const [scale, setScale] = useState(0);

  const zoom = (next) => {
    const width = picture.current.viewBox.baseVal.width, height = picture.current.viewBox.baseVal.height;
    const room = view.current.clientWidth - 2;
    const fit = Math.min(1, room / width), whole = Math.min(fit, Math.max(0.2, 640 / height));
    const value = Math.min(3, Math.max(0.15, next ?? (whole > 0.55 ? whole : Math.max(0.55, Math.min(fit, 1)))));
    picture.current.style.width = `${width * value}px`;
    picture.current.style.height = `${height * value}px`;
    setScale(value);
  };

  useEffect(() => {
    if (!data) return;
    try {
      picture.current = pictureOf(data.svg);
    } catch (reason) {
      setFailure(reason.message);
      return;
    }
    view.current.replaceChildren(picture.current);
    zoom();
    const start = picture.current.querySelector(".start")?.getBoundingClientRect(), box = view.current.getBoundingClientRect();
    if (start && (start.right > box.right || start.left < box.left)) view.current.scrollLeft += start.left - box.left - box.width / 2;
  }, [data]);
  useEffect(() => { if (picture.current) mark(picture.current, data.flows, steps, isOver); });

  const onKeyDown = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const change = { "+": scale * 1.25, "=": scale * 1.25, "-": scale / 1.25, 0: 1 }[event.key];
    if (change) { zoom(change); event.preventDefault(); event.stopPropagation(); }
  };
  if (error || failure) return h(Problem, { title: "The graph cannot be shown" }, failure || error.message);
  return h("div", { class: "graph" },
    h("div", { class: "graph-view", ref: view, tabIndex: 0, role: "group", "aria-label": "Graph of the workflow; plus and minus zoom", onKeyDown }),
    scale > 0 && h("div", { class: "zoom" },
      h("button", { type: "button", class: "quiet small", "aria-label": "Zoom out", onClick: () => zoom(scale / 1.25) }, "−"),
      h("span", { class: "dim" }, `${Math.round(scale * 100)} %`),
      h("button", { type: "button", class: "quiet small", "aria-label": "Zoom in", onClick: () => zoom(scale * 1.25) }, "+"),
      h("button", { type: "button", class: "quiet small", onClick: () => zoom() }, "Fit")));
}
