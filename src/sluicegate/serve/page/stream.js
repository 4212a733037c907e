// The stream of a run: its events as they come, and how the connection does.

import { h } from "./vendor/preact.js";
import { useEffect, useLayoutEffect, useReducer, useRef, useState } from "./vendor/hooks.js";
import { follow } from "./api.js";
import { Value } from "./parts.js";
import { tell } from "./store.js";
import { brief, count } from "./text.js";

const KEPT = 5_000, SHOWN = 200;
// Notices of the server between the events.
const NOTICES = { StreamGap: (value) => `${count(value.missed ?? 0, "event")} missed: the server was faster than this page.`, ServerStopping: () => "The server is stopping." };

const isA = (envelope, name) => envelope.type === name || (envelope.types ?? []).includes(name);

// Read the stream of a run, from its first event that the server has; return {rows, events, dropped, state}.
// It begins when `silence` is known.
export function useStream(run, silence) {
  const kept = useRef(null);
  const [, again] = useReducer((n) => n + 1, 0);
  if (kept.current?.run !== run) kept.current = { run, rows: [], reports: new Map(), events: 0, dropped: 0, state: "connecting", problem: "" };
  const isReady = silence !== null;
  useEffect(() => {
    if (!isReady) return undefined;
    const control = new AbortController(), stream = kept.current;
    let frame = 0, number = 0;
    const renew = () => { frame ||= setTimeout(() => { frame = 0; again(); }, 60); };
    const onEvent = ({ envelope }) => {
      const notice = Object.hasOwn(NOTICES, envelope.type) ? NOTICES[envelope.type](envelope.value ?? {}) : "";
      if (!notice) stream.events++;
      // The reports of one invocation are one row, too.
      const report = isA(envelope, "ProgressEvent") ? JSON.stringify([envelope.value.run_id, envelope.value.invocation]) : null;
      const earlier = report && stream.reports.get(report);
      if (earlier && stream.rows.includes(earlier)) {
        Object.assign(earlier, { number: stream.events, value: envelope.value, pieces: earlier.pieces + 1 });
        renew();
        return;
      }
      const before = stream.rows.at(-1);
      const isDelta = isA(envelope, "TextDelta") || isA(envelope, "ReasoningDelta");
      // The pieces of one message are one row.
      if (isDelta && before?.delta && before.type === envelope.type && before.message === envelope.value.message) {
        before.text += envelope.value.text ?? "";
        before.pieces++;
        before.number = stream.events;
      } else {
        stream.rows.push({ key: ++number, number: stream.events, type: envelope.type, value: envelope.value ?? {}, notice, isLast: isA(envelope, "StopEvent"),
          ...(report && { isReport: true, pieces: 1 }), ...(isDelta && { delta: true, message: envelope.value.message, text: envelope.value.text ?? "", pieces: 1 }) });
      }
      if (report) stream.reports.set(report, stream.rows.at(-1));
      if (stream.rows.length > KEPT) stream.dropped += stream.rows.splice(0, stream.rows.length - KEPT).length;
      renew();
    };
    const onState = (state, problem) => {
      if (state === "resumed") {
        tell(stream.events ? `Connected again; the stream continues after event ${stream.events}.` : "Connected again.");
      }
      if (state === "anew") {
        tell("Connected again; the server does not know the events from before, so the stream begins anew.");
        Object.assign(stream, { rows: [], reports: new Map(), events: 0, dropped: 0 });
      }
      stream.state = state === "resumed" ? "live" : state === "anew" ? "connecting" : state;
      stream.problem = problem?.message ?? "";
      renew();
    };
    follow(run, { onEvent, onState, signal: control.signal, silence });
    return () => { control.abort(); clearTimeout(frame); };
  }, [run, isReady]);
  return kept.current;
}

const WORDS = { connecting: "connecting", live: "live", lost: "connection lost, trying again", over: "ended", gone: "not on the server", refused: "refused" };

export function Stream({ stream }) {
  const [find, setFind] = useState(""), [limit, setLimit] = useState(SHOWN);
  const list = useRef(null), isAtEnd = useRef(true);
  const needle = find.trim().toLowerCase();
  const all = needle ? stream.rows.filter((row) => row.type.toLowerCase().includes(needle) || (row.text ?? JSON.stringify(row.value)).toLowerCase().includes(needle)) : stream.rows;
  const rows = all.slice(-limit);
  // New events keep the end in view for someone who looks at the end.
  useLayoutEffect(() => { if (isAtEnd.current) list.current.scrollTop = list.current.scrollHeight; });
  const onScroll = () => { const e = list.current; isAtEnd.current = e.scrollHeight - e.scrollTop - e.clientHeight < 24; };
  return h("div", { class: "stream-view" },
    h("div", { class: "stream-head" },
      h("span", { class: `link-state ${stream.state}`, role: "status" }, h("i", { "aria-hidden": "true" }), WORDS[stream.state], stream.problem && `: ${stream.problem}`),
      h("span", { class: "dim" }, count(stream.events, "event")),
      h("input", { type: "search", placeholder: "Find an event", "aria-label": "Find an event", value: find, autocomplete: "off", onInput: (event) => setFind(event.target.value) })),
    h("div", { class: "events", ref: list, onScroll, tabIndex: 0, role: "group", "aria-label": "Events" },
      stream.dropped > 0 && h("p", { class: "dim pad" }, `The first ${count(stream.dropped, "event")} are no longer shown.`),
      all.length > rows.length && h("p", { class: "pad" }, h("button", { type: "button", class: "link", onClick: () => { isAtEnd.current = false; setLimit(limit * 4); } }, `Show ${(all.length - rows.length).toLocaleString("en")} earlier`)),
      !rows.length && h("p", { class: "dim pad" }, needle ? "No event matches." : stream.state === "over" ? "The run published no event." : stream.state === "gone" ? "The server does not have this run." : "No event yet."),
      rows.map((row) => h(Row, { key: row.key, row }))));
}

const LOOKS = { WorkflowFailedEvent: "failed", WorkflowTimedOutEvent: "failed", WorkflowCancelledEvent: "cancelled" };

// How far an invocation is.
function Report({ row }) {
  const { step, invocation, done, total, message } = row.value;
  return h("div", { class: "entry" }, h("div", { class: "entry-head" }, h("span", { class: "seq" }, row.number), h("span", { class: "type value" }, step), h("span", { class: "dim" }, `#${invocation}`),
    total ? h("progress", { value: done, max: total, "aria-label": `Progress of ${step} #${invocation}` }) : null,
    h("span", { class: "brief value" }, [total ? `${done} of ${total}` : String(done), message].filter(Boolean).join(" · "))));
}

function Row({ row }) {
  const [open, setOpen] = useState(false);
  if (row.notice) return h("p", { class: "notice-row" }, row.notice);
  if (row.delta) return h("div", { class: "entry said" }, h("div", { class: "entry-head" }, h("span", { class: "seq" }, row.number), h("span", { class: "type value" }, row.type), h("span", { class: "dim" }, count(row.pieces, "piece"))), h("p", { class: "value lines" }, row.text));
  if (row.isReport) return h(Report, { row });
  const isEmpty = !Object.keys(row.value).length;
  const head = [h("span", { class: "seq" }, row.number), h("span", { class: "type value" }, row.type), h("span", { class: "brief value" }, open ? "" : brief(row.value))];
  return h("div", { class: row.isLast ? `entry last ${LOOKS[row.type] ?? "completed"}` : "entry" },
    isEmpty ? h("div", { class: "entry-head" }, head) : h("button", { type: "button", class: "entry-head", "aria-expanded": String(open), onClick: () => setOpen(!open) }, head),
    open && h(Value, { value: row.value }));
}
