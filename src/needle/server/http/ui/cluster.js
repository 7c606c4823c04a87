// The cluster at a glance: what is wrong, what it does, who holds and leads what, and on which machines.

import { chart, ring } from "./charts.js";
import { h, name, prose, seen } from "./dom.js";
import { bytes, count, percent, plural, rate, seconds, short } from "./format.js";

const SHARDS_MAX = 200;
const NODES_MAX = 12;
const SLICES_MAX = 64;
const LEGEND_MAX = 6;
const HOT_MAX = 8;
const KEY_LETTERS = 24;
const ROLES = { Leader: "Leader", Follower: "Follower", Learner: "Learner", Candidate: "Electing", PreCandidate: "Electing", Lost: "Lost", silent: "Silent" };
const STATES = { healthy: "good", degraded: "warn", unavailable: "bad" };

const table = (caption, heads, rows, more = {}) =>
  h(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h(
      "table",
      more,
      h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col", class: head.cls, title: head.title }, head.text)))),
      h("tbody", {}, rows),
    ),
  );

const head = (text, cls, title) => ({ text, cls, title });
const section = (title, beside, ...parts) =>
  h("section", {}, h("div", { class: "over" }, h("h2", {}, title), h("span", { class: "faint" }, beside)), ...parts);

const mark = (state, text) => h("span", { class: `mark is-${state}` }, text);

export const bar = (share, state = "good") =>
  h("span", { class: `bar is-${state}`, "aria-hidden": "true" }, h("i", { width: `${(Math.max(0, Math.min(1, share)) * 100).toFixed(1)}%` }));

const runbook = (condition) => `#/runbooks/${encodeURIComponent(condition.alert.toLowerCase())}`;

const verdict = (now) => {
  const critical = now.conditions.filter((one) => one.severity === "critical").length;
  const warnings = now.conditions.length - critical;
  const unled = now.shards.filter((one) => one.leader === null).length;
  const [state, word] = critical || unled ? ["bad", "Needs attention now"] : !now.healthy || warnings ? ["warn", "Degraded"] : ["good", "Healthy"];
  const alerts = [critical && `${critical} critical`, warnings && plural(warnings, "warning")].filter(Boolean).join(", ");
  const led = now.shards.length === 1 ? "The shard has" : `All ${count(now.shards.length)} shards have`;
  const told = unled
    ? `${plural(unled, "shard")} of ${count(now.shards.length)} without a leader: writes and strong reads of ${unled === 1 ? "it" : "them"} wait.`
    : `${led} a leader${now.healthy ? " and all replicas keep up" : "; not all replicas keep up"}.`;
  const calm = word === "Degraded" && now.healthy ? "Warnings" : word;
  return h("div", { class: `verdict is-${state}` }, h("b", {}, calm), h("span", {}, told), alerts && h("span", { class: "alerts" }, alerts));
};

const figures = (now, moments) => {
  const last = moments.at(-1);
  const all = now.shards.flatMap((shard) => shard.replicas);
  const sum = (field) => all.reduce((total, one) => total + one[field], 0);
  const answering = now.nodes.filter((one) => one.answers).length;
  const lags = all.map((one) => one.lag_seconds).filter((lag) => lag !== null);
  const led = now.shards.filter((one) => one.leader !== null).length;
  const figure = (what, value, beside, state) =>
    h("div", { class: `figure${state ? ` is-${state}` : ""}` }, h("dt", {}, what), h("dd", {}, value, beside && h("small", {}, ` ${beside}`)));
  return h(
    "dl",
    { class: "figures" },
    figure("Documents", count(now.shards.reduce((total, one) => total + one.documents, 0))),
    figure("Writes", rate(sum("writes"))),
    figure("Searches", rate(sum("searches"))),
    figure("Search p99", seconds(last?.search_p99 ?? null)),
    figure("Largest lag", lags.length ? seconds(Math.max(...lags)) : "\u2013", "", Math.max(...lags, 0) > 10 ? "bad" : Math.max(...lags, 0) > 1 ? "warn" : ""),
    figure("Shards led", `${count(led)}`, `of ${count(now.shards.length)}`, led < now.shards.length ? "bad" : ""),
    figure("Nodes answering", `${count(answering)}`, `of ${count(now.nodes.length)}`, answering < now.nodes.length ? "warn" : ""),
  );
};

const alerts = (now) => {
  if (now.conditions.length === 0) return null;
  return section(
    "Alerts",
    prose("what holds now, as `needle status` says it"),
    h(
      "ul",
      { class: "alerts-list" },
      now.conditions.map((one) =>
        h(
          "li",
          { class: one.severity === "critical" ? "is-bad" : "is-warn" },
          mark(one.severity === "critical" ? "bad" : "warn", one.severity === "critical" ? "Critical" : "Warning"),
          h("b", {}, seen(one.name)),
          h("span", { class: "subject" }, seen(one.subject)),
          h("span", { class: "action" }, prose(one.action), " ", h("a", { href: runbook(one) }, `Runbook: ${one.alert}`)),
        ),
      ),
    ),
  );
};

const notes = (now) => {
  const told = [...now.waiting.map((one) => `Waits: ${one}`), ...now.warnings];
  return told.length === 0 ? null : section("Notes", "", h("ul", { class: "notes" }, told.map((one) => h("li", {}, prose(one)))));
};

const charts = (past) => {
  const { moments, now, every } = past;
  const line = (field) => moments.map((one) => [one.at, one[field]]);
  const draw = (title, series, text, more) => chart({ title, series, now, every, text, ...more });
  return section(
    "Last hour",
    "the whole cluster, as this node saw it",
    h(
      "div",
      { class: "charts" },
      draw("Rates", [{ name: "searches", points: line("searches") }, { name: "writes", points: line("writes") }], rate, { least: 1 }),
      draw("Slowest of 100 (p99)", [{ name: "search", points: line("search_p99") }, { name: "write", points: line("write_p99") }], seconds, {
        least: 0.001,
        hint: "too few calls to say",
      }),
      draw("Largest replication lag", [{ name: "lag", points: line("lag") }], seconds, { least: 0.1 }),
      draw("Documents", [{ name: "documents", points: line("documents") }], short, { least: 10 }),
    ),
  );
};

const cell = (replica, leader) => {
  if (!replica) return h("td", { class: "cell none" }, "\u00b7");
  const role = ROLES[replica.state] ?? replica.state;
  const late = replica.lag_seconds;
  const state = ["Lost", "silent"].includes(replica.state) ? "bad" : late > 10 ? "bad" : late > 1 || role === "Electing" ? "warn" : replica.state === "Leader" ? "lead" : "good";
  const lag = replica.state === "Leader" || late === null ? "" : `${seconds(late)}`;
  const told = replica.error || `applied ${count(replica.applied_index)} of ${count(replica.commit_index)}, term ${replica.term}${leader ? "" : ", no leader"}`;
  return h("td", { class: "cell", title: seen(told) }, mark(state, replica.leaving ? `${role}, leaving` : role), lag && h("small", {}, lag));
};

const urgency = { unavailable: 0, degraded: 1, healthy: 2 };

// The catalog's group, as a row above the shards: without a leader nothing can be changed in the cluster.
const catalogState = (one) => (one.leader === null ? "unavailable" : one.replicas.some((replica) => replica.error || ["Lost", "silent"].includes(replica.state)) ? "degraded" : "healthy");

const holders = (one, nodes, wide) => {
  const by = new Map(one.replicas.map((replica) => [replica.node, replica]));
  if (wide) return nodes.map((id) => cell(by.get(id), one.leader));
  return [h("td", { class: "many" }, one.replicas.map((replica) => h("span", { class: "held" }, name(replica.node), " ", mark(replica.state === "Leader" ? "lead" : replica.error ? "bad" : "good", ROLES[replica.state] ?? replica.state))))];
};

const catalogRow = (now, nodes, wide) => {
  const state = catalogState(now.catalog);
  const none = () => h("td", { class: "number faint" }, "\u2013");
  return h(
    "tr",
    { "data-key": "shard-catalog" },
    h("th", { scope: "row", class: "number" }, "catalog"),
    h("td", {}, mark(STATES[state], state)),
    holders(now.catalog, nodes, wide),
    none(),
    none(),
    none(),
    none(),
    h("td", { class: "number" }, String(Math.max(0, ...now.catalog.replicas.map((replica) => replica.term)))),
  );
};

const shards = (now) => {
  const sorted = [...now.shards].sort((a, b) => (now.shards.length > SHARDS_MAX ? urgency[a.state] - urgency[b.state] : 0) || a.shard - b.shard);
  const shown = sorted.slice(0, SHARDS_MAX);
  const wide = now.nodes.length <= NODES_MAX;
  const nodes = now.nodes.map((one) => one.id);
  const most = Math.max(...now.shards.map((one) => one.documents), 1);
  const columns = wide ? nodes.map((id) => head(seen(id), "cell")) : [head("replicas")];
  const rows = shown.map((one) => {
    return h(
      "tr",
      { "data-key": `shard-${one.shard}` },
      h("th", { scope: "row", class: "number" }, String(one.shard)),
      h("td", {}, mark(STATES[one.state] ?? "warn", one.state)),
      holders(one, nodes, wide),
      h("td", { class: "number" }, percent(one.share)),
      h("td", { class: "number" }, count(one.documents), bar(one.documents / most)),
      h("td", { class: "number" }, rate(one.replicas.reduce((total, replica) => total + replica.writes, 0))),
      h("td", { class: "number" }, rate(one.replicas.reduce((total, replica) => total + replica.searches, 0))),
      h("td", { class: "number" }, String(one.term)),
    );
  });
  rows.unshift(catalogRow(now, nodes, wide));
  const left = sorted.length - shown.length;
  return section(
    "Shards",
    `${plural(now.shards.length, "shard")} of ${plural(now.replication_factor, "replica")}, by ${now.strategy || "no strategy"}; epoch ${now.epoch}`,
    table("Shards by replicas", [head("shard", "number"), head("state"), ...columns, head("keys", "number", "the share of all keys that it owns"), head("documents", "number"), head("writes", "number"), head("searches", "number"), head("term", "number")], rows, { class: "shards" }),
    left > 0 && h("p", { class: "faint" }, `and ${count(left)} more; those that are not healthy come first`),
  );
};

const keys = (now) => {
  const few = now.shards.slice(0, SLICES_MAX);
  const slices = few.map((one) => ({ name: `shard ${one.shard}: ${percent(one.share)}`, share: one.share, state: STATES[one.state] ?? "warn" }));
  const left = 1 - slices.reduce((total, one) => total + one.share, 0);
  if (now.shards.length > few.length) slices.push({ name: `the others: ${percent(left)}`, share: left, state: "left" });
  const fair = 1 / Math.max(1, now.shards.length);
  const most = [...now.shards].sort((a, b) => b.share - a.share)[0];
  return section(
    "Ring of keys",
    "",
    h(
      "div",
      { class: "keys" },
      ring(slices, [count(now.shards.length), now.shards.length === 1 ? "shard" : "shards"]),
      h(
        "dl",
        { class: "facts" },
        few.slice(0, LEGEND_MAX).map((one, n) => [h("dt", { class: `slice-key slice-${n % 6}` }, `shard ${one.shard}`), h("dd", {}, percent(one.share))]),
        now.shards.length > LEGEND_MAX && [h("dt", {}, "and others"), h("dd", {}, count(now.shards.length - LEGEND_MAX))],
        most && now.shards.length > 1 && [h("dt", {}, `largest: shard ${most.shard}`), h("dd", {}, `${(most.share / fair).toFixed(2)} of a fair share`)],
      ),
    ),
  );
};

const moves = (now, rebalance) => {
  const running = rebalance && !["done", "failed", "cancelled"].includes(rebalance.state);
  const rows = now.moves.map((one) =>
    h(
      "tr",
      { "data-key": `move-${one.id}` },
      h("th", { scope: "row", class: "number" }, String(one.id)),
      h("td", {}, `shard ${one.source} \u2192 shard ${one.target}`),
      h("td", {}, mark(one.state === "copying" ? "lead" : "warn", one.state.replace("_", " "))),
      h("td", { class: "number" }, count(one.ranges)),
      h("td", { class: "number" }, count(one.copied)),
    ),
  );
  const job =
    rebalance &&
    h(
      "div",
      { class: "job" },
      h("span", {}, `Rebalance ${rebalance.id} `, mark(rebalance.state === "failed" ? "bad" : running ? "lead" : "good", rebalance.state)),
      h("span", { class: "number" }, `${rebalance.percent_complete.toFixed(0)} %, ${bytes(rebalance.moved_bytes)} of ${bytes(rebalance.total_bytes)}`),
      bar(rebalance.percent_complete / 100, rebalance.state === "failed" ? "bad" : "good"),
      running && h("span", { class: "faint" }, `${bytes(rebalance.rate)}/s, ${rebalance.eta === null ? "no rate known yet" : `${seconds(rebalance.eta)} left`}`),
      rebalance.why && h("span", { class: "why" }, seen(rebalance.why)),
      running && Object.values(rebalance.moves).slice(0, 10).map((one) => h("span", { class: "faint" }, seen(one))),
    );
  return section(
    "Moves",
    "",
    job,
    rows.length > 0 && table("Moves of key ranges", [head("move", "number"), head("from and to"), head("state"), head("ranges", "number"), head("copied", "number")], rows),
    rows.length === 0 && h("p", { class: "faint" }, rebalance ? "No key ranges are on their way." : "Nothing was ever moved between shards."),
  );
};

// A routing key, which comes in base64: as text where it is an id, else in hex, as `needle top` has it.
const inWords = (key) => {
  if (!key) return key === null ? "the end" : "the first";
  const letters = atob(key);
  return /^[ -~]*$/.test(letters) ? letters : [...letters].map((one) => one.charCodeAt(0).toString(16).padStart(2, "0")).join("");
};

const cut = (text) => (text.length > KEY_LETTERS ? `${text.slice(0, KEY_LETTERS - 1)}\u2026` : text);

// hot: null while nobody has answered, or may see it.
const hotRanges = (hot) => {
  if (!hot || hot.length === 0) return null;
  const most = Math.max(...hot.map((one) => one.share));
  const rows = hot.slice(0, HOT_MAX).map((one) => {
    const [first, behind] = one.span.map(inWords);
    return h(
      "tr",
      { "data-key": `hot-${one.shard}-${one.span[0]}` },
      h("th", { scope: "row", title: `${first} to ${behind}` }, name(cut(first)), " to ", name(cut(behind))),
      h("td", { class: "number" }, String(one.shard)),
      h("td", { class: "number" }, rate(one.writes)),
      h("td", { class: "number" }, rate(one.searches)),
      h("td", { class: "number" }, percent(one.share), bar(one.share / most)),
    );
  });
  const heads = [head("keys"), head("shard", "number"), head("writes", "number"), head("reads", "number"), head("share", "number", "of all calls that were counted by key range")];
  return section("Most called keys", "by their leaders, of the last half minute", table("Most called keys", heads, rows, { class: "hot" }));
};

const disk = (node) => {
  if (node.disk_total === null) return h("td", { class: "number" }, "\u2013");
  const kept = node.disk_kept_free;
  const state = node.disk_free < kept ? "bad" : node.disk_free < 2 * kept ? "warn" : "good";
  return h("td", { class: "number", title: `${bytes(node.disk_used)} are this node's own files` }, `${bytes(node.disk_free)} free`, bar(1 - node.disk_free / node.disk_total, state));
};

const memory = (node) => {
  if (node.memory_used === null) return h("td", { class: "number" }, "\u2013");
  const share = node.memory_total ? node.memory_used / node.memory_total : 0;
  return h("td", { class: "number", title: `of ${bytes(node.memory_total)}` }, bytes(node.memory_used), bar(share, share > 0.9 ? "warn" : "good"));
};

const nodes = (now) => {
  const all = now.shards.flatMap((shard) => shard.replicas);
  const rows = now.nodes.map((one) => {
    const held = all.filter((replica) => replica.node === one.id);
    const leads = now.shards.filter((shard) => shard.leader === one.id).length;
    const [state, word] = !one.answers ? [one.maintenance ? "warn" : "bad", "no answer"] : one.maintenance ? ["warn", "maintenance"] : one.state === "active" ? ["good", "up"] : ["warn", one.state];
    return h(
      "tr",
      { "data-key": `node-${one.id}` },
      h("th", { scope: "row" }, name(one.id)),
      h("td", {}, mark(state, word)),
      h("td", { class: "code" }, seen(one.address)),
      h("td", {}, one.zone ? name(one.zone) : "\u2013"),
      h("td", { class: "number" }, count(leads)),
      h("td", { class: "number" }, count(held.length)),
      h("td", {}, one.catalog ? "catalog" : "\u2013"),
      memory(one),
      h("td", { class: "number" }, bytes(one.disk_used)),
      disk(one),
      h("td", { class: "number" }, bytes(one.log_bytes)),
      h("td", { class: "number" }, String(one.knows)),
      h("td", { class: "number" }, one.certificate_seconds === null ? "\u2013" : seconds(Math.max(0, one.certificate_seconds))),
    );
  });
  const heads = [head("node"), head("state"), head("address"), head("zone"), head("leads", "number", "shards that it leads"), head("holds", "number", "replicas that it has"), head("role"), head("memory", "number", "bytes of its process in RAM"), head("files", "number", "bytes of its own files"), head("disk", "number"), head("log", "number", "bytes of its Raft log"), head("version", "number", "of commands and formats that it knows"), head("certificate", "number", "until it expires")];
  return section("Nodes", `the cluster is at version ${now.cluster_version}`, table("Nodes", heads, rows, { class: "nodes" }));
};

export const cluster = ({ status, past, rebalance, hot }) => {
  if (status.shards.length === 0) return [h("p", { class: "empty-page" }, prose("This cluster has no shards yet: `needle cluster create` makes them."))];
  return [verdict(status), figures(status, past.moments), alerts(status), charts(past), shards(status), h("div", { class: "pair" }, keys(status), moves(status, rebalance)), hotRanges(hot), nodes(status), notes(status)];
};
