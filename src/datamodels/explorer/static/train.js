// Training examples: the list in the order of any number, and the page of one of them.

import {count, el, figure, largest, saveCsv} from "./dom.js"
import {go, link, state} from "./state.js"
import {bySign, columnTable, large, legendOfLists, thumb, tileOf, togetherOf, unitOf, wording} from "./cards.js"
import {choice} from "./map.js"
import {heading, twoLists} from "./target.js"

const LISTED = 96;

export function addToWhatif(examples) {
  return [...new Set([...state.whatif, ...examples])].sort((a, b) => a - b);
}

/** Every training example, largest first by a column. */
async function listView(source) {
  const numbers = source.about.train.columns.filter((c) => c.kind === "number"), words = await wording(source, "train");
  const facts = numbers.find((c) => c.name === state.sort) ?? numbers[0], n = source.about.n_train;
  const values = facts ? await source.column("train", facts.name) : new Float32Array(n);
  const order = largest(values, n), shown = order.slice(0, LISTED);
  const rows = () => [["rank", "index", "id", "label", facts?.name ?? "value"], ...order.map((i, k) => [k + 1, i, words.id(i), words.label(i), values[i]])];
  const node = el("article", null, el("header", { class: "heading" }, el("h1", { tabindex: "-1" }, "Training examples")),
    el("section", { class: "panel" },
      el("div", { class: "choices" }, facts && choice("Largest first by", numbers.map((c) => [c.name]), facts.name, (sort) => go({ sort })),
        el("button", { type: "button", onclick: () => saveCsv("train.csv", rows()) }, "CSV"),
        el("button", { type: "button", onclick: () => go({ view: "whatif", whatif: addToWhatif(shown.slice(0, 20)) }) }, "Remove the first 20: what if?")),
      el("p", { class: "quiet" }, facts?.description ? `${facts.name}: ${facts.description}. ` : "", `${Math.min(LISTED, n)} of ${count(n, "training example")} are shown.`),
      el("div", { class: "tiles" }, shown.map((i) => tileOf(source, "train", words, i, facts && figure(values[i]))))));
  return { node, title: "Training examples" };
}

export async function trainView(source) {
  if (state.index === null) return listView(source);
  const i = state.index, name = state.attribution;
  const [details, weights, words, targets, table, together] = await Promise.all([
    source.details("train", i), source.weights(name, "train", i), wording(source, "train"), wording(source, "targets"), columnTable(source, "train", i), togetherOf(source, name)]);
  const signs = bySign(weights, details.intervals?.[name]), unit = unitOf(source), listed = state.whatif.includes(i);
  const helped = weights.values.filter((value) => value > 0).length, hurt = weights.values.filter((value) => value < 0).length;
  const { cut, steps } = source.about.attributions.find((a) => a.name === name);
  const node = el("article", null,
    heading(source, "train", i, words),
    el("div", { class: "columns" },
      el("section", { class: "panel" }, large(source, "train", i, details), table),
      el("section", { class: "panel" }, el("h2", null, `What it does (${name})`),
        el("p", null, `It raises the output of ${count(helped, "target")} and lowers that of ${hurt.toLocaleString("en")}.`,
          cut && !steps ? el("span", { class: "quiet" }, ` Only the ${cut} strongest weights of each target are kept here.`) : "",
          steps ? el("span", { class: "quiet" }, ` Weights are rounded to 1/${steps.toLocaleString("en")} of each target's largest.`) : ""),
        el("div", { class: "buttons" },
          el("button", { type: "button", class: "main", onclick: () => go({ view: "whatif", whatif: [i], add: false }) }, "Remove it: what if?"),
          el("button", { type: "button", disabled: listed, onclick: () => go({ whatif: addToWhatif([i]) }) }, listed ? "In the what-if list" : "Add to the what-if list")),
        details.duplicates?.length > 0 && [el("h3", null, "Near copies in the training set"),
          el("ul", { class: "plain-list row-list" }, details.duplicates.map((copy) => el("li", null, link({ view: "train", index: copy.index }, { class: "row" },
            thumb(source, "train", copy.index, 36), `#${words.id(copy.index)} ${words.label(copy.index)}`,
            Object.entries(copy).filter(([key, value]) => key !== "index" && Number.isFinite(value)).map(([key, value]) => el("small", null, ` ${key} ${figure(value)}`))))))])),
    legendOfLists(unit, [...signs.positive, ...signs.negative], together),
    twoLists(source, "targets", targets, signs, ["Targets it helps", "Targets it hurts"], unit));
  return { node, title: `Training example ${i}` };
}
