// Small parts that every view uses.

import { h } from "./vendor/preact.js";
import { useEffect, useLayoutEffect, useRef, useState } from "./vendor/hooks.js";

const WORDS = { running: "Running", completed: "Completed", failed: "Failed", cancelled: "Cancelled" };

// The state of a run: a shape, a colour and a word.
export function Status({ run }) {
  const asks = run.questions > 0 && !run.isOver;
  const look = asks ? "asks" : run.look;
  const word = asks ? "Needs an answer" : run.timed_out ? "Timed out" : !run.isOver && run.idle ? "Waiting" : WORDS[run.look];
  return h("span", { class: `status ${look}` }, h("i", { "aria-hidden": "true" }), word);
}

export function Empty({ title, children }) {
  return h("div", { class: "empty" }, h("p", { class: "empty-title" }, title), h("div", null, children));
}

export function Problem({ title, children }) {
  return h("div", { class: "problem", role: "alert" }, h("strong", null, title), children && h("div", { class: "value" }, children));
}

// A button that copies text, and says so.
export function Copy({ text, what }) {
  const [done, setDone] = useState(false);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      return; // the browser does not let it; the text is there to be selected
    }
    setDone(true);
    setTimeout(() => setDone(false), 1_500);
  };
  return h("button", { type: "button", class: "quiet small", onClick: copy, "aria-label": `Copy ${what}` }, done ? "Copied" : "Copy");
}

// A modal dialog; Escape closes it, and the focus goes back to where it was.
export function Dialog({ title, onClose, children }) {
  const element = useRef(null);
  useLayoutEffect(() => { // before the next key
    const before = document.activeElement;
    element.current.showModal();
    return () => { if (before?.isConnected) before.focus(); };
  }, []);
  return h("dialog", { ref: element, "aria-label": title, onCancel: (event) => { event.preventDefault(); onClose(); }, onClose },
    h("h2", null, title), children);
}

// The heading of a view: it has the focus when the view opens, so that screen readers say it.
export function Heading({ children, title, ...rest }) {
  const element = useRef(null);
  useEffect(() => {
    document.title = `${title} · sluicegate`;
  }, [title]);
  useLayoutEffect(() => {
    if (document.activeElement === document.body || !document.activeElement?.isConnected) element.current.focus({ preventScroll: true });
  }, []);
  return h("h1", { ref: element, tabIndex: -1, ...rest }, children);
}

// -- values ------------------------------------------------------------------------------------------------

const MANY = 100, LONG = 800;

// A value as a tree that opens and closes. Every part of it is text.
export function Value({ value, depth = 0 }) {
  const [all, setAll] = useState(false);
  if (value === null || typeof value !== "object") return h(Plain, { value, all, setAll });
  const isList = Array.isArray(value), members = Object.entries(value);
  if (!members.length) return h("span", { class: "dim" }, isList ? "[] empty" : "{} empty");
  const shown = all ? members : members.slice(0, MANY);
  return h("ul", { class: "tree" },
    shown.map(([key, one]) => h(Member, { key, name: key, value: one, depth, isItem: isList })),
    members.length > shown.length && h("li", null, h("button", { type: "button", class: "link", onClick: () => setAll(true) }, `Show ${(members.length - shown.length).toLocaleString("en")} more`)));
}

function Member({ name, value, depth, isItem }) {
  const isFull = value !== null && typeof value === "object" && Object.keys(value).length > 0;
  const [open, setOpen] = useState(depth < 1 || (isFull && depth < 3 && Object.keys(value).length <= 8));
  const label = h("span", { class: isItem ? "key item" : "key" }, name);
  if (!isFull) return h("li", null, label, h(Value, { value, depth: depth + 1 }));
  const size = Object.keys(value).length;
  return h("li", null,
    h("button", { type: "button", class: "fold", "aria-expanded": String(open), onClick: () => setOpen(!open) }, h("i", { "aria-hidden": "true" }, open ? "▾" : "▸"), label,
      h("span", { class: "dim" }, Array.isArray(value) ? `${size} ${size === 1 ? "item" : "items"}` : open ? "" : `${size} ${size === 1 ? "field" : "fields"}`)),
    open && h(Value, { value, depth: depth + 1 }));
}

function Plain({ value, all, setAll }) {
  if (typeof value !== "string") return h("span", { class: "plain" }, String(value));
  const isCut = !all && value.length > LONG;
  return h("span", { class: value.includes("\n") ? "text lines" : "text" }, isCut ? `${value.slice(0, LONG)}…` : value === "" ? h("span", { class: "dim" }, "empty text") : value,
    isCut && h("button", { type: "button", class: "link", onClick: () => setAll(true) }, `Show all ${value.length.toLocaleString("en")} characters`));
}
