// Start a run, with a form made from the schema of its start event.

import { h } from "./vendor/preact.js";
import { useState } from "./vendor/hooks.js";
import { ask, idsOf, path, send } from "./api.js";
import { Form } from "./form.js";
import { Graph } from "./graph.js";
import { Empty, Heading, Problem } from "./parts.js";
import { go, hashOf, lookNow, useFetched, useServer } from "./store.js";

export function Start({ name }) {
  const { workflows, config } = useServer();
  if (config?.read_only) return h("div", null, h("div", { class: "view-head" }, h(Heading, { title: "Start a run" }, "Start a run")), h(Empty, { title: "This page is read-only" }, h("p", null, "Runs are started elsewhere.")));
  const chosen = name ?? workflows?.[0];
  return h("div", null,
    h("div", { class: "view-head" }, h("div", null, h("nav", { class: "crumbs", "aria-label": "Breadcrumb" }, h("a", { href: "#/" }, "Runs")), h(Heading, { title: "Start a run" }, "Start a run"))),
    workflows && workflows.length > 1 && h("div", { class: "field choose" }, h("label", { for: "workflow" }, "Workflow"),
      h("select", { id: "workflow", onChange: (event) => go(hashOf("start", event.target.value)) }, workflows.map((one) => h("option", { key: one, value: one, selected: one === chosen }, one)))),
    !workflows && h("p", { class: "dim", role: "status" }, "Loading the workflows…"),
    chosen && h(StartOne, { key: chosen, name: chosen, isOnly: workflows?.length === 1 }));
}

function StartOne({ name, isOnly }) {
  const { data, error } = useFetched((signal) => ask(`${path("workflows", name)}/schema`, { signal }), null, [name]);
  const [keyOf] = useState(idsOf);
  const onSend = async (json) => {
    const event = `{"type":"StartEvent","value":${json}}`;
    const run = await send(`${path("workflows", name)}/run-nowait`, `{"start_event":${event}}`, { headers: { "Idempotency-Key": keyOf(event) } });
    lookNow();
    go(hashOf("runs", run.handler_id));
  };
  return h("div", { class: "columns" },
    h("section", { class: "card start-form", "aria-label": `Start ${name}` },
      h("h2", { class: "value" }, isOnly ? name : "Start event"),
      error && h(Problem, { title: error.message }),
      data && h(Form, { schema: data.start, button: "Start the run", onSend, autofocus: true })),
    h("section", { class: "card graph-card", "aria-label": "Graph" }, h(Graph, { workflow: name })));
}
