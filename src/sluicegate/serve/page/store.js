// What the page knows of the server: its settings, its workflows and its runs, kept up to date.

import { useEffect, useRef, useState } from "./vendor/hooks.js";
import { ask, Refused, token } from "./api.js";

const state = {
  config: null, // {read_only, authenticates, version, instance, heartbeat}
  workflows: null, // names
  handlers: null, // the newest runs, the newest first
  limit: 300, // how many of them are asked for
  hasOlder: false,
  connection: "connecting", // "live", "lost"
  isRefused: false, // a token is needed
  wasTried: false, // one was given since
  error: "",
  notices: [], // lines that are shown for a while
};
const MOST = 1_000; // the server lists no more
const listeners = new Set();
let etag = null, isTrying = false, wake = () => {};

function set(changes) {
  Object.assign(state, changes);
  for (const listener of [...listeners]) listener();
}

// Return what the page knows, and render again when it changes.
export function useServer() {
  const [, again] = useState(0);
  useEffect(() => {
    const listener = () => again((n) => n + 1);
    listeners.add(listener);
    return () => listeners.delete(listener);
  }, []);
  return state;
}

// Show a line for some seconds; screen readers say it.
export function tell(text) {
  const notice = { text };
  set({ notices: [...state.notices.slice(-2), notice] });
  setTimeout(() => set({ notices: state.notices.filter((one) => one !== notice) }), 6_000);
}

export function giveToken(text) {
  token.set(text);
  etag = null;
  set({ wasTried: false, isRefused: true, handlers: text ? state.handlers : null });
  isTrying = text !== "";
  wake();
}

export function showOlder() {
  etag = null;
  state.limit = MOST;
  wake();
}

// Look at once instead of at the next interval.
export const lookNow = () => wake();

const STATUSES = new Set(["running", "completed", "failed", "cancelled"]);

// The server's data of a run, with the times as numbers; a status that is unknown counts as running.
export function runOf(data) {
  const time = (text) => (text ? Date.parse(text) : null);
  return {
    ...data,
    id: data.handler_id,
    workflow: data.workflow_name,
    look: STATUSES.has(data.status) ? data.status : "running",
    isOver: data.status !== "running",
    started: time(data.started_at),
    ended: time(data.completed_at),
    questions: data.questions ?? 0,
  };
}

async function look() {
  const config = await ask("assets/config.json");
  if (state.workflows === null || state.config.instance !== config.instance) {
    const isOther = state.workflows !== null;
    Object.assign(state, { config, workflows: null });
    etag = null;
    state.workflows = (await ask("workflows")).workflows;
    if (isOther) tell("The server was restarted. Connected again.");
  } else if (state.connection === "lost") {
    tell("Connected again.");
  }
  const answer = await ask("handlers", { query: { limit: state.limit }, etag: true, headers: etag ? { "If-None-Match": etag } : {} });
  const changes = { connection: "live", isRefused: false, error: "" };
  if (answer !== null) {
    etag = answer.etag;
    changes.hasOlder = Boolean(answer.data.next) && state.limit < MOST;
    changes.handlers = answer.data.handlers.map(runOf).sort((a, b) => (b.started ?? 0) - (a.started ?? 0));
  }
  set(changes);
}

function refused() {
  set({ isRefused: true, wasTried: isTrying, connection: "live" });
  isTrying = false;
}

// Keep the list of runs up to date, more often while something happens.
export async function keepUpToDate() {
  document.addEventListener("visibilitychange", () => wake());
  for (;;) {
    if (!document.hidden) {
      try {
        await look();
      } catch (error) {
        if (error instanceof Refused && (error.status === 401 || error.status === 403)) refused();
        else if (error instanceof Refused && error.status < 500) set({ error: error.message, connection: "live" });
        else set({ connection: "lost" });
      }
    }
    const isBusy = state.connection !== "live" || state.handlers?.some((run) => !run.isOver);
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, isBusy ? 1_000 : 1_500);
      wake = () => { clearTimeout(timer); resolve(); };
    });
  }
}

// Call an asynchronous function now and again, `every` milliseconds after its answer; while the tab
// is hidden it rests. `every` of null asks once. Return what it returned, and its last error.
export function useFetched(fetched, every, keys) {
  const [found, setFound] = useState({ data: null, error: null });
  const kept = useRef(fetched);
  kept.current = fetched;
  useEffect(() => {
    const control = new AbortController();
    let timer = 0, isMissing = false;
    const run = async () => {
      const began = performance.now();
      if (!document.hidden) {
        try {
          const data = await kept.current(control.signal);
          if (!control.signal.aborted) setFound({ data, error: null });
        } catch (error) {
          // What was there stays in view. What is not there is not asked for again and again.
          isMissing = error instanceof Refused && error.status === 404;
          if (!control.signal.aborted) setFound((before) => ({ data: before.data, error }));
        }
      }
      // An answer that took long is not asked for all the time.
      const rest = every === null ? null : Math.max(every, 8 * (performance.now() - began));
      if (rest !== null && !isMissing && !control.signal.aborted) timer = setTimeout(run, rest);
    };
    run();
    return () => { control.abort(); clearTimeout(timer); };
  }, [every, ...keys]);
  return found;
}

// -- the place in the page, which is in the address -----------------------------------------------------

function placeOf(hash) {
  const [where, search = ""] = hash.replace(/^#\/?/, "").split("?");
  const parts = where.split("/").filter(Boolean).map((part) => {
    try { return decodeURIComponent(part); } catch { return part; }
  });
  return { parts, query: new URLSearchParams(search) };
}

export function usePlace() {
  const [hash, setHash] = useState(location.hash);
  useEffect(() => {
    const changed = () => setHash(location.hash);
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return placeOf(hash);
}

export const hashOf = (...parts) => `#/${parts.map(encodeURIComponent).join("/")}`;

export function go(hash) {
  location.hash = hash;
}

// Change the address without a new entry in the history.
export function replacePlace(parts, query) {
  const text = new URLSearchParams([...query].filter(([, value]) => value)).toString();
  history.replaceState(null, "", hashOf(...parts) + (text ? `?${text}` : ""));
  dispatchEvent(new HashChangeEvent("hashchange"));
}
