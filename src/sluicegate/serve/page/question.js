// A question of a run to a person, with a form for its answer.

import { h } from "./vendor/preact.js";
import { useState } from "./vendor/hooks.js";
import { idsOf, path, send } from "./api.js";
import { Form } from "./form.js";
import { Value } from "./parts.js";
import { hashOf, lookNow, tell } from "./store.js";

export function Question({ run, question, isReadOnly, workflow, autofocus }) {
  const { answers = [] } = question, all = answers.length ? answers : question.answer ? [question.answer] : [];
  const [at, setAt] = useState(0), [isSent, setSent] = useState(false);
  const [idOf] = useState(idsOf);
  const answer = all[at], fields = question.fields ?? {};
  const isShort = Object.keys(fields).length === 1 && typeof Object.values(fields)[0] === "string";
  const onSend = async (json) => {
    const event = `{"type":${JSON.stringify(answer.type)},"value":${json}}`;
    await send(path("events", run), `{"event":${event},"question":${JSON.stringify(question.id)},"id":"${idOf(event)}"}`);
    setSent(true);
    tell("The answer was sent.");
    lookNow();
  };
  if (isSent) return null;
  return h("section", { class: "question", "aria-label": `Question ${question.type ?? question.id}` },
    h("header", null, h("span", { class: "status asks" }, h("i", { "aria-hidden": "true" }), h("span", { class: "value" }, question.type ?? "Question")),
      workflow && h("a", { class: "value", href: hashOf("runs", run) }, `${workflow} `, h("span", { class: "id" }, run))),
    isShort ? h("p", { class: "asked value" }, Object.values(fields)[0]) : Object.keys(fields).length > 0 && h("div", { class: "asked-fields" }, h(Value, { value: fields })),
    all.length > 1 && h("label", { class: "head" }, "Answer with ", h("select", { onChange: (event) => setAt(Number(event.target.value)) }, all.map((one, i) => h("option", { key: i, value: i, selected: i === at }, one.type)))),
    isReadOnly || !answer ? h("p", { class: "dim" }, isReadOnly ? "This page is read-only: questions are answered elsewhere." : "The server does not say what answers this question.")
      : h(Form, { key: at, schema: answer.schema, button: "Send the answer", onSend, autofocus }));
}
