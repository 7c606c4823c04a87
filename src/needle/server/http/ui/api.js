// The node's public HTTP API: the same that every program uses. The key is kept for this tab only.

const KEY = "needle-api-key";

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
  allowed: (value) => /^[!-~]{1,1000}$/.test(value),
};

export class Problem extends Error {
  constructor(status, told) {
    super(told.detail ?? `the node answered with status ${status}`);
    this.status = status;
    this.code = told.code ?? "";
    this.field = told.field ?? "";
  }
}

// A number that JavaScript cannot hold is kept as it was written; who reckons with it has what is nearest.
export class Exact {
  constructor(text) {
    this.text = text;
  }

  valueOf() {
    return Number(this.text);
  }

  toString() {
    return this.text;
  }
}

const exact = (_, value, context) => {
  if (typeof value !== "number" || context?.source === undefined) return value;
  const held = Number.isFinite(value) && (!Number.isInteger(value) || Number.isSafeInteger(value));
  return held ? value : new Exact(context.source);
};

export const pretty = (value, indent = "") => {
  if (value instanceof Exact) return value.text;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const list = Array.isArray(value);
  const parts = list
    ? value.map((one) => pretty(one, `${indent}  `))
    : Object.entries(value).map(([field, one]) => `${JSON.stringify(field)}: ${pretty(one, `${indent}  `)}`);
  if (parts.length === 0) return list ? "[]" : "{}";
  const [open, close] = list ? "[]" : "{}";
  const line = `${open}${parts.join(", ")}${close}`;
  if (line.length <= 80 && !line.includes("\n")) return line;
  return `${open}\n${parts.map((part) => `${indent}  ${part}`).join(",\n")}\n${indent}${close}`;
};

export const compact = (value) => {
  if (value instanceof Exact) return value.text;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map(compact).join(", ")}]`;
  return `{${Object.entries(value).map(([field, one]) => `${JSON.stringify(field)}: ${compact(one)}`).join(", ")}}`;
};

const ask = async (method, path, body, signal) => {
  const headers = { accept: "application/json" };
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method, headers, body, signal, cache: "no-store", credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { code: "no_answer", detail: "This node does not answer. Is it running? Another node serves the same page." });
  }
  const text = await answer.text();
  let told;
  try {
    told = JSON.parse(text, exact);
  } catch {
    throw new Problem(answer.status, {});
  }
  if (!answer.ok) throw new Problem(answer.status, told);
  return told;
};

export const get = (path, signal) => ask("GET", path, undefined, signal);
export const post = (path, body, signal) => ask("POST", path, typeof body === "string" ? body : JSON.stringify(body), signal);
export const part = (text) => encodeURIComponent(text);
