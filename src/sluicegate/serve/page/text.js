// Times and values as text.

export function duration(ms) {
  if (ms === null || Number.isNaN(ms)) return "";
  if (ms < 1_000) return `${Math.max(0, Math.round(ms))} ms`;
  if (ms < 60_000) return `${(ms / 1_000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1_000), minutes = Math.floor(seconds / 60), hours = Math.floor(minutes / 60);
  if (minutes < 60) return `${minutes} min ${seconds % 60} s`;
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function ago(time, now = Date.now()) {
  const seconds = Math.round((now - time) / 1_000);
  if (seconds < 5) return "just now";
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3_600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3_600)} h ago`;
  return new Date(time).toLocaleDateString(undefined, { day: "numeric", month: "short", year: "numeric" });
}

export const exact = (time) => (time === null ? "" : new Date(time).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" }));

export const count = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

// One line for a value.
export function brief(value, most = 160) {
  if (value && typeof value === "object" && !Array.isArray(value)) {
    const parts = [];
    let length = 0;
    for (const [key, one] of Object.entries(value)) {
      const text = `${key}=${short(one, most)}`;
      parts.push(text);
      length += text.length + 2;
      if (length > most) break;
    }
    return cut(parts.join("  "), most);
  }
  return short(value, most);
}

const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

function short(value, most) {
  if (typeof value === "string") return cut(JSON.stringify(value.slice(0, most + 1)), most);
  if (Array.isArray(value) && value.length > 20) return `[${value.length} items]`;
  return cut(JSON.stringify(value) ?? "", most);
}
