// Looking into a collection: page by page, by id, or by nearness, with filters, and how shards found it.

import { compact, part, post, pretty } from "./api.js";
import { h, lines, name, seen } from "./dom.js";
import { count, measure, plural, seconds } from "./format.js";

const PAGE = 50;
const K_MAX = 1000;
const METADATA_SHOWN = 20_000;

const WAYS = [
  ["scan", "All, by id"],
  ["id", "One, by its id"],
  ["like", "Nearest to a document"],
  ["vector", "Nearest to a vector"],
];

const TEXT = ["text", "Nearest to a text"];

const own = (collection, id) => `#/collections/${part(collection)}/documents/${part(id)}`;

// What people paste: JSON, or numbers with anything between them that is none.
export const numbers = (text, dimensions) => {
  const found = text.trim().replace(/^\[|\]$/g, "").split(/[\s,;]+/).filter(Boolean);
  const vector = found.map(Number);
  const bad = found.find((_, n) => !Number.isFinite(vector[n]));
  if (bad !== undefined) throw new Error(`${bad.slice(0, 30)} is no number`);
  if (vector.length !== dimensions) throw new Error(`the vector has ${count(vector.length)} numbers; this collection has ${count(dimensions)} dimensions`);
  return vector;
};

const filterText = (text) => {
  if (!text.trim()) return null;
  let read;
  try {
    read = JSON.parse(text);
  } catch (error) {
    throw new Error(`the filter is no JSON: ${error.message}`);
  }
  if (read === null || typeof read !== "object" || Array.isArray(read)) throw new Error('a filter is a JSON object such as {"year": {"$gte": 1970}}');
  return text; // as it was written: numbers of it may have more digits than JavaScript holds
};

const request = (fields, filter) => {
  const parts = Object.entries(fields).filter(([, value]) => value !== undefined).map(([field, value]) => `${JSON.stringify(field)}: ${JSON.stringify(value)}`);
  if (filter) parts.push(`"filter": ${filter}`);
  return `{${parts.join(", ")}}`;
};

const metadataOf = (document) => {
  const line = compact(document.metadata ?? null);
  if (line.length <= 120) return h("code", { class: "line" }, seen(line));
  const whole = pretty(document.metadata);
  return h(
    "details",
    {},
    h("summary", {}, h("code", { class: "line" }, seen(`${line.slice(0, 110)}\u2026`))),
    h("pre", {}, lines(whole.slice(0, METADATA_SHOWN)), whole.length > METADATA_SHOWN && "\n\u2026"),
  );
};

const rows = (collection, documents, near) =>
  h(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": "Documents" },
    h(
      "table",
      { class: "documents" },
      h("thead", {}, h("tr", {}, near && [h("th", { scope: "col", class: "number" }, "#"), h("th", { scope: "col", class: "number" }, "score"), h("th", { scope: "col", class: "number" }, "distance")], ["id", "version", "metadata"].map((head) => h("th", { scope: "col", class: head === "version" ? "number" : undefined }, head)))),
      h(
        "tbody",
        {},
        documents.map((one, n) =>
          h(
            "tr",
            {},
            near && [h("td", { class: "number" }, String(n + 1)), h("td", { class: "number" }, measure(one.score)), h("td", { class: "number" }, measure(one.distance))],
            h("th", { scope: "row" }, h("a", { href: own(collection, one.id) }, name(one.id))),
            h("td", { class: "number" }, String(one.version)),
            h("td", { class: "metadata" }, metadataOf(one)),
          ),
        ),
      ),
    ),
  );

const ms = (value) => seconds(value / 1000);

const explained = (shards) =>
  h(
    "details",
    { class: "fold", open: true },
    h("summary", {}, `How ${plural(shards.length, "shard")} found them`),
    h(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": "Explanation" },
      h(
        "table",
        {},
        h("thead", {}, h("tr", {}, ["shard", "log index", "documents", "allowed", "filter", "vectors", "reading"].map((head) => h("th", { scope: "col", class: "number" }, head)), h("th", { scope: "col" }, "parts"))),
        h(
          "tbody",
          {},
          shards.map((one) =>
            h(
              "tr",
              {},
              h("th", { scope: "row", class: "number" }, String(one.shard)),
              [count(one.applied_index), count(one.documents), count(one.allowed), ms(one.filter_milliseconds), ms(one.vectors_milliseconds), ms(one.documents_milliseconds)].map((text) => h("td", { class: "number" }, text)),
              h("td", { class: "parts" }, one.segments.map((part) => h("span", { class: "part" }, h("b", {}, part.way), ` ${count(part.allowed)} of ${count(part.rows)}${part.ef ? `, ef ${part.ef}` : ""}, ${ms(part.milliseconds)}`))),
            ),
          ),
        ),
      ),
    ),
  );

const whole = (collection, document) => {
  const vector = document.vector ?? [];
  const norm = Math.sqrt(vector.reduce((total, one) => total + one * one, 0));
  const text = pretty(document.metadata ?? null);
  return h(
    "article",
    { class: "document" },
    h("h2", {}, name(document.id)),
    h(
      "dl",
      { class: "facts wide" },
      [["Version", String(document.version)], ["Expires", instant(document.expires_at)], ["Dimensions", count(vector.length)], ["Length of the vector", measure(norm)]].map(([what, value]) => [h("dt", {}, what), h("dd", {}, value)]),
    ),
    h("h3", {}, "Metadata"),
    h("pre", {}, lines(text)),
    h("details", { class: "fold" }, h("summary", {}, "Vector"), h("pre", { class: "vector" }, `[${vector.map((one) => String(one)).join(", ")}]`)),
  );
};

// RFC 3339 to the second, as people read it.
const instant = (text) => (text ? text.replace("T", " ").replace(/(\.\d+)?Z$/, " UTC") : "never");

const field = (label, control, more) => h("label", { class: "field" }, h("span", {}, label), control, more);

export const finder = (one, asked) => {
  const path = `/v1/collections/${part(one.name)}`;
  const answer = h("div", { class: "answer", "aria-live": "polite" });
  const way = h("select", { name: "way" }, (one.model ? [...WAYS, TEXT] : WAYS).map(([value, text]) => h("option", { value }, text)));
  const id = h("input", { name: "id", autocomplete: "off", spellcheck: "false" });
  const vector = h("textarea", { name: "vector", rows: "3", spellcheck: "false", placeholder: "[0.1, 0.2, ...]" });
  const text = h("textarea", { name: "text", rows: "3", placeholder: "what to look for, in words" });
  const k = h("input", { name: "k", type: "number", min: "1", max: String(K_MAX), value: "10" });
  const filter = h("textarea", { name: "filter", rows: "1", spellcheck: "false", placeholder: '{"year": {"$gte": 1970}}' });
  const mode = h("select", { name: "mode" }, ["strong", "leased", "eventual"].map((value) => h("option", { value }, value)));
  const exactly = h("input", { name: "exact", type: "checkbox" });
  const explain = h("input", { name: "explain", type: "checkbox" });
  const idField = field("Id", id);
  const vectorField = field(`Vector of ${count(one.dimensions)} numbers`, vector);
  const textField = field("Text", text);
  const kField = field("How many", k);
  const exactField = h("label", { class: "check" }, exactly, "exact");
  const explainField = h("label", { class: "check" }, explain, "explain");
  const filterField = field("Filter", filter);
  const fit = () => {
    const near = way.value === "like" || way.value === "vector" || way.value === "text";
    idField.hidden = way.value !== "id" && way.value !== "like";
    vectorField.hidden = way.value !== "vector";
    textField.hidden = way.value !== "text";
    filterField.hidden = way.value === "id";
    for (const part of [kField, exactField, explainField]) part.hidden = !near;
  };
  way.addEventListener("change", fit);
  let running = null;
  const say = (...parts) => answer.replaceChildren(...parts);
  const problem = (error) => say(h("p", { class: "problem", role: "alert" }, seen(error.message)));

  const page = async (cursor, filterSaid, before, signal) => {
    const found = await post(`${path}/scan`, request({ limit: PAGE, cursor, mode: mode.value }, filterSaid), signal);
    const back = before.length > 0 && h("button", { type: "button", onclick: () => run(() => page(before.at(-1), filterSaid, before.slice(0, -1), running.signal)) }, "Page before");
    const next = found.cursor && h("button", { type: "button", onclick: () => run(() => page(found.cursor, filterSaid, [...before, cursor], running.signal)) }, "Next page");
    const first = before.length * PAGE;
    const told = found.documents.length ? `${count(first + 1)} to ${count(first + found.documents.length)}` : "Nothing";
    say(h("p", { class: "faint" }, `${told}, in the order of ids`), rows(one.name, found.documents, false), h("div", { class: "buttons" }, back || null, next || null));
  };

  const single = async (signal) => {
    if (!id.value) throw new Error("say an id");
    const found = await post(`${path}/get`, request({ ids: [id.value], mode: mode.value }), signal);
    if (found.documents.length === 0) throw new Error(`There is no document ${id.value}`);
    const near = h("button", { type: "button", onclick: () => { way.value = "like"; fit(); form.requestSubmit(); } }, "Find what is near");
    say(whole(one.name, found.documents[0]), h("div", { class: "buttons" }, near));
  };

  const near = async (signal) => {
    const fields = { k: Math.max(1, Math.min(K_MAX, Number(k.value) || 10)), mode: mode.value, exact: exactly.checked, explain: explain.checked };
    if (way.value === "like") {
      if (!id.value) throw new Error("say the id of a document");
      fields.like = id.value;
    } else if (way.value === "text") {
      if (!text.value.trim()) throw new Error("say a text");
      fields.text = text.value;
    } else fields.vector = numbers(vector.value, one.dimensions);
    const begun = performance.now();
    const found = await post(`${path}/search`, request(fields, filterText(filter.value)), signal);
    const took = performance.now() - begun;
    say(
      h("p", { class: "faint" }, `${plural(found.hits.length, "hit")} in ${ms(took)}, seen from this browser`),
      found.explained?.length ? explained(found.explained) : "",
      rows(one.name, found.hits, true),
    );
  };

  const run = async (work) => {
    running?.abort();
    const mine = (running = new AbortController());
    answer.setAttribute("aria-busy", "true");
    try {
      await work();
    } catch (error) {
      if (error.name !== "AbortError") problem(error);
    } finally {
      if (running === mine) answer.removeAttribute("aria-busy");
    }
  };

  const form = h(
    "form",
    {
      class: "finder",
      onsubmit: (event) => {
        event.preventDefault();
        run(async () => {
          if (way.value === "scan") return page(undefined, filterText(filter.value), [], running.signal);
          return way.value === "id" ? single(running.signal) : near(running.signal);
        });
      },
    },
    h("div", { class: "line-of" }, field("Documents", way), idField, kField, field("Reads", mode), exactField, explainField, h("button", { type: "submit", class: "primary" }, "Show")),
    h("div", { class: "line-of" }, vectorField, textField, filterField),
  );
  if (asked !== undefined) {
    way.value = "id";
    id.value = asked;
  }
  fit();
  queueMicrotask(() => form.requestSubmit());
  return [form, answer];
};
