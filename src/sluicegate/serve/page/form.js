// A form made from a JSON Schema, with the JSON itself as its other side.

import { h } from "./vendor/preact.js";
import { useLayoutEffect, useRef, useState } from "./vendor/hooks.js";
import { Problem } from "./parts.js";
import { draftOf, fieldsOf, isOpen, jsonOf, kindOf, meaning, nameOf, requiredOf, resolved, variantsOf } from "./schema.js";

let forms = 0;

// `onSend(json)` gets the value as JSON text; if it throws, the message is shown and nothing typed is lost.
export function Form({ schema: root, button, onSend, note, autofocus = false }) {
  const schema = resolved(root, root);
  const [draft, setDraft] = useState(() => draftOf(undefined, schema, root));
  const [raw, setRaw] = useState(null); // the JSON text while that side is shown
  const [problems, setProblems] = useState(new Map());
  const [failure, setFailure] = useState("");
  const [isBusy, setBusy] = useState(false);
  const [prefix] = useState(() => `form${++forms}`);
  const element = useRef(null);

  useLayoutEffect(() => { if (autofocus) element.current.querySelector("input, textarea, select, button")?.focus(); }, []);
  useLayoutEffect(() => { if (problems.size) element.current.querySelector("[aria-invalid=true]")?.focus(); }, [problems]);

  const flip = () => {
    setFailure("");
    setProblems(new Map());
    if (raw === null) { setRaw(pretty(jsonOf(draft, schema, root, new Map()))); return; }
    try {
      setDraft(draftOf(JSON.parse(raw || "{}"), schema, root));
      setRaw(null);
    } catch (error) {
      setFailure(`This is no JSON: ${error.message}`);
    }
  };

  const submit = async (event) => {
    event.preventDefault();
    if (isBusy) return;
    const found = new Map();
    const json = raw === null ? jsonOf(draft, schema, root, found) : raw;
    setProblems(found);
    setFailure("");
    if (found.size) return;
    if (raw !== null) try { JSON.parse(raw); } catch (error) { setFailure(`This is no JSON: ${error.message}`); return; }
    setBusy(true);
    try {
      await onSend(json);
    } catch (error) {
      setFailure(error.message);
      // The server names the field: "start_event.topic".
      const field = /^(?:start_event|event)(?:\.value)?\.(.+)$/.exec(error.body?.field ?? "")?.[1];
      if (field && raw === null) setProblems(new Map([[`/${field.replaceAll(".", "/")}`, "The server does not take this value."]]));
    }
    setBusy(false);
  };

  const context = { root, prefix, problems };
  return h("form", { ref: element, class: "form", onSubmit: submit, noValidate: true, onKeyDown: (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit(event); } },
    raw === null
      ? h(Fields, { schema, draft, onChange: setDraft, context, path: "" })
      : h("div", { class: "field" }, h("label", { for: `${prefix}-raw` }, "JSON"), h("textarea", { id: `${prefix}-raw`, class: "code", rows: 8, spellcheck: false, value: raw, onInput: (event) => setRaw(event.target.value) })),
    failure && h(Problem, { title: failure }),
    h("div", { class: "buttons" },
      h("button", { type: "submit", class: "primary", disabled: isBusy }, isBusy ? "Sending…" : button),
      h("button", { type: "button", class: "quiet", onClick: flip, "aria-pressed": String(raw !== null) }, raw === null ? "Edit as JSON" : "Back to the form"),
      note && h("span", { class: "dim" }, note)));
}

const pretty = (json) => { try { return JSON.stringify(JSON.parse(json), null, 2); } catch { return json; } };

// The fields of an object, and those that it does not declare if it is open.
function Fields({ schema, draft, onChange, context, path }) {
  if (kindOf(schema) !== "object") return h(Field, { schema, draft, onChange, context, path, name: "value", isRequired: true });
  const required = requiredOf(schema), names = fieldsOf(schema);
  const set = (name, value) => onChange({ ...draft, fields: new Map(draft.fields).set(name, value) });
  return h("div", { class: "fields" },
    names.map((name) => h(Field, {
      key: name, name, context, path: `${path}/${name}`, schema: resolved(schema.properties[name], context.root), draft: draft.fields.get(name), isRequired: required.has(name),
      onChange: (value) => set(name, value),
    })),
    isOpen(schema) && h(More, { schema, draft, onChange, context, path, isAll: !names.length }));
}

function More({ draft, onChange, context, path, isAll }) {
  const rows = draft.more;
  const set = (more) => onChange({ ...draft, more });
  return h("div", { class: "more" },
    isAll && !rows.length && h("p", { class: "dim" }, "It declares no fields. You can add any."),
    h(Pairs, { rows, set, context, path, isAny: true, word: "field" }));
}

// Rows of a name and a value: fields that are not declared, or the members of a map.
function Pairs({ rows, set, context, path, isAny, item, word }) {
  const change = (i, part) => set(rows.map((row, at) => (at === i ? { ...row, ...part } : row)));
  const add = () => set([...rows, { id: `${Date.now()}-${rows.length}`, key: "", value: isAny ? "" : draftOf(undefined, item, context.root) }]);
  return h("div", { class: "rows" },
    rows.map((row, i) => {
      const id = idOf(context, `${path}/${i}/name`), problem = context.problems.get(`${path}/${i}`);
      return h("div", { key: row.id, class: "row pair" },
        h("div", { class: "field" }, h("label", { for: id }, "Name"), h("input", { id, class: "code", value: row.key, "aria-invalid": problem ? "true" : undefined, onInput: (event) => change(i, { key: event.target.value }) }), problem && h("p", { class: "wrong" }, problem)),
        h(Field, { schema: isAny ? {} : item, draft: row.value, onChange: (value) => change(i, { value }), context, path: `${path}/${i}/value`, name: "Value", isRequired: true }),
        h(Remove, { what: row.key || word, onClick: () => set(rows.filter((_, at) => at !== i)) }));
    }),
    h("button", { type: "button", class: "quiet small", onClick: add }, `Add a ${word}`));
}

const Remove = ({ what, onClick }) => h("button", { type: "button", class: "quiet small remove", "aria-label": `Remove ${what}`, title: "Remove", onClick }, "✕");

const idOf = (context, path) => `${context.prefix}${path.replace(/[^\w/-]/g, (sign) => `_${sign.codePointAt(0)}`)}`;

// One field with its label, its description, and what is wrong with it.
function Field(props) {
  const { schema, draft, onChange, context, path, name, isRequired } = props;
  const kind = kindOf(schema), id = idOf(context, path), problem = context.problems.get(path);
  if (kind === "const") return null; // there is no choice
  const absent = (word, set) => h("div", { class: "field" },
    h("div", { class: "head" }, h("span", { class: "label value" }, name), h("span", { class: "dim" }, word), h("button", { type: "button", class: "quiet small", "aria-label": `Set ${name}`, onClick: set }, "Set")),
    schema.description && h("p", { class: "about value" }, schema.description));
  if (draft === undefined) return absent("optional", () => onChange(draftOf(undefined, schema, context.root)));
  if (kind === "union") {
    // A value or none: the value itself, with a button for none.
    const variants = variantsOf(schema, context.root), none = variants.findIndex((one) => kindOf(one) === "null");
    if (variants.length === 2 && none >= 0) {
      const other = variants[1 - none];
      if (draft.at === none) return absent("none", () => onChange({ at: 1 - none, value: draftOf(undefined, other, context.root) }));
      return h(Field, { ...props, path: `${path}/*`, schema: { ...(schema.description && { description: schema.description }), ...other }, draft: draft.value, isRequired: true,
        onChange: (value) => onChange({ at: 1 - none, value }), onClear: () => onChange({ at: none, value: null }) });
    }
  }
  const canLeaveOut = !isRequired && !Object.hasOwn(schema, "default"), hints = hintOf(schema, kind);
  const described = [schema.description && `${id}-about`, problem && `${id}-wrong`].filter(Boolean).join(" ") || undefined;
  const control = { id, "aria-describedby": described, "aria-invalid": problem ? "true" : undefined };
  const about = [
    schema.description && h("p", { class: "about value", id: `${id}-about` }, schema.description),
    problem && h("p", { class: "wrong", id: `${id}-wrong` }, problem),
  ];
  const leave = props.onClear ? h("button", { type: "button", class: "quiet small", "aria-label": `No ${name}`, onClick: props.onClear }, "None")
    : canLeaveOut && h("button", { type: "button", class: "quiet small", "aria-label": `Leave out ${name}`, onClick: () => onChange(undefined) }, "Leave out");
  const inner = { ...props, control };
  if (["object", "map", "list", "tuple"].includes(kind)) {
    return h("fieldset", { class: "field" }, h("legend", null, h("span", { class: "label value" }, name), " ", h("span", { class: "dim" }, hints), leave), about, h(Group, inner));
  }
  if (kind === "boolean") {
    return h("div", { class: "field" }, h("div", { class: "check" }, h("input", { ...control, type: "checkbox", checked: draft, onChange: (event) => onChange(event.target.checked) }), h("label", { for: id, class: "value" }, name), leave), about);
  }
  return h("div", { class: "field" },
    h("div", { class: "head" }, h("label", { for: id, class: "value" }, name), h("span", { class: "dim" }, hints), leave), h(Control, inner), about);
}

function hintOf(schema, kind) {
  const limits = [];
  const least = schema.minimum ?? schema.exclusiveMinimum, most = schema.maximum ?? schema.exclusiveMaximum;
  if (least !== undefined) limits.push(`${schema.minimum === undefined ? "above" : "at least"} ${least}`);
  if (most !== undefined) limits.push(`${schema.maximum === undefined ? "below" : "at most"} ${most}`);
  if (schema.maxLength !== undefined) limits.push(`at most ${schema.maxLength} characters`);
  const word = { integer: "whole number", number: "number", map: "map", any: "any value", list: "list" }[kind] ?? (kind === "text" ? schema.format ?? schema.contentEncoding : kind === "object" ? schema.title : "");
  return [word, ...limits].filter(Boolean).join(", ");
}

const TYPES = { date: "date", email: "email", uri: "url" };

// The control of a value without parts.
function Control({ schema, draft, onChange, context, path, name, control }) {
  const typed = { ...control, value: draft, onInput: (event) => onChange(event.target.value) };
  switch (kindOf(schema)) {
    case "integer": case "number": return h("input", { ...typed, class: "short", inputMode: "decimal", autocomplete: "off" });
    case "enum":
      return h("select", { ...control, onChange: (event) => onChange({ at: Number(event.target.value) }) },
        draft.at < 0 && h("option", { value: -1, selected: true }, "Choose…"),
        schema.enum.map((one, i) => h("option", { key: i, value: i, selected: i === draft.at }, typeof one === "string" ? one : JSON.stringify(one))));
    case "union": return h(Union, { schema, draft, onChange, context, path, name, control });
    case "null": return h("p", { class: "dim", id: control.id }, "none");
    case "text":
      if (schema.format || schema.pattern || schema.maxLength <= 120) return h("input", { ...typed, type: TYPES[schema.format] ?? "text", autocomplete: "off" });
      return h("textarea", { ...typed, rows: 1 });
    default:
      return h("div", null, h("textarea", { ...typed, rows: 1, class: "code", spellcheck: false }), draft.trim() !== "" && h("p", { class: "dim" }, `taken as ${meaning(draft)}`));
  }
}

function Union({ schema, draft, onChange, context, path, name, control }) {
  const variants = variantsOf(schema, context.root), chosen = variants[draft.at], kind = kindOf(chosen);
  const words = variants.map(nameOf), isTwice = new Set(words).size < words.length;
  return h("div", { class: "union" },
    h("select", { ...control, onChange: (event) => { const at = Number(event.target.value); onChange({ at, value: draftOf(undefined, variants[at], context.root) }); } },
      words.map((word, i) => h("option", { key: i, value: i, selected: i === draft.at }, isTwice ? `${word} (${i + 1})` : word))),
    kind !== "null" && kind !== "const" && h("div", { class: "variant" },
      h(Field, { key: draft.at, schema: chosen, draft: draft.value, onChange: (value) => onChange({ at: draft.at, value }), context, path: `${path}/*`, name, isRequired: true })));
}

// The parts of an object, a list or a map.
function Group({ schema, draft, onChange, context, path }) {
  switch (kindOf(schema)) {
    case "object": return h(Fields, { schema, draft, onChange, context, path });
    case "map": return h(Pairs, { rows: draft, set: onChange, context, path, item: resolved(schema.additionalProperties, context.root), word: "member" });
  }
  const isFixed = kindOf(schema) === "tuple", least = schema.minItems ?? 0;
  const itemOf = (i) => resolved(isFixed ? schema.prefixItems[i] : schema.items, context.root);
  const change = (i, value) => onChange(draft.map((row, at) => (at === i ? { ...row, value } : row)));
  return h("div", { class: "rows" },
    draft.map((row, i) => h("div", { key: row.id, class: "row" },
      h(Field, { schema: itemOf(i), draft: row.value, onChange: (value) => change(i, value), context, path: `${path}/${i}`, name: String(i + 1), isRequired: true }),
      !isFixed && draft.length > least && h(Remove, { what: `item ${i + 1}`, onClick: () => onChange(draft.filter((_, at) => at !== i)) }))),
    !isFixed && draft.length < (schema.maxItems ?? Infinity) && h("button", { type: "button", class: "quiet small", onClick: () => onChange([...draft, { id: `${Date.now()}-${draft.length}`, value: draftOf(undefined, itemOf(0), context.root) }]) }, "Add an item"));
}
