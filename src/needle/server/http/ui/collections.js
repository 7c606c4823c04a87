// What collections there are, and one of them: what it is, and what it holds.

import { bar } from "./cluster.js";
import { finder } from "./finder.js";
import { h, name, prose } from "./dom.js";
import { bytes, count, percent, plural, seconds } from "./format.js";

export const address = (collection, id) =>
  `#/collections/${encodeURIComponent(collection)}${id === undefined ? "" : `/documents/${encodeURIComponent(id)}`}`;

// How much of the vectors an index file holds: the rest is scored one by one. Both are bytes of the same vectors.
const indexed = (size) => (size && size.vector_bytes > 0 ? size.index_bytes / size.vector_bytes : null);

const indexState = (one) => {
  const share = indexed(one.size);
  if (!one.size) return "\u2013";
  if (one.size.documents === 0) return "empty";
  return share > 0 ? `${bytes(one.size.index_bytes)}` : "none yet";
};

export const collections = (found, aliases) => {
  if (found.length === 0) return [h("h1", {}, "Collections"), h("p", { class: "empty-page" }, prose("There is none that this key may see. Whoever may administrate makes them: `needle collections create`."))];
  const heads = [["collection"], ["documents", "number"], ["dimensions", "number"], ["metric"], ["rows", "number"], ["vectors", "number"], ["index files", "number"], ["time to live", "number"], ["fields", "number"], ["aliases"]];
  const rows = found.map((one) => {
    const others = aliases.filter((alias) => alias.collection === one.name);
    return h(
      "tr",
      { "data-key": one.name },
      h("th", { scope: "row" }, h("a", { href: address(one.name) }, name(one.name))),
      h("td", { class: "number" }, count(one.size?.documents)),
      h("td", { class: "number" }, count(one.dimensions)),
      h("td", {}, one.metric),
      h("td", { class: "number" }, bytes(one.size?.document_bytes)),
      h("td", { class: "number" }, bytes(one.size?.vector_bytes)),
      h("td", { class: "number" }, indexState(one)),
      h("td", { class: "number" }, one.ttl ? seconds(one.ttl) : "\u2013"),
      h("td", { class: "number" }, count(Object.keys(one.fields ?? {}).length)),
      h("td", {}, others.length ? others.map((alias, n) => [n > 0 && ", ", name(alias.alias)]) : "\u2013"),
    );
  });
  return [
    h("h1", {}, "Collections"),
    h(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": "Collections" },
      h("table", { class: "names" }, h("thead", {}, h("tr", {}, heads.map(([text, cls]) => h("th", { scope: "col", class: cls }, text)))), h("tbody", {}, rows)),
    ),
    h("p", { class: "faint" }, `${plural(found.length, "collection")}; sizes are those of one replica of each shard.`),
  ];
};

const facts = (one, aliases) => {
  const fact = (what, value) => [h("dt", {}, what), h("dd", {}, value)];
  const size = one.size ?? {};
  const others = aliases.filter((alias) => alias.collection === one.name);
  return h(
    "dl",
    { class: "facts wide" },
    fact("Documents", count(size.documents)),
    fact("Dimensions", count(one.dimensions)),
    fact("Metric", one.metric),
    fact("Model of texts", one.model ? name(one.model) : "none"),
    fact("Time to live", one.ttl ? seconds(one.ttl) : "none"),
    fact("Rows", bytes(size.document_bytes)),
    fact("Vectors", bytes(size.vector_bytes)),
    fact("Index files", indexState(one)),
    fact("Field indexes", bytes(size.field_index_bytes)),
    fact("Graph", `m ${one.index.m}, ef_construction ${one.index.ef_construction}, ef_search ${one.index.ef_search}`),
    fact("Aliases", others.length ? others.map((alias, n) => [n > 0 && ", ", name(alias.alias)]) : "none"),
  );
};

const STATE = { ready: "good", building: "warn", no_room: "bad" };

const fields = (one) => {
  const declared = Object.entries(one.fields ?? {});
  if (declared.length === 0) return null;
  return h(
    "details",
    { class: "fold" },
    h("summary", {}, plural(declared.length, "declared field")),
    h("ul", { class: "fields" }, declared.map(([path, index]) => h("li", {}, name(path), " ", h("span", { class: `mark is-${STATE[index.state] ?? "warn"}` }, index.state.replace("_", " ")), " ", bytes(index.bytes)))),
  );
};

const spread = (one) => {
  const counts = Object.entries(one.documents ?? {});
  if (counts.length < 2) return null;
  const all = counts.reduce((total, [, n]) => total + n, 0);
  const most = Math.max(...counts.map(([, n]) => n), 1);
  return h(
    "details",
    { class: "fold" },
    h("summary", {}, `in ${counts.length} shards`),
    h("ul", { class: "spread" }, counts.slice(0, 200).map(([shard, n]) => h("li", {}, h("span", {}, `shard ${shard}`), h("span", { class: "number" }, count(n)), h("span", { class: "number" }, percent(all ? n / all : 0)), bar(n / most)))),
  );
};

export const collection = (one, aliases, asked) => [
  h("p", { class: "way" }, h("a", { href: "#/collections" }, "Collections")),
  h("h1", {}, name(one.name)),
  facts(one, aliases),
  h("div", { class: "folds" }, fields(one), spread(one)),
  finder(one, asked),
];
