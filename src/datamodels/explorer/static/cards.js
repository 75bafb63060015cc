// How examples appear: thumbnails, names, hover cards, and lists of weights with bars and intervals.

import {el, figure, saveCsv, signed} from "./dom.js"
import {link, state} from "./state.js"
import {term} from "./words.js"

const VIEW_OF = { targets: "target", train: "train" };
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
  const picture = thumb(source, side, i, 52), text = words.text(i), name = words.id(i);
  return link({ view: VIEW_OF[side], index: i }, { class: picture ? "tile" : "tile wide", "aria-label": `${nounOf(side, i)}, ${words.label(i)} ${note ?? ""}` },
    picture ?? el("span", { class: "snippet" }, text || `${name}`),
    el("span", { class: "label" }, words.label(i) || name), note && el("small", null, note));
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

/** A list of examples with their numbers. `items`: {index, value, interval?, selected?}. */
export function weightList(source, side, words, items, { shown = 12, unit = "", empty = "none" } = {}) {
  if (!items.length) return el("p", { class: "quiet" }, empty);
  const ends = items.flatMap((item) => [item.value, ...(item.interval ?? [])]).filter(Number.isFinite);
  const domain = [Math.min(0, ...ends), Math.max(0, ...ends)];
  const row = (item) => el("li", null, link({ view: VIEW_OF[side], index: item.index }, { class: "row" },
    thumb(source, side, item.index, 40) ?? el("span", { class: "snippet" }, words.text(item.index)),
    el("span", { class: "who" }, el("b", null, words.label(item.index) || words.id(item.index)),
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

/** The weights of one example split by sign, strongest first, with what is known of each. */
export function bySign(weights, known, k = 60) {
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
  return { positive: all.filter((item) => item.value > 0).slice(0, k), negative: all.filter((item) => item.value < 0).slice(0, k) };
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
export function legendOfLists(unit, items) {
  return el("p", { class: "quiet" }, "Bars are ", term("weight", "weights"), unit ? ` in ${unit}` : "", ".",
    items.some((item) => item.interval) && [" Thin lines are ", term("interval", "95 % intervals"), "."],
    items.some((item) => item.selected) && [" ★ marks those selected at the ", term("FDR", "FDR level"), "."]);
}

export function csvButton(name, rows) {
  return el("button", { type: "button", class: "plain", onclick: async () => saveCsv(name, await rows()) }, "CSV");
}

export function unitOf(source, name = state.attribution) {
  return source.about.attributions.find((a) => a.name === name)?.units ?? "";
}
