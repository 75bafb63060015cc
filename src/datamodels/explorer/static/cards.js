// How examples appear: thumbnails, names, hover cards, and lists of weights with bars and intervals.

import {el, figure, saveCsv, signed} from "./dom.js"
import {link, state} from "./state.js"
import {term} from "./words.js"

const VIEW_OF = { targets: "target", train: "train" };
const SAME = 1e-3;  // weights of a group that differ by less are one number
const NOUN = { targets: "target", train: "training example" };

export function nounOf(side, i) {
  return `${NOUN[side]} ${i}`;
}

/** The picture of an example in a box `size` pixels high; null when there is none. */
export function thumb(source, side, i, size) {
  const tile = source.tile(side, i);
  if (!tile) return null;
  const [width, height] = tile.tile, scale = size / height;
  return el("span", {
    class: "thumb", role: "img", "aria-label": `picture of ${nounOf(side, i)}`,
    style: {
      width: `${width * scale}px`, height: `${size}px`, "background-image": `url("${tile.url}")`,
      "background-size": `${tile.per_row * width * scale}px auto`,
      "background-position": `${-tile.column * width * scale}px ${-tile.row * size}px`,
      "image-rendering": scale >= 1.5 ? "pixelated" : "auto",
    },
  });
}

/** What the cards of one side need: the label and the snippet of any example. */
export async function wording(source, side) {
  const { ids, kind } = source.about[side], told = ids || kind === "texts" || kind === "rows";
  const [label, names] = await Promise.all([source.labels(side), told ? source.names(side) : {}]);
  return { label, id: (i) => names.ids?.[i] ?? String(i), text: (i) => names.texts?.[i] ?? "" };
}

/** The floating card of a point: picture, name, label, text, and one line more. */
export function hoverCard(source, side, words, i, more) {
  return [
    thumb(source, side, i, 88),
    el("strong", null, words.id(i) === String(i) ? nounOf(side, i) : words.id(i)),
    words.label(i) && el("span", null, words.label(i)),
    words.text(i) && el("span", { class: "snippet" }, words.text(i)),
    more && el("span", { class: "quiet" }, more),
  ].filter(Boolean);
}

/** A linked tile: thumbnail or snippet, with its label. */
export function tileOf(source, side, words, i, note) {
  const picture = thumb(source, side, i, 52), text = words.text(i), name = words.id(i), label = words.label(i);
  return link({ view: VIEW_OF[side], index: i }, { class: picture ? "tile" : "tile wide", "aria-label": `${nounOf(side, i)}, ${label} ${note ?? ""}` },
    picture ?? (text && el("span", { class: "snippet" }, text)),
    el("span", { class: "label" }, label || name), !picture && !text && label && el("span", { class: "snippet" }, name), note && el("small", null, note));
}

/** A bar from zero with its interval; everything is a share of the widest of the list. */
function bar(value, interval, domain) {
  const percent = (x) => `${(100 * (x - domain[0])) / (domain[1] - domain[0])}%`;
  const [left, right] = value < 0 ? [value, 0] : [0, value];
  const place = (a, b) => ({ left: percent(a), width: `calc(${percent(b)} - ${percent(a)})` });
  return el("span", { class: "bar", "aria-hidden": "true" },
    el("i", { class: value < 0 ? "fill bad" : "fill", style: place(left, right) }),
    el("i", { class: "zero", style: { left: percent(0) } }),
    interval && el("i", { class: "whisker", style: place(...interval) }));
}

/** A list of examples with their numbers. `items`: {index, value, interval?, selected?}, or of a whole group {group, members} too. */
export function weightList(source, side, words, items, { shown = 12, unit = "", empty = "none" } = {}) {
  if (!items.length) return el("p", { class: "quiet" }, empty);
  const ends = items.flatMap((item) => [item.value, ...(item.interval ?? [])]).filter(Number.isFinite);
  const domain = [Math.min(0, ...ends), Math.max(0, ...ends)];
  const row = (item) => el("li", null, link({ view: VIEW_OF[side], index: item.index }, { class: "row" },
    thumb(source, side, item.index, 40) ?? el("span", { class: "snippet" }, item.group ? "" : words.text(item.index)),
    item.group ? el("span", { class: "who" }, el("b", null, item.group), el("small", null, `${item.members.length} examples`))
      : el("span", { class: "who" }, el("b", null, words.label(item.index) || words.id(item.index)),
        el("small", { title: words.id(item.index) }, words.label(item.index) ? `#${words.id(item.index)}` : "")),
    bar(item.value, item.interval, domain),
    el("span", { class: "number" }, signed(item.value),
      item.selected && el("span", { class: "mark", role: "img", "aria-label": "selected at the FDR level", title: "selected at the FDR level" }, "★"),
      item.interval && el("small", null, item.interval.map((end) => figure(end, true)).join(" to "))),
    unit && el("span", { class: "unseen" }, unit)));
  const list = el("ol", { class: items.some((item) => item.interval) ? "weights ranged" : "weights" }, items.slice(0, shown).map(row));
  if (items.length <= shown) return list;
  const more = el("button", { type: "button", class: "plain", onclick: () => {
    list.append(...items.slice(shown).map(row));
    list.children[shown].firstChild.focus();
    more.remove();
  } }, `show ${items.length - shown} more`);
  return el("div", null, list, more);
}

/** The groups of training examples that models saw together, where an attribution is a fit to models: `codes` of all, `names` by code; else null. */
export async function togetherOf(source, attribution) {
  const facts = source.columnFacts("train", source.togetherColumn(attribution));
  return facts ? { codes: await source.column("train", facts.name), names: facts.categories, name: facts.name } : null;
}

/** All training examples that an item of a list stands for. */
export function membersOf(item) {
  return item.members ?? [item.index];
}

/** Items whose groups share one weight, as ridge gives it, become one per group: its members, and the sum of their weights. */
function folded(items, { codes, names }) {
  const groups = new Map();
  for (const item of items) groups.set(codes[item.index], [...(groups.get(codes[item.index]) ?? []), item]);
  const whole = new Map();
  codes.forEach((code, j) => groups.has(code) && whole.set(code, [...(whole.get(code) ?? []), j]));
  return [...groups].flatMap(([code, mine]) => {
    const [first] = mine, alike = mine.every((item) => Math.abs(item.value - first.value) <= SAME * Math.abs(first.value));
    if (mine.length < 2 || !alike) return mine;
    const members = whole.get(code), times = (value) => value * members.length;
    return [{ ...first, group: names[code], members, value: times(first.value), ...(first.interval && { interval: first.interval.map(times) }) }];
  }).sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
}

/** The weights of one example split by sign, strongest first, with what is known of each; `together` as `togetherOf` gives it. */
export function bySign(weights, known, { k = 60, together = null } = {}) {
  const place = new Map(known ? Array.from(known.indices, (index, at) => [index, at]) : []);
  const all = Array.from(weights.indices, (index, at) => {
    const found = place.get(index), item = { index, value: weights.values[at] };
    if (found !== undefined) {
      const ends = [known.low?.[found], known.high?.[found]];
      if (ends.every(Number.isFinite)) item.interval = ends;
      item.selected = Boolean(known.selected?.[found]);
    }
    return item;
  });
  const items = together ? folded(all, together) : all;
  return { positive: items.filter((item) => item.value > 0).slice(0, k), negative: items.filter((item) => item.value < 0).slice(0, k) };
}

/** The columns of one example but those of other attributions, with its standing among all. */
export async function columnTable(source, side, i) {
  const others = source.about.attributions.map((a) => a.name).filter((name) => name !== state.attribution);
  const columns = source.about[side].columns.filter((facts) => !others.some((name) => facts.name.endsWith(`, ${name}`)));
  const rows = await Promise.all(columns.map(async (facts) => {
    const values = await source.column(side, facts.name), value = values[i];
    if (facts.kind === "category") return [facts, facts.categories[value] ?? "missing", ""];
    if (!Number.isFinite(value)) return [facts, "–", ""];
    const below = values.reduce((sum, other) => sum + (other < value), 0);
    return [facts, figure(value), `higher than ${Math.floor((100 * below) / values.length)} %`];
  }));
  return el("table", { class: "facts" }, el("tbody", null, rows.map(([facts, value, standing]) => el("tr", null,
    el("th", { scope: "row", title: facts.description }, facts.name), el("td", null, value), el("td", { class: "quiet" }, standing)))));
}

/** An example at full size: its picture, text or row. */
export function large(source, side, i, details) {
  const picture = thumb(source, side, i, 168);
  return el("div", { class: "large" }, picture,
    details.text && el("blockquote", { tabindex: "0", "aria-label": "text" }, details.text),
    details.row && el("table", { class: "facts" }, el("tbody", null, details.row.map(([name, value, z]) =>
      el("tr", null, el("th", { scope: "row" }, name), el("td", null, typeof value === "number" ? figure(value) : String(value)),
        el("td", { class: "quiet", title: "standard deviations from the mean of its split" }, Number.isFinite(z) && `${z < 0 ? "−" : "+"}${Math.abs(z).toFixed(1)} sd`))))));
}

/** What bars, lines and stars mean; `items` tell which of them there are. */
export function legendOfLists(unit, items, together = null) {
  return el("p", { class: "quiet" }, "Bars are ", term("weight", "weights"), unit ? ` in ${unit}` : "", ".",
    together && ` Models saw the training examples of one ${together.name} together or not at all, so only the sum of their weights is determined${items.some((item) => item.group) ? ": a row is a whole one, its bar the sum" : ", not how it is divided among them"}.`,
    items.some((item) => item.interval) && [" Thin lines are ", term("interval", "95 % intervals"), "."],
    items.some((item) => item.selected) && [" ★ marks those selected at the ", term("FDR", "FDR level"), "."]);
}

export function csvButton(name, rows) {
  return el("button", { type: "button", class: "plain", onclick: async () => saveCsv(name, await rows()) }, "CSV");
}

export function unitOf(source, name = state.attribution) {
  return source.about.attributions.find((a) => a.name === name)?.units ?? "";
}
