// What is shown, kept in the address bar: `#/view/index?a=…`. A copied address shows the same page.

import {el} from "./dom.js"

const EMPTY = {
  view: "map", index: null, attribution: "", other: "", map: "", colour: "", target: null,
  selection: [], whatif: [], add: false, hidden: [], sort: "", job: "",
};
const VIEWS = ["map", "target", "train", "groups", "whatif", "compare", "about"];
const KEYS = { attribution: "a", other: "b", map: "m", colour: "c", sort: "o", job: "v" };
const LISTS = { selection: "s", whatif: "w", hidden: "h" };

export const state = { ...EMPTY };
const initial = { ...EMPTY };
const listeners = [];

/** Ascending distinct integers as base-36 differences: `3.1.a`. */
export function packed(numbers) {
  let last = 0;
  return [...new Set(numbers)].sort((a, b) => a - b).map((n) => {
    const step = (n - last).toString(36);
    last = n;
    return step;
  }).join(".");
}

export function unpacked(text) {
  if (!/^[0-9a-z]+(\.[0-9a-z]+)*$/.test(text)) return [];
  let last = 0;
  return text.split(".").map((step) => (last += parseInt(step, 36)));
}

export function addressOf(changes) {
  const s = { ...state, ...changes };
  const query = new URLSearchParams();
  for (const [name, key] of Object.entries(KEYS)) if (s[name] !== initial[name]) query.set(key, s[name]);
  if (s.target !== null) query.set("t", s.target);
  for (const [name, key] of Object.entries(LISTS)) if (s[name].length) query.set(key, packed(s[name]));
  if (s.add) query.set("add", "1");
  const text = query.toString();
  return `#/${s.view}${s.index === null ? "" : `/${s.index}`}${text ? `?${text}` : ""}`;
}

/** Takes the address apart; what is not legal for this data falls back to the default. */
function read(meta) {
  const [path, text] = location.hash.replace(/^#\/?/, "").split("?");
  const [view, index] = path.split("/"), query = new URLSearchParams(text ?? "");
  const below = (value, size) => (/^\d+$/.test(value ?? "") && Number(value) < size ? Number(value) : null);
  Object.assign(state, initial);
  if (VIEWS.includes(view)) state.view = view;
  state.index = below(index, state.view === "train" ? meta.n_train : meta.n_targets);
  if (state.view === "target" && state.index === null) state.view = "map";
  if (!["target", "train"].includes(state.view)) state.index = null;
  for (const [name, key] of Object.entries(KEYS)) if (query.has(key)) state[name] = query.get(key);
  state.target = below(query.get("t"), meta.n_targets);
  const sizes = { selection: meta.n_targets, whatif: meta.n_train, hidden: Infinity };
  for (const [name, key] of Object.entries(LISTS)) {
    state[name] = unpacked(query.get(key) ?? "").filter((n) => n < sizes[name]);
  }
  state.add = query.get("add") === "1";
  const legal = { attribution: meta.attributions, other: meta.attributions, map: meta.maps, colour: meta.targets.columns };
  for (const [name, list] of Object.entries(legal)) {
    if (!list.some((item) => item.name === state[name])) state[name] = initial[name];
  }
}

export function startState(meta) {
  const names = meta.attributions.map((a) => a.name), preset = meta.default ?? {};
  initial.attribution = preset.attribution ?? names[0] ?? "";
  initial.other = names.find((name) => name !== initial.attribution) ?? initial.attribution;
  initial.map = preset.map ?? meta.maps[0]?.name ?? "";
  initial.colour = preset.colour ?? meta.targets.columns[0]?.name ?? "";
  read(meta);
  addEventListener("popstate", () => {
    read(meta);
    for (const listener of listeners) listener();
  });
}

export function onState(listener) {
  listeners.push(listener);
}

/** Changes what is shown without drawing the view again. */
export function note(changes) {
  Object.assign(state, changes);
  history.replaceState(null, "", addressOf({}));
}

/** Changes what is shown and draws it; another view or page is a step that "back" undoes. */
export function go(changes) {
  const step = ["view", "index"].some((key) => key in changes && changes[key] !== state[key]);
  const next = "view" in changes && !("index" in changes) ? { ...changes, index: null } : changes;
  Object.assign(state, next);
  history[step ? "pushState" : "replaceState"](null, "", addressOf({}));
  for (const listener of listeners) listener();
}

/** A link to a changed state; opens in a new tab like any other. */
export function link(changes, attributes, ...children) {
  const follow = (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    go(changes);
  };
  const full = "view" in changes && !("index" in changes) ? { ...changes, index: null } : changes;
  return el("a", { href: addressOf(full), onclick: follow, ...attributes }, ...children);
}
