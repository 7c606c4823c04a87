// Lines over the last hour. A gap in what the node saw is a gap in the line.

import { h, s } from "./dom.js";

const WIDTH = 600;
const HEIGHT = 120;
const HOUR = 3600;

// The next round number, so that the scale stands still while values move.
const above = (most) => {
  if (!(most > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 5, 10].map((step) => step * power).find((round) => round >= most);
};

const path = (points, from, top, gap) => {
  let line = "";
  let before = null;
  for (const [at, value] of points) {
    if (value === null || value === undefined) continue;
    const x = ((at - from) / HOUR) * WIDTH;
    const y = HEIGHT - (Math.min(value, top) / top) * HEIGHT;
    const on = before !== null && at - before <= gap;
    line += on ? `L${x.toFixed(1)} ${y.toFixed(1)}` : `M${x.toFixed(1)} ${y.toFixed(1)}h0`; // one alone is a dot
    before = at;
  }
  return line;
};

// series: [{ name, points: [[seconds, number or null], ...] }], two at most. text: a number as people read it.
export const chart = ({ title, series, now, every, text, least = 0, hint }) => {
  const from = now - HOUR;
  const shown = series.map((one) => ({ ...one, points: one.points.filter(([at]) => at >= from) }));
  const values = shown.flatMap((one) => one.points.map(([, value]) => value)).filter((value) => value !== null);
  const top = above(Math.max(least, ...values));
  const last = (one) => one.points.at(-1)?.[1] ?? null;
  const most = (one) => Math.max(...one.points.map(([, value]) => value ?? 0), 0);
  const told = shown.map((one) => `${one.name}: now ${text(last(one))}, at most ${text(most(one))}`).join("; ");
  const plot = h(
    "div",
    { class: "plot" },
    s(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": `${title}. ${told}` },
      [0, 0.5, 1].map((at) => s("line", { class: "grid", x1: 0, x2: WIDTH, y1: at * HEIGHT, y2: at * HEIGHT })),
      [0.25, 0.5, 0.75].map((at) => s("line", { class: "grid", y1: 0, y2: HEIGHT, x1: at * WIDTH, x2: at * WIDTH })),
      shown.map((one, n) => s("path", { class: `line line-${n}`, d: path(one.points, from, top, every * 4) })),
    ),
    h("span", { class: "top" }, text(top)),
    values.length === 0 && h("span", { class: "empty" }, hint ?? "nothing yet"),
    h("span", { class: "read", hidden: true }),
  );
  plot.points = { shown, from, text };
  return h(
    "figure",
    { class: "chart" },
    h(
      "figcaption",
      {},
      h("b", {}, title),
      shown.map((one, n) => h("span", { class: `key key-${n}` }, `${one.name} `, h("b", {}, text(last(one))))),
    ),
    plot,
    h("div", { class: "axis", "aria-hidden": "true" }, ["60 min ago", "45", "30", "15", "now"].map((one) => h("span", {}, one))),
  );
};

// What stands under the pointer: one listener for all charts, now and later.
export const readable = (place) => {
  const hide = () => place.querySelectorAll(".read:not([hidden])").forEach((one) => (one.hidden = true));
  place.addEventListener("pointerleave", hide);
  place.addEventListener("pointermove", (event) => {
    hide();
    const plot = event.target.closest?.(".plot");
    if (!plot?.points) return;
    const { shown, from, text } = plot.points;
    const box = plot.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    const at = from + share * HOUR;
    const near = (one) =>
      one.points.reduce((best, point) => (Math.abs(point[0] - at) < Math.abs((best?.[0] ?? 0) - at) ? point : best), null);
    const points = shown.map(near);
    const read = plot.querySelector(".read");
    if (!points[0] || Math.abs(points[0][0] - at) > 30) return;
    const clock = new Date(points[0][0] * 1000).toLocaleTimeString();
    read.textContent = `${clock}  ${shown.map((one, n) => `${one.name} ${text(points[n]?.[1] ?? null)}`).join("  ")}`;
    read.classList.toggle("right", share > 0.5);
    read.hidden = false;
  });
};

const arc = (from, to) => {
  const at = (share, radius) => {
    const angle = share * 2 * Math.PI - Math.PI / 2;
    return `${(50 + radius * Math.cos(angle)).toFixed(3)} ${(50 + radius * Math.sin(angle)).toFixed(3)}`;
  };
  const end = Math.min(to, from + 0.99999);
  const large = end - from > 0.5 ? 1 : 0;
  return `M${at(from, 46)}A46 46 0 ${large} 1 ${at(end, 46)}L${at(end, 31)}A31 31 0 ${large} 0 ${at(from, 31)}Z`;
};

// shares: [{ name, share, state }]. The ring of keys, as who owns how much of it.
export const ring = (shares, middle) => {
  let from = 0;
  const parts = shares.map((one, n) => {
    const begin = from;
    from += one.share;
    return s("path", { class: `slice slice-${n % 6} is-${one.state}`, d: arc(begin, from) }, s("title", {}, one.name));
  });
  const told = `Shares of the keys: ${shares.map((one) => one.name).join(", ")}`;
  return s(
    "svg",
    { class: shares.length > 24 ? "ring many" : "ring", viewBox: "0 0 100 100", role: "img", "aria-label": told },
    parts,
    s("text", { x: 50, y: 49, class: "ring-count" }, middle[0]),
    s("text", { x: 50, y: 60, class: "ring-what" }, middle[1]),
  );
};
