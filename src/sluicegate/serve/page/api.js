// Requests to the server: JSON, the token, and streams of server-sent events.

const TOKEN = "sluicegate-token";
const BASE = new URL(".", location.href.split("#")[0]);
const FIRST_DELAY = 300, LONGEST_DELAY = 5_000;

// The token lives as long as the tab.
export const token = {
  get: () => sessionStorage.getItem(TOKEN) ?? "",
  set: (text) => (text ? sessionStorage.setItem(TOKEN, text) : sessionStorage.removeItem(TOKEN)),
};

// The server answered with an error.
export class Refused extends Error {
  constructor(status, body) {
    const detail = body && typeof body === "object" ? body.detail : body;
    super(typeof detail === "string" && detail ? detail : `the server answered with status ${status}`);
    this.status = status;
    this.body = body;
  }
}

// There was no answer.
export class Unreachable extends Error {
  constructor() {
    super("The server cannot be reached.");
  }
}

const enc = encodeURIComponent;

// Join parts of a path, each of which may contain anything.
export const path = (...parts) => parts.map(enc).join("/");

async function open(where, { method = "GET", query = {}, headers = {}, body, signal } = {}) {
  const url = new URL(where, BASE);
  for (const [name, value] of Object.entries(query)) if (value !== undefined) url.searchParams.set(name, value);
  const all = { Accept: "application/json", ...headers };
  if (token.get()) all.Authorization = `Bearer ${token.get()}`;
  if (body !== undefined) all["Content-Type"] = "application/json";
  try {
    return await fetch(url, { method, headers: all, body, signal, cache: "no-store", credentials: "same-origin" });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Unreachable();
  }
}

async function refusal(answer) {
  const text = await answer.text().catch(() => "");
  try {
    return new Refused(answer.status, JSON.parse(text));
  } catch {
    return new Refused(answer.status, text.slice(0, 500));
  }
}

// Ask for JSON. `body` is text, so that numbers of any size go as they were written.
export async function ask(where, options = {}) {
  const answer = await open(where, options);
  if (answer.status === 304) return null;
  if (!answer.ok) throw await refusal(answer);
  try {
    const data = await answer.json();
    return options.etag ? { data, etag: answer.headers.get("ETag") } : data;
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Unreachable();
  }
}

export const send = (where, body, options = {}) =>
  ask(where, { method: "POST", body: typeof body === "string" ? body : JSON.stringify(body), ...options });

// Return a function that gives a text its id: the same for the same text again, so that the server takes a
// second try of a request once.
export function idsOf() {
  let last = null, id = "";
  return (text) => {
    if (text !== last) { last = text; id = randomId(); }
    return id;
  };
}

// `crypto.randomUUID` is there over HTTPS and on this machine only.
const randomId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

// -- server-sent events -----------------------------------------------------------------------------

// Yield the events of a body: their id, name and data.
async function* eventsOf(body, onBytes) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", id = null, name = "message", data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      onBytes();
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (let line of lines) {
        if (line.endsWith("\r")) line = line.slice(0, -1);
        if (line === "") {
          if (data.length) yield { id, name, data: data.join("\n") };
          name = "message";
          data = [];
          continue;
        }
        const colon = line.indexOf(":");
        if (colon === 0) continue;
        const field = colon < 0 ? line : line.slice(0, colon);
        const text = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
        if (field === "id") id = text;
        else if (field === "event") name = text;
        else if (field === "data") data.push(text);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

const sleep = (ms, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
  });

// Follow the events of a run until it is over, and connect again after the last one that was read.
//
// `onEvent({cursor, name, envelope})` gets each event, `onState(state)` one of "connecting",
// "live", "lost", "resumed", "anew" (the server does not know the cursor), "over", "gone" and "refused". `silence` is how many milliseconds may pass
// without a byte, heartbeats included.
export async function follow(run, { onEvent, onState, signal, silence }) {
  let cursor = null, delay = FIRST_DELAY, wasLost = false;
  onState("connecting");
  while (!signal.aborted) {
    const attempt = new AbortController();
    const abort = () => attempt.abort();
    signal.addEventListener("abort", abort, { once: true });
    let timer = setTimeout(abort, silence);
    const heard = () => { clearTimeout(timer); timer = setTimeout(abort, silence); };
    try {
      const answer = await open(path("events", run), {
        query: cursor === null ? { sse: "true", after_sequence: "-1" } : { sse: "true" },
        headers: { Accept: "text/event-stream", ...(cursor === null ? {} : { "Last-Event-ID": cursor }) },
        signal: attempt.signal,
      });
      if (answer.status === 204) { onState("over"); return; }
      if (answer.status === 404) { onState("gone"); return; }
      if (answer.status === 400 && cursor !== null) { cursor = null; onState("anew"); continue; }
      if (answer.status < 500 && !answer.ok) { onState("refused", await refusal(answer)); return; }
      if (!answer.ok) throw new Unreachable();
      onState(wasLost ? "resumed" : "live");
      wasLost = false;
      for await (const { id, name, data } of eventsOf(answer.body, heard)) {
        delay = FIRST_DELAY;
        if (id !== null) cursor = id;
        onEvent({ name, envelope: JSON.parse(data) });
      }
      // The stream has ended. When the run is over as well, the next answer says so.
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof SyntaxError) { onState("refused", error); return; }
      wasLost = true;
      onState("lost");
    } finally {
      clearTimeout(timer);
      signal.removeEventListener("abort", abort);
    }
    await sleep(delay, signal);
    delay = Math.min(delay * 1.6, LONGEST_DELAY);
  }
}
