// Elements, made of names and text. What comes from the cluster gets into the page here and only here, and only as
// text: there is no way to hand in markup, a script, a style, or an address elsewhere.

const SVG = "http://www.w3.org/2000/svg";

const put = (element, children) => {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
};

const inside = (address) => /^(#|\/(?![/\\]))/.test(address);

export const h = (name, props = {}, ...children) => {
  const element = document.createElement(name);
  for (const [prop, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (prop.startsWith("on")) {
      element.addEventListener(prop.slice(2), value);
      element.dynamic = true;
    } else if (prop === "href" && !inside(value)) throw new Error("an address outside of this node");
    else if (prop === "width") element.style.width = value;
    else element.setAttribute(prop, value === true ? "" : String(value));
  }
  put(element, children);
  return element;
};

export const s = (name, attributes = {}, ...children) => {
  const element = document.createElementNS(SVG, name);
  for (const [attribute, value] of Object.entries(attributes)) element.setAttribute(attribute, String(value));
  put(element, children);
  return element;
};

// What is on the page becomes like `fresh` with as few changes as can be: focus, selection and scrolling stay.
export const become = (old, fresh) => {
  const other = old.nodeName !== fresh.nodeName || old.dynamic || fresh.dynamic;
  if (other || old.getAttribute?.("data-key") !== fresh.getAttribute?.("data-key")) {
    old.replaceWith(fresh);
    return;
  }
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (name !== "style" && name !== "open" && !fresh.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (name !== "style" && old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  if (old.style && old.style.cssText !== fresh.style.cssText) old.style.cssText = fresh.style.cssText;
  if (fresh.points) old.points = fresh.points;
  const before = [...old.childNodes];
  const after = [...fresh.childNodes];
  after.forEach((child, n) => (n < before.length ? become(before[n], child) : old.append(child)));
  before.slice(after.length).forEach((child) => child.remove());
};

export const show = (place, ...children) => {
  const fresh = place.cloneNode(false);
  put(fresh, children);
  become(place, fresh);
};

// Names and ids may hold anything; what cannot be seen, or turns the direction of what stands beside it, is written out.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
export const seen = (text) =>
  String(text).replace(UNSEEN, (sign) => `\\u${sign.charCodeAt(0).toString(16).padStart(4, "0")}`);

export const lines = (text) => text.split("\n").map(seen).join("\n");

// Sentences of the cluster, in which `this` is what somebody types.
export const prose = (text) => text.split("`").map((piece, n) => (n % 2 ? h("code", {}, seen(piece)) : seen(piece)));

export const name = (text, more = {}) => h("bdi", { class: "name", ...more }, seen(text));
