// The page: its frame, its views by address, and its keys.

import { h, render } from "./vendor/preact.js";
import { useLayoutEffect, useRef, useState } from "./vendor/hooks.js";
import { moveInList, Questions, Runs } from "./list.js";
import { Dialog, Empty, Heading, Problem } from "./parts.js";
import { Run } from "./run.js";
import { Start } from "./start.js";
import { giveToken, go, hashOf, keepUpToDate, usePlace, useServer } from "./store.js";

function App() {
  const server = useServer(), { parts, query } = usePlace();
  const [showsKeys, setShowsKeys] = useState(false);
  useLayoutEffect(() => { // before the next key
    const onKey = (event) => pressed(event, parts, () => setShowsKeys(true));
    document.addEventListener("keydown", onKey);
    return () => document.removeEventListener("keydown", onKey);
  });
  return [
    h("a", { class: "skip", href: "#content", onClick: (event) => { event.preventDefault(); document.getElementById("content").focus(); } }, "Skip to the content"),
    h(Top, { server, parts, onKeys: () => setShowsKeys(true) }),
    server.connection === "lost" && h("p", { class: "banner", role: "alert" }, "The connection to the server is lost. Trying again…"),
    h("main", { id: "content", tabIndex: -1 }, server.isRefused ? h(Token, { wasTried: server.wasTried }) : [server.error && h(Problem, { title: server.error }), h(View, { parts, query })]),
    h("div", { class: "notices", role: "status" }, server.notices.map((one, i) => h("p", { key: i }, one.text))),
    showsKeys && h(Keys, { onClose: () => setShowsKeys(false), isReadOnly: server.config?.read_only }),
  ];
}

function View({ parts, query }) {
  const [first, second, third] = parts;
  if (!first) return h(Runs, { key: "runs", query });
  if (first === "runs" && second) return h(Run, { key: `run ${second}`, id: second, tab: third });
  if (first === "questions") return h(Questions, { key: "questions" });
  if (first === "start") return h(Start, { key: "start", name: second });
  return h(Empty, { title: "There is no such page" }, h("a", { href: "#/" }, "All runs"));
}

function Top({ server, parts, onKeys }) {
  const asked = server.handlers?.reduce((sum, run) => sum + (run.isOver ? 0 : run.questions), 0) ?? 0;
  const link = (href, word, isHere, more) => h("a", { href, "aria-current": isHere ? "page" : undefined }, word, more);
  return h("header", { class: "top" },
    h("a", { class: "brand", href: "#/" }, h("img", { src: "assets/icon.svg", alt: "", width: 20, height: 20 }), "sluicegate"),
    h("nav", { "aria-label": "Pages" },
      link("#/", "Runs", !parts[0] || parts[0] === "runs"),
      link("#/questions", "Questions", parts[0] === "questions", asked > 0 && h("span", { class: "n hot" }, asked)),
      server.config && !server.config.read_only && link(hashOf("start"), "Start", parts[0] === "start")),
    h("div", { class: "top-end" },
      server.config?.read_only && h("span", { class: "pill" }, "read-only"),
      h("span", { class: `link-state ${server.connection}`, title: server.config?.version && `sluicegate ${server.config.version}` }, h("i", { "aria-hidden": "true" }), { live: "live", lost: "offline", connecting: "connecting" }[server.connection]),
      server.config?.authenticates && !server.isRefused && h("button", { type: "button", class: "quiet small", onClick: () => giveToken("") }, "Forget the token"),
      h("button", { type: "button", class: "quiet small keys-button", "aria-keyshortcuts": "?", onClick: onKeys }, "Keys")));
}

function Token({ wasTried }) {
  const [text, setText] = useState(""), field = useRef(null);
  useLayoutEffect(() => field.current.focus(), []);
  return h("div", { class: "token card" }, h(Heading, { title: "Token" }, "This server asks for a token"),
    h("form", { class: "form", onSubmit: (event) => { event.preventDefault(); giveToken(text.trim()); } },
      wasTried && h(Problem, { title: "The server refused the last token." }),
      h("div", { class: "field" }, h("label", { for: "token" }, "Token"), h("input", { ref: field, id: "token", type: "password", autocomplete: "off", spellcheck: false, value: text, onInput: (event) => setText(event.target.value) }),
        h("p", { class: "about" }, "It is kept until this tab is closed, and sent to this server only.")),
      h("div", { class: "buttons" }, h("button", { type: "submit", class: "primary", disabled: !text.trim() }, "Continue"))));
}

const KEYS = [["/", "find a run"], ["j, k", "next and previous run"], ["Enter", "open the run"], ["s", "start a run"], ["q", "questions"], ["g", "all runs"], ["c", "cancel the run"], ["Ctrl+Enter", "send a form"], ["← →", "other tabs of a run"], ["+ −", "zoom the graph"], ["Esc", "close a dialog, leave a field"], ["?", "these keys"]];

function Keys({ onClose, isReadOnly }) {
  const keys = KEYS.filter(([key]) => !isReadOnly || !["s", "c"].includes(key));
  return h(Dialog, { title: "Keys", onClose },
    h("dl", { class: "keys" }, keys.map(([key, what]) => [h("dt", null, h("kbd", null, key)), h("dd", null, what)])),
    h("div", { class: "buttons" }, h("button", { type: "button", class: "quiet", onClick: onClose }, "Close")));
}

function pressed(event, parts, showKeys) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const isField = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.key === "Escape") {
    if (!isField) return;
    event.target.blur();
  } else if (isField) return;
  else if (event.key === "/") { const field = document.querySelector("#find, .stream-view input[type=search]"); if (!field) return; field.focus(); }
  else if (!parts.length && (event.key === "j" || event.key === "ArrowDown")) { if (!moveInList(1)) return; }
  else if (!parts.length && (event.key === "k" || event.key === "ArrowUp")) { if (!moveInList(-1)) return; }
  else if (event.key === "s") go(hashOf("start"));
  else if (event.key === "q") go("#/questions");
  else if (event.key === "g") go("#/");
  else if (event.key === "c") document.getElementById("cancel")?.click();
  else if (event.key === "?") showKeys();
  else return;
  event.preventDefault();
}

render(h(App), document.getElementById("app"));
keepUpToDate();
