"use strict";
(() => {
  async function poll() {
    let ended = false;
    try {
      const answer = await fetch("/data", { cache: "no-store" });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      const { data, ...state } = await answer.json();
      ended = state.ended;
      document.dispatchEvent(new CustomEvent("renew", { detail: data }));
    } catch {
      // The server has gone with the run: the last state stays.
      return;
    }
    if (!ended) setTimeout(poll, 1000);
  }
  poll();
})();
