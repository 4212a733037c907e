// One run: what became of it, its questions, its graph, timeline, stream and state.

import { h } from "./vendor/preact.js";
import { useEffect, useRef, useState } from "./vendor/hooks.js";
import { ask, path, Refused, send } from "./api.js";
import { Graph } from "./graph.js";
import { Copy, Dialog, Empty, Heading, Problem, Status, Value } from "./parts.js";
import { Question } from "./question.js";
import { hashOf, lookNow, replacePlace, runOf, tell, useFetched, useServer } from "./store.js";
import { Stream, useStream } from "./stream.js";
import { duration, exact } from "./text.js";

const WIDE = matchMedia("(min-width: 1180px)");

function useWide() {
  const [isWide, setWide] = useState(WIDE.matches);
  useEffect(() => {
    const changed = () => setWide(WIDE.matches);
    WIDE.addEventListener("change", changed);
    return () => WIDE.removeEventListener("change", changed);
  }, []);
  return isWide;
}

// How long nothing may be heard of a stream: a little more than two heartbeats, if there are any.
const silenceOf = (config) => (config.heartbeat === null ? 2 ** 31 - 1 : Math.min(2 ** 31 - 1, 2_000 * config.heartbeat + 5_000));

export function Run({ id, tab }) {
  const { config, handlers } = useServer();
  const listed = handlers?.find((run) => run.id === id);
  // The list tells that something has changed; this asks what.
  const stamp = listed ? `${listed.status} ${listed.questions} ${listed.updated_at}` : "";
  const { data, error } = useFetched((signal) => ask(path("handlers", id), { signal }), listed && listed.isOver ? null : 1_500, [id, stamp]);
  const run = data ? runOf({ ...data, ...(listed && { questions: listed.questions }) }) : listed;
  const isGone = error instanceof Refused && error.status === 404;
  const stream = useStream(id, config && silenceOf(config));
  const isWide = useWide();
  const [asksCancel, setAsksCancel] = useState(false);

  if (!run) {
    return h("div", null, h("div", { class: "view-head" }, h("div", null, h(Crumbs), h(Heading, { title: id, class: "value" }, id))),
      isGone ? h(Empty, { title: "The server does not have this run" }, h("p", null, "It may have been removed, or the server was restarted and has no store."), h("p", null, h("a", { href: "#/" }, "All runs")))
        : error ? h(Problem, { title: error.message }) : h("p", { class: "dim", role: "status" }, "Loading the run…"));
  }
  const canCancel = !config?.read_only && !run.isOver && !isGone;
  return h("div", { class: "run-view" },
    h("div", { class: "view-head" },
      h("div", { class: "run-title" }, h(Crumbs), h(Heading, { title: `${run.workflow} ${id}`, class: "value" }, run.workflow),
        h("p", { class: "facts" }, h(Status, { run: isGone && !run.isOver ? { ...run, look: "cancelled" } : run }), h("span", { class: "id value" }, id), h(Copy, { text: id, what: "the run's id" }),
          h("span", { class: "dim" }, h("time", { dateTime: run.started_at }, exact(run.started)), ` · ${duration((run.ended ?? Date.now()) - run.started)}`))),
      canCancel && h("button", { type: "button", class: "danger", id: "cancel", "aria-keyshortcuts": "c", onClick: () => setAsksCancel(true) }, "Cancel the run")),
    asksCancel && h(Cancel, { id, onClose: () => setAsksCancel(false) }),
    isGone && h(Problem, { title: "The server no longer has this run" }, "What was read of it is still shown. A server with a store keeps its runs when it is restarted."),
    h("div", { class: isWide ? "split" : "" },
      h("div", { class: "main-side" },
        h(Outcome, { run }),
        h(Asked, { id, run, isReadOnly: config?.read_only }),
        h(Tabs, { id, tab, run, stream, isWide })),
      isWide && h("section", { class: "card side", "aria-label": "Stream" }, h("h2", null, "Stream"), h(Stream, { stream }))));
}

const Crumbs = () => h("nav", { class: "crumbs", "aria-label": "Breadcrumb" }, h("a", { href: "#/" }, "Runs"));

function Cancel({ id, onClose }) {
  const [reason, setReason] = useState(""), [failure, setFailure] = useState(""), [isBusy, setBusy] = useState(false);
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    try {
      await send(`${path("handlers", id)}/cancel`, undefined, { query: { reason: reason.trim() || undefined } });
      tell("The run was cancelled.");
      lookNow();
      onClose();
    } catch (error) {
      setFailure(error.message);
      setBusy(false);
    }
  };
  return h(Dialog, { title: "Cancel the run", onClose }, h("form", { class: "form", onSubmit: submit },
    h("p", { class: "dim" }, "Its steps are cancelled where they are, and clean up. This cannot be undone."),
    h("div", { class: "field" }, h("label", { for: "reason" }, "Reason"), h("input", { id: "reason", value: reason, autocomplete: "off", maxLength: 500, placeholder: "optional, shown with the run", onInput: (event) => setReason(event.target.value) })),
    failure && h(Problem, { title: failure }),
    h("div", { class: "buttons" }, h("button", { type: "submit", class: "danger", disabled: isBusy }, isBusy ? "Cancelling…" : "Cancel the run"), h("button", { type: "button", class: "quiet", onClick: onClose }, "Keep it running"))));
}

// How the run ended.
function Outcome({ run }) {
  if (!run.isOver) return null;
  if (run.look === "failed") return h(Problem, { title: run.timed_out ? "The run timed out" : "The run failed" }, h("pre", { class: "lines" }, run.error ?? ""));
  if (run.look === "cancelled") return h("div", { class: "outcome" }, h("strong", null, "Cancelled"), (run.reason || run.error) && h("span", { class: "value" }, `: ${run.reason || run.error}`));
  const value = run.result?.value ?? {}, names = Object.keys(value);
  if (!names.length) return null;
  const only = names.length === 1 ? value[names[0]] : value;
  return h("section", { class: "outcome", "aria-label": "Result" }, h("h2", null, "Result"), h("div", { class: "result" }, h(Value, { value: only })));
}

// The open questions. A form that is filled in must not go with a restart of the server, after which a run
// needs a moment to know its questions again: a question goes when it was missing twice.
function Asked({ id, run, isReadOnly }) {
  const [kept, setKept] = useState([]);
  const mayAsk = !run.isOver && (run.questions > 0 || kept.length > 0);
  const { data } = useFetched((signal) => (mayAsk ? ask(`${path("handlers", id)}/questions`, { signal }) : Promise.resolve(null)), mayAsk ? 1_500 : null, [id, mayAsk]);
  useEffect(() => { if (data) setKept((before) => merged(before, data.questions)); }, [data]);
  return run.isOver ? null : kept.map(({ question }) => h(Question, { key: question.id, run: id, question, isReadOnly }));
}

function merged(before, open) {
  const ids = new Set(open.map((question) => question.id));
  const missing = before.filter((one) => !ids.has(one.question.id) && !one.isMissing);
  return [...open.map((question) => ({ question, isMissing: false })), ...missing.map((one) => ({ ...one, isMissing: true }))];
}

// -- tabs --------------------------------------------------------------------------------------------------

const TABS = [["graph", "Graph"], ["timeline", "Timeline"], ["stream", "Stream"], ["state", "State"], ["details", "Details"]];

function Tabs({ id, tab, run, stream, isWide }) {
  const tabs = TABS.filter(([name]) => !(isWide && name === "stream"));
  const now = tabs.some(([name]) => name === tab) ? tab : "graph";
  const choose = (name) => replacePlace(name === "graph" ? ["runs", id] : ["runs", id, name], []);
  const onKeyDown = (event) => {
    const at = tabs.findIndex(([name]) => name === now);
    const next = { ArrowRight: (at + 1) % tabs.length, ArrowLeft: (at + tabs.length - 1) % tabs.length, Home: 0, End: tabs.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    choose(tabs[next][0]);
    event.currentTarget.children[next].focus();
  };
  return h("section", { class: "card tabs-card", "aria-label": "The run" },
    h("div", { class: "tabs", role: "tablist", "aria-label": "Views of the run", onKeyDown },
      tabs.map(([name, word]) => h("button", { key: name, type: "button", role: "tab", id: `tab-${name}`, "aria-controls": "tab-panel", "aria-selected": String(name === now), tabIndex: name === now ? 0 : -1, onClick: () => choose(name) }, word))),
    h("div", { class: "tab-panel", role: "tabpanel", id: "tab-panel", "aria-labelledby": `tab-${now}` },
      now === "graph" ? h(Lived, { id, run, part: GraphOf }) : now === "timeline" ? h(Lived, { id, run, part: Timeline })
        : now === "stream" ? h(Stream, { stream }) : now === "state" ? h(State, { id, run }) : h(Details, { run })));
}

// The recorder's data of the run, for the graph and the timeline.
function Lived({ id, run, part }) {
  const { data, error } = useFetched((signal) => ask(`${path("handlers", id)}/timeline`, { signal }), run.isOver ? null : 1_000, [id, run.isOver, run.questions, run.updated_at]);
  return h(part, { run, recorded: data, error });
}

function GraphOf({ run, recorded, error }) {
  const isPart = recorded?.is_part; // the run had begun before
  return h("div", null,
    isPart && h("p", { class: "dim pad" }, "The marks show what has happened since the run was last continued."),
    error && !recorded && error.status !== 404 && h("p", { class: "dim pad" }, error.message),
    h(Graph, { workflow: run.workflow, steps: recorded?.steps, isOver: run.isOver && !isPart }));
}

// The recorder's own page in a frame, which gets its data from here.
function Timeline({ recorded, error }) {
  const frame = useRef(null), [isLoaded, setLoaded] = useState(false);
  useEffect(() => {
    if (isLoaded && recorded) frame.current.contentDocument.dispatchEvent(new CustomEvent("renew", { detail: recorded.timeline }));
  }, [isLoaded, recorded]);
  if (!recorded) return error ? h(Empty, { title: "There is no timeline" }, h("p", null, error.status === 404 ? "This run was not recorded: it began before the server started, or elsewhere." : error.message)) : h("p", { class: "dim pad", role: "status" }, "Loading the timeline…");
  return h("iframe", { ref: frame, class: "timeline", title: "Timeline of the run", src: "assets/timeline.html", onLoad: () => setLoaded(true) });
}

function State({ id, run }) {
  const { data, error } = useFetched((signal) => ask(`${path("handlers", id)}/state`, { signal }), run.isOver ? null : 1_000, [id, run.isOver]);
  if (!data) return error ? h(Empty, { title: "There is no state" }, h("p", null, error.message)) : h("p", { class: "dim pad", role: "status" }, "Loading the state…");
  const state = data.state ?? data;
  return h("div", { class: "pad" }, error && h("p", { class: "dim" }, error.message), Object.keys(state).length ? h(Value, { value: state }) : h(Empty, { title: "The state is empty" }, h("p", null, "Values that steps write with ", h("code", null, "ctx.store"), " appear here.")));
}

function Details({ run }) {
  const rows = [["Run", run.id], ["Workflow", run.workflow], ["Status", run.status], ["Began", exact(run.started)], ["Changed", exact(run.updated_at ? Date.parse(run.updated_at) : null)], ["Ended", exact(run.ended)], ["Reason", run.reason]];
  return h("div", { class: "pad" },
    h("dl", { class: "facts-list" }, rows.filter(([, value]) => value).map(([word, value]) => [h("dt", null, word), h("dd", { class: "value" }, value)])),
    run.result && [h("h2", { class: "minor" }, "Ended with ", h("span", { class: "value" }, run.result.type)), h(Value, { value: run.result.value })]);
}
