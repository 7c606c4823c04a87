// The page: which view the address means, how often it is asked again, and which key is shown.

import { get, key, part, Problem } from "./api.js";
import { readable } from "./charts.js";
import { cluster } from "./cluster.js";
import { collection, collections } from "./collections.js";
import { h, seen, show } from "./dom.js";
import { book } from "./runbooks.js";

const EVERY = 3000;
const HOT_EVERY = 10_000;
const SLOWER = 15_000;
const HOUR = 3600;
const SIZES_EVERY = 10_000;

const main = document.getElementById("main");
const pulse = document.getElementById("pulse");
const $ = (id) => document.getElementById(id);

let turn = null; // what is shown now; another address ends it
let past = { every: 5, now: 0, moments: [] };
let hot = { ranges: null, due: 0 };

// --- the key ---------------------------------------------------------------------------------------------------------
const asking = $("ask");

const askKey = (why) => {
  $("ask-why").textContent = why;
  $("ask-key").value = "";
  $("ask-forget").hidden = !key.get();
  if (!asking.open) asking.showModal();
  $("ask-key").focus();
};

const keyed = () => {
  $("key").textContent = key.get() ? "Key: set" : "Key";
  asking.close();
  past = { every: 5, now: 0, moments: [] };
  begin();
};

$("key").addEventListener("click", () => askKey("Where this cluster asks for keys, one with the role reader sees all that is shown here."));
$("ask-cancel").addEventListener("click", () => asking.close());
$("ask-forget").addEventListener("click", () => {
  key.set("");
  keyed();
});
$("ask-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = $("ask-key").value.trim();
  if (!key.allowed(given)) {
    $("ask-why").textContent = "A key has no spaces and no letters beyond ASCII: it looks like ndl_...";
    return;
  }
  key.set(given);
  keyed();
});

// --- what is told ----------------------------------------------------------------------------------------------------
const told = (error) => {
  if (error.status === 401) return key.get() ? "This key is not, or no longer, valid here." : "This cluster asks for an API key.";
  if (error.status === 403) return `This key may not see that: ${error.message}`;
  return error.message;
};

const failed = (error) => {
  const button = error.status === 401 || error.status === 403 ? h("button", { type: "button", class: "primary", onclick: () => askKey(told(error)) }, "Use another key") : null;
  const more = error.status === 403 ? h("p", {}, "What it may see of documents is under ", h("a", { href: "#/collections" }, "Collections"), ".") : null;
  return h("div", { class: "problem", role: "alert" }, h("p", {}, seen(told(error))), more, button);
};

const beat = (state, text) => {
  pulse.className = `is-${state}`;
  pulse.setAttribute("aria-live", state === "bad" ? "polite" : "off"); // that all is well need not be read out each time
  main.classList.toggle("stale", state === "bad");
  pulse.textContent = text;
};

// --- views -----------------------------------------------------------------------------------------------------------
const history = async (signal) => {
  const found = await get(`/v1/history?since=${past.moments.at(-1)?.at ?? 0}`, signal);
  const kept = past.moments.filter((one) => one.at >= found.now - HOUR && one.at <= found.now);
  past = { every: found.every, now: found.now, moments: [...kept, ...found.moments] };
  return past;
};

// At its own pace: all replicas are asked for it, and a shard without a leader holds it up for seconds, which the rest
// of the page must not wait for. What was heard last is shown.
const hotRanges = () => {
  if (performance.now() < hot.due) return hot.ranges;
  hot.due = Infinity;
  const none = () => ({ hot_ranges: null });
  get("/v1/rebalance/stats").catch(none).then((found) => (hot = { ranges: found.hot_ranges, due: performance.now() + HOT_EVERY }));
  return hot.ranges;
};

const overview = async (signal) => {
  const [status, hour, done] = await Promise.all([get("/v1/status", signal), history(signal), get("/v1/rebalance", signal).catch(() => ({ progress: null }))]);
  show(main, ...cluster({ status, past: hour, rebalance: done.progress, hot: hotRanges() }));
};

const allCollections = async (signal) => {
  const [found, others] = await Promise.all([get("/v1/collections?sizes=true", signal).catch(withoutSizes(signal)), get("/v1/aliases", signal)]);
  show(main, ...collections(found.collections, others.aliases));
};

// While a shard does not answer there are no sizes; what collections there are is known all the same.
const withoutSizes = (signal) => (error) => {
  if (error.status < 500) throw error;
  return get("/v1/collections", signal);
};

const oneCollection = (named, id) => async (signal) => {
  if (named === "." || named === "..") throw new Problem(400, { detail: "A browser cannot ask for a collection of this name; use another program." });
  const [found, others] = await Promise.all([get(`/v1/collections/${part(named)}`, signal), get("/v1/aliases", signal)]);
  main.replaceChildren(...collection(found, others.aliases, id).flat(Infinity).filter(Boolean));
};

const runbook = (named) => async () => main.replaceChildren(...(await book(named)));

// every: milliseconds until it is asked again; 0 for once.
const viewOf = (hash) => {
  const parts = hash.replace(/^#\/?/, "").split("/").map((one) => {
    try {
      return decodeURIComponent(one);
    } catch {
      return one;
    }
  });
  if (parts[0] === "collections" && parts[1]) return { at: "#/collections", title: parts[1], every: 0, draw: oneCollection(parts[1], parts[2] === "documents" ? parts[3] : undefined) };
  if (parts[0] === "collections") return { at: "#/collections", title: "Collections", every: SIZES_EVERY, draw: allCollections };
  if (parts[0] === "runbooks") return { at: "#/", title: "Runbook", every: 0, draw: runbook(parts[1]) };
  return { at: "#/", title: "Cluster", every: EVERY, draw: overview };
};

const wait = (milliseconds, signal) =>
  new Promise((done) => {
    const timer = setTimeout(done, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), done()), { once: true });
  });

const visible = (signal) =>
  document.hidden ? new Promise((done) => ["visibilitychange", "abort"].forEach((what) => (what === "abort" ? signal : document).addEventListener(what, done, { once: true }))) : null;

const run = async (view, signal) => {
  let shown = false;
  let pause = view.every;
  while (!signal.aborted) {
    await visible(signal);
    const begun = performance.now();
    try {
      await view.draw(signal);
      if (signal.aborted) return;
      shown = true;
      pause = view.every && Math.max(view.every, 10 * (performance.now() - begun)); // a large cluster is asked less often
      beat("good", view.every ? `live, ${new Date().toLocaleTimeString()}` : "");
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof Problem)) {
        main.replaceChildren(failed({ status: 0, message: `A fault of this page: ${error.message}` }));
        throw error;
      }
      // What was seen last stays, and says that it is old; who may not look is shown nothing more.
      if (!shown || error.status === 401 || error.status === 403) main.replaceChildren(failed(error));
      if (error.status === 401) askKey(told(error));
      beat("bad", shown ? `not heard since ${pulse.dataset.at ?? "a while"}: ${error.message}`.slice(0, 120) : "");
      if ([400, 401, 403, 404].includes(error.status)) return;
      pause = Math.min(SLOWER, Math.max(pause, 1000) * 2);
    }
    if (shown && pulse.className === "is-good") pulse.dataset.at = new Date().toLocaleTimeString();
    if (!pause) return;
    await wait(pause, signal);
  }
};

const begin = () => {
  turn?.abort();
  turn = new AbortController();
  const view = viewOf(location.hash);
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === view.at) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${seen(view.title)} \u2013 Needle`;
  main.replaceChildren(h("p", { class: "faint" }, "Asking this node\u2026"));
  beat("good", "");
  run(view, turn.signal);
};

addEventListener("hashchange", () => {
  begin();
  main.focus({ preventScroll: true });
  scrollTo(0, 0);
});
readable(main);
$("key").textContent = key.get() ? "Key: set" : "Key";
begin();
