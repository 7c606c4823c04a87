// What to do about an alert: the sections of docs/alerts.md, which come with the node.

import { get } from "./api.js";
import { h, seen } from "./dom.js";

// Of Markdown only what these sections use: code, and links, of which the text is shown.
const line = (text) =>
  text.split(/(`[^`]+`|\[[^\]]+\]\([^)]+\))/).map((piece) => {
    if (piece.startsWith("`")) return h("code", {}, seen(piece.slice(1, -1)));
    const link = piece.match(/^\[([^\]]+)\]\(([^)]+)\)$/);
    if (!link) return seen(piece);
    const own = link[2].startsWith("#needle") ? `#/runbooks/${link[2].slice(1)}` : null;
    return own ? h("a", { href: own }, seen(link[1])) : h("span", {}, seen(link[1]), h("span", { class: "faint" }, ` (docs/${link[2]})`));
  });

export const book = async (named) => {
  const books = await get("/ui/runbooks.json");
  const found = books.find((one) => one.alert.toLowerCase() === named);
  const back = h("p", { class: "way" }, h("a", { href: "#/" }, "Cluster"));
  if (!found) return [back, h("p", {}, "There is no such runbook. All of them: ", books.map((one, n) => [n > 0 && ", ", h("a", { href: `#/runbooks/${one.alert.toLowerCase()}` }, one.alert)]))].flat();
  return [
    back,
    h(
      "article",
      { class: "runbook" },
      h("h1", {}, found.alert, " ", h("span", { class: `mark is-${found.severity === "critical" ? "bad" : "warn"}` }, found.severity)),
      found.condition && h("p", { class: "faint" }, `needle status says: ${found.condition}`),
      found.text.map((paragraph) => h("p", {}, line(paragraph))),
    ),
  ];
};
