// The list of runs, and the open questions of all runs.

import { h } from "./vendor/preact.js";
import { useEffect, useRef, useState } from "./vendor/hooks.js";
import { ask } from "./api.js";
import { Empty, Heading, Problem, Status } from "./parts.js";
import { Question } from "./question.js";
import { hashOf, replacePlace, showOlder, useFetched, useServer } from "./store.js";
import { ago, count, duration, exact } from "./text.js";

const PAGE = 100;
const FILTERS = [["", "All"], ["running", "Running"], ["asks", "Needs an answer"], ["completed", "Completed"], ["failed", "Failed"], ["cancelled", "Cancelled"]];

const isOf = (run, filter) => !filter || (filter === "asks" ? run.questions > 0 && !run.isOver : run.look === filter);

export function Runs({ query }) {
  const { handlers, workflows, config, hasOlder } = useServer();
  const [limit, setLimit] = useState(PAGE);
  const filter = query.get("status") ?? "", workflow = query.get("workflow") ?? "", text = query.get("find") ?? "";
  const set = (name, value) => { query.set(name, value); replacePlace([], query); setLimit(PAGE); };
  const canStart = !config?.read_only;

  const head = h("div", { class: "view-head" },
    h(Heading, { title: "Runs" }, "Runs"),
    canStart && h("a", { class: "button primary", href: hashOf("start"), "aria-keyshortcuts": "s" }, "Start a run"));
  if (handlers === null) return h("div", null, head, h("p", { class: "dim", role: "status" }, "Loading the runs…"));
  if (!handlers.length) {
    return h("div", null, head, h(Empty, { title: "No runs yet" },
      canStart ? h("p", null, "Start one here, or with the client: ", h("code", null, `client.run("${workflows?.[0] ?? "name"}", …)`)) : h("p", null, "Runs appear here as soon as they begin.")));
  }
  const needle = text.trim().toLowerCase();
  const near = handlers.filter((run) => (!workflow || run.workflow === workflow) && (!needle || run.id.toLowerCase().includes(needle) || run.workflow.toLowerCase().includes(needle) || (run.error ?? "").toLowerCase().includes(needle)));
  const shown = near.filter((run) => isOf(run, filter));
  const names = [...new Set([...(workflows ?? []), ...handlers.map((run) => run.workflow)])];
  return h("div", null, head,
    h("div", { class: "filters" },
      h("div", { class: "chips", role: "group", "aria-label": "Show runs by status" }, FILTERS.map(([value, word]) => {
        const n = near.filter((run) => isOf(run, value)).length;
        return h("button", { key: value, type: "button", class: "chip", "aria-pressed": String(filter === value), onClick: () => set("status", value) }, word, h("span", { class: "n" }, n.toLocaleString("en")));
      })),
      h("div", { class: "narrow" },
        names.length > 1 && h("select", { "aria-label": "Show runs of a workflow", onChange: (event) => set("workflow", event.target.value) },
          h("option", { value: "", selected: !workflow }, "All workflows"), names.map((name) => h("option", { key: name, value: name, selected: name === workflow }, name))),
        h("input", { type: "search", id: "find", placeholder: "Find a run", "aria-label": "Find a run by its id, workflow or error", "aria-keyshortcuts": "/", value: text, autocomplete: "off", spellcheck: false, onInput: (event) => set("find", event.target.value) }))),
    h("p", { class: "away", role: "status" }, `${count(shown.length, "run")} shown`),
    shown.length
      ? h(Table, { runs: shown.slice(0, limit) })
      : h(Empty, { title: "No run matches" }, h("button", { type: "button", class: "link", onClick: () => replacePlace([], new URLSearchParams()) }, "Show all runs")),
    shown.length > limit && h("p", { class: "more-rows" }, h("button", { type: "button", class: "quiet", onClick: () => setLimit(limit + 4 * PAGE) }, `Show ${Math.min(4 * PAGE, shown.length - limit).toLocaleString("en")} more of ${shown.length.toLocaleString("en")}`)),
    shown.length <= limit && hasOlder && h("p", { class: "more-rows" }, h("span", { class: "dim" }, `These are of the newest ${count(handlers.length, "run")}. `), h("button", { type: "button", class: "quiet", onClick: showOlder }, "Look at older ones")));
}

function Table({ runs }) {
  const now = Date.now();
  return h("table", { class: "runs" },
    h("caption", { class: "away" }, "Runs, the newest first"),
    h("thead", null, h("tr", null, ["Run", "Status", "Started", "Took"].map((word, i) => h("th", { key: word, scope: "col", class: i > 1 ? "end" : "" }, word)))),
    h("tbody", null, runs.map((run) => h("tr", { key: run.id },
      h("td", { class: "what" }, h("a", { href: hashOf("runs", run.id), class: "value run-link" }, h("span", { class: "name" }, run.workflow), h("span", { class: "id" }, run.id)),
        run.error && h("span", { class: `error-line value ${run.look}` }, run.error.split("\n")[0].slice(0, 200))),
      h("td", { class: "how" }, h(Status, { run }), run.questions > 1 && !run.isOver && h("span", { class: "dim" }, ` ${run.questions}`)),
      h("td", { class: "end when" }, h("time", { dateTime: run.started_at, title: exact(run.started) }, ago(run.started, now))),
      h("td", { class: "end took" }, duration((run.ended ?? now) - run.started))))));
}

// -- the questions of all runs -----------------------------------------------------------------------------

export function Questions() {
  const { config, handlers } = useServer();
  const open = handlers?.reduce((sum, run) => sum + (run.isOver ? 0 : run.questions), 0) ?? 0;
  const { data, error } = useFetched((signal) => ask("questions", { signal }), 1_500, [open]);
  const questions = data?.questions;
  return h("div", { class: "narrow-view" },
    h("div", { class: "view-head" }, h(Heading, { title: "Questions" }, "Questions")),
    error && !data && h(Problem, { title: error.message }),
    questions && !questions.length && h(Empty, { title: "Nobody is asked anything" }, h("p", null, "When a run asks a person, its question appears here.")),
    questions?.map((question) => h(Question, { key: `${question.handler_id} ${question.id}`, run: question.handler_id, question, isReadOnly: config?.read_only, workflow: question.workflow_name })));
}

// Keys of the list: j and k, or the arrows, go from run to run.
export function moveInList(by) {
  const links = [...document.querySelectorAll(".run-link")];
  const at = links.indexOf(document.activeElement);
  const next = links[at < 0 ? (by > 0 ? 0 : links.length - 1) : Math.min(links.length - 1, Math.max(0, at + by))];
  next?.focus();
  return Boolean(next);
}
