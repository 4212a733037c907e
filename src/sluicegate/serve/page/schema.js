// A JSON Schema as the plan of a form: the kinds of its parts, a draft of a value, and the value of a
// draft as JSON text.
//
// A draft has a text for each number and for each value of any kind, so that what a person typed is kept
// until it is right, and a number of any size is sent as it was typed. The draft of an object is
// {fields, more}, that of a list [{id, value}], that of a map [{id, key, value}], that of a union {at, value}.

const DEEPEST = 12, DEEPEST_DRAFT = 4;
const NUMBER = /^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$/, WHOLE = /^-?(0|[1-9]\d*)$/;

let ids = 0;
const nextId = () => ++ids;

const own = (object, name) => (object && Object.hasOwn(object, name) ? object[name] : undefined);

// The schema without references at its top; what stands beside a reference goes before what it leads to.
export function resolved(schema, root, depth = 0) {
  if (schema === true || schema === null || typeof schema !== "object") return {};
  let found = schema;
  if (typeof schema.$ref === "string" && depth < DEEPEST) {
    const { $ref, ...beside } = schema;
    const target = $ref.startsWith("#/") ? $ref.slice(2).split("/").reduce((at, part) => own(at, part.replaceAll("~1", "/").replaceAll("~0", "~")), root) : undefined;
    found = { ...resolved(target, root, depth + 1), ...beside };
  }
  if (Array.isArray(found.allOf) && found.allOf.length === 1 && !found.properties && depth < DEEPEST) {
    const { allOf, ...beside } = found;
    found = { ...resolved(allOf[0], root, depth + 1), ...beside };
  }
  return found;
}

// The members of a union, or null.
function members(schema) {
  if (Array.isArray(schema.anyOf) && !schema.properties) return schema.anyOf;
  if (Array.isArray(schema.oneOf) && !schema.properties) return schema.oneOf;
  if (Array.isArray(schema.type) && schema.type.length > 1) return schema.type.map((type) => ({ ...schema, type, default: undefined }));
  return null;
}

// One of "union", "enum", "const", "null", "boolean", "integer", "number", "text", "object", "map", "tuple",
// "list" and "any".
export function kindOf(schema) {
  if (Object.hasOwn(schema, "const")) return schema.const === null ? "null" : "const";
  if (Array.isArray(schema.enum)) return "enum";
  const union = members(schema);
  if (union) return union.length ? "union" : "any";
  const type = Array.isArray(schema.type) ? schema.type[0] : schema.type;
  if (type === "object" || (!type && schema.properties)) {
    const values = schema.additionalProperties;
    const hasFields = schema.properties && Object.keys(schema.properties).length > 0;
    return !hasFields && values && typeof values === "object" ? "map" : "object";
  }
  if (type === "array") return Array.isArray(schema.prefixItems) ? "tuple" : "list";
  return { null: "null", boolean: "boolean", integer: "integer", number: "number", string: "text" }[type] ?? "any";
}

export const variantsOf = (schema, root) => members(schema).map((one) => {
  // A tag beside a reference, by which events are told apart, is one more field of the class.
  const target = resolved(one, root), tags = own(one, "properties");
  return one.$ref && tags ? { ...target, properties: { ...tags, ...resolved({ $ref: one.$ref }, root).properties } } : target;
});

const NAMES = { null: "none", boolean: "yes or no", integer: "whole number", number: "number", text: "text", object: "object", map: "map", tuple: "list", list: "list", any: "any value", enum: "choice", union: "choice", const: "fixed" };

// A word for a schema, such as that of a member of a union.
export function nameOf(schema) {
  const kind = kindOf(schema);
  if (kind === "const") return String(schema.const);
  if (kind === "text" && schema.format) return schema.format;
  return (["object", "enum"].includes(kind) && schema.title) || NAMES[kind];
}

// The names that an object must have; of several names for one field, the first.
export function requiredOf(schema) {
  const names = [...(schema.required ?? [])];
  for (const one of schema.allOf ?? []) {
    const first = own(own(one, "anyOf")?.[0] ?? {}, "required")?.[0];
    if (typeof first === "string") names.push(first);
  }
  return new Set(names);
}

// The names of an object's fields in a form: a field that has several names is there once.
export function fieldsOf(schema) {
  const others = new Set();
  for (const one of schema.allOf ?? []) for (const each of (own(one, "anyOf") ?? []).slice(1)) for (const name of own(each, "required") ?? []) others.add(name);
  return Object.keys(schema.properties ?? {}).filter((name) => !others.has(name));
}

export const isOpen = (schema) => schema.additionalProperties !== false;

// -- drafts ------------------------------------------------------------------------------------------------

// Return a draft of a schema, from a value or from nothing.
export function draftOf(given, schema, root, depth = 0) {
  if (given === undefined) given = schema.default;
  switch (kindOf(schema)) {
    case "const": case "null": return null;
    case "boolean": return given === true;
    case "enum": return { at: given === undefined ? (schema.enum.length === 1 ? 0 : -1) : schema.enum.findIndex((one) => isSame(one, given)) };
    case "integer": case "number": return given === undefined ? "" : String(given);
    case "text": return given === undefined ? "" : typeof given === "string" ? given : JSON.stringify(given);
    case "union": return unionDraft(given, schema, root, depth);
    case "object": return objectDraft(given, schema, root, depth);
    case "map": return Object.entries(isObject(given) ? given : {}).map(([key, value]) => ({ id: nextId(), key, value: draftOf(value, resolved(schema.additionalProperties, root), root, depth + 1) }));
    case "tuple": return schema.prefixItems.map((one, i) => ({ id: nextId(), value: draftOf(given?.[i], resolved(one, root), root, depth + 1) }));
    case "list": {
      const item = resolved(schema.items, root), values = Array.isArray(given) ? given : Array.from({ length: Math.min(schema.minItems ?? 0, 20) });
      return values.map((value) => ({ id: nextId(), value: draftOf(value, item, root, depth + 1) }));
    }
    default: return textOf(given);
  }
}

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const isSame = (one, other) => JSON.stringify(one) === JSON.stringify(other);
const textOf = (given) => (given === undefined ? "" : typeof given === "string" ? given : JSON.stringify(given));

function unionDraft(given, schema, root, depth) {
  const variants = variantsOf(schema, root);
  let at = given === undefined ? 0 : variants.findIndex((one) => fits(given, one, root));
  if (given === undefined) {
    // A text or a number is filled in more often than not; an object may lead to itself without end.
    const none = variants.findIndex((one) => kindOf(one) === "null"), first = variants.findIndex((one) => kindOf(one) !== "null");
    at = none >= 0 && (first < 0 || ["object", "union"].includes(kindOf(variants[first]))) ? none : first;
  }
  if (at < 0) at = 0;
  return { at, value: draftOf(given, variants[at], root, depth + 1) };
}

function objectDraft(given, schema, root, depth) {
  const required = requiredOf(schema), names = fieldsOf(schema), fields = new Map();
  for (const name of names) {
    const one = resolved(schema.properties[name], root), value = isObject(given) ? own(given, name) : undefined;
    const isThere = depth < DEEPEST_DRAFT && (required.has(name) || (!isObject(given) && Object.hasOwn(one, "default")) || kindOf(one) === "const") || value !== undefined;
    fields.set(name, isThere ? draftOf(value, one, root, depth + 1) : undefined);
  }
  const more = isObject(given) ? Object.entries(given).filter(([name]) => !names.includes(name)) : [];
  return { fields, more: more.map(([key, value]) => ({ id: nextId(), key, value: textOf(value) })) };
}

// Whether a value can be meant by a schema; for the member of a union that a draft begins with.
function fits(value, schema, root) {
  switch (kindOf(schema)) {
    case "const": return isSame(value, schema.const);
    case "null": return value === null;
    case "enum": return schema.enum.some((one) => isSame(one, value));
    case "boolean": return typeof value === "boolean";
    case "integer": return Number.isInteger(value);
    case "number": return typeof value === "number";
    case "text": return typeof value === "string";
    case "list": case "tuple": return Array.isArray(value);
    case "map": return isObject(value);
    case "object": return isObject(value) && [...requiredOf(schema)].every((name) => Object.hasOwn(value, name))
      && Object.entries(schema.properties ?? {}).every(([name, one]) => !Object.hasOwn(value, name) || kindOf(one) !== "const" || isSame(value[name], one.const));
    case "union": return variantsOf(schema, root).some((one) => fits(value, one, root));
    default: return true;
  }
}

// -- the value of a draft ------------------------------------------------------------------------------------

// Return the value of a draft as JSON text, and add what is wrong to `problems`, a map from the path of a
// field to a sentence.
export function jsonOf(draft, schema, root, problems, path = "") {
  const inner = (one, other, name) => jsonOf(one, resolved(other, root), root, problems, `${path}/${name}`);
  switch (kindOf(schema)) {
    case "const": return JSON.stringify(schema.const);
    case "null": return "null";
    case "boolean": return String(draft);
    case "enum":
      if (draft.at < 0) { problems.set(path, "Choose one."); return "null"; }
      return JSON.stringify(schema.enum[draft.at]);
    case "integer": case "number": return numberJson(draft, schema, problems, path);
    case "text": return JSON.stringify(draft);
    case "union": {
      const one = variantsOf(schema, root)[draft.at];
      return jsonOf(draft.value, one, root, problems, `${path}/*`);
    }
    case "object": return objectJson(draft, schema, problems, path, inner);
    case "map": return `{${pairs(draft, problems, path, (one, i) => inner(one, schema.additionalProperties, `${i}/value`))}}`;
    case "tuple": return `[${draft.map(({ value }, i) => inner(value, schema.prefixItems[i], i)).join(",")}]`;
    case "list": return `[${draft.map(({ value }, i) => inner(value, schema.items, i)).join(",")}]`;
    default: return anyJson(draft);
  }
}

function numberJson(draft, schema, problems, path) {
  const text = draft.trim().replace(/^\+/, "");
  const isWhole = kindOf(schema) === "integer";
  if ((isWhole ? WHOLE : NUMBER).test(text)) return text;
  problems.set(path, text === "" ? (isWhole ? "Enter a whole number." : "Enter a number.") : `${JSON.stringify(text)} is no ${isWhole ? "whole " : ""}number.`);
  return "null";
}

function objectJson(draft, schema, problems, path, inner) {
  const parts = [];
  for (const [name, one] of draft.fields) if (one !== undefined) parts.push(`${JSON.stringify(name)}:${inner(one, schema.properties[name], name)}`);
  const more = pairs(draft.more, problems, path, anyJson);
  return `{${[...parts, ...(more ? [more] : [])].join(",")}}`;
}

function pairs(rows, problems, path, json) {
  const seen = new Set();
  return rows.map(({ key, value }, i) => {
    if (!key) problems.set(`${path}/${i}`, "Enter a name.");
    else if (seen.has(key)) problems.set(`${path}/${i}`, `${JSON.stringify(key)} is there twice.`);
    seen.add(key);
    return `${JSON.stringify(key)}:${json(value, i)}`;
  }).join(",");
}

// A value of any kind: JSON if it can be read as such, else the text itself.
function anyJson(text) {
  return meaning(text) === "text" ? JSON.stringify(text) : text.trim();
}

// What the text of a value of any kind is taken for.
export function meaning(text) {
  if (text.trim() === "") return "text";
  try {
    const value = JSON.parse(text);
    return value === null ? "none" : Array.isArray(value) ? "list" : { object: "object", number: "number", boolean: "yes or no", string: "quoted text" }[typeof value];
  } catch {
    return "text";
  }
}
