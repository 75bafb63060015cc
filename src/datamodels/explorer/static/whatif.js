// What if some training examples were removed (or added)? One sparse product answers for every target.

import {count, el, largest, say, saveCsv, signed} from "./dom.js"
import {go, state} from "./state.js"
import {hoverCard, nounOf, thumb, unitOf, weightList, wording} from "./cards.js"
import {binned, histogram} from "./chart.js"
import {paintedChange, legendOf} from "./paint.js"
import {PointMap} from "./scatter.js"
import {verifyPanel} from "./verify.js"
import {term} from "./words.js"

const CHIPS = 60;

/** Indices of ids or numbers in a text; the unknown ones apart. */
async function understood(source, text) {
  const names = await source.names("train"), place = new Map((names.ids ?? []).map((id, i) => [String(id), i]));
  const found = [], unknown = [];
  for (const word of text.split(/[\s,;]+/).filter(Boolean)) {
    const i = place.get(word) ?? (/^\d+$/.test(word) ? Number(word) : NaN);
    if (i < source.about.n_train) found.push(i);
    else unknown.push(word);
  }
  return { found, unknown };
}

function chosenList(source, words) {
  const list = state.whatif, problem = el("p", { class: "bad", role: "alert" });
  const input = el("input", { type: "text", name: "ids", placeholder: "ids or numbers, such as 3 17 42", "aria-label": "training examples to add to the list", autocomplete: "off" });
  const submit = async (event) => {
    event.preventDefault();
    const { found, unknown } = await understood(source, input.value);
    if (unknown.length) problem.textContent = `Not among the ${count(source.about.n_train, "training example")}: ${unknown.slice(0, 5).join(", ")}`;
    else if (found.length) go({ whatif: [...new Set([...list, ...found])].sort((a, b) => a - b), job: "" });
  };
  return el("section", { class: "panel" }, el("h2", null, `${count(list.length, "training example")} chosen`),
    el("form", { class: "line", onsubmit: submit }, input, el("button", { type: "submit" }, "Add to the list"),
      list.length > 0 && el("button", { type: "button", onclick: () => go({ whatif: [], job: "" }) }, "Clear")), problem,
    el("div", { class: "line", role: "radiogroup", "aria-label": "what happens to them" }, [[false, "removed from the training set"], [true, "added to it"]].map(([add, name]) => el("label", null,
      el("input", { type: "radio", name: "add", checked: state.add === add, onchange: () => go({ add, job: "" }) }), ` ${name}`))),
    el("ul", { class: "chips" }, list.slice(0, CHIPS).map((i) => el("li", null, el("button", { type: "button", "aria-label": `take ${nounOf("train", i)} off the list`, title: "take off the list",
      onclick: () => go({ whatif: list.filter((other) => other !== i), job: "" }) }, thumb(source, "train", i, 24), `${words.id(i)} ${words.label(i)}`.trim(), el("span", { "aria-hidden": "true" }, " ×"))))),
    list.length > CHIPS && el("p", { class: "quiet" }, `and ${list.length - CHIPS} more`),
    !list.length && el("p", { class: "quiet" }, "Add training examples here, or start from a target's page, a training example's page, or a selection on the map."));
}

function summary(predicted, unit) {
  let up = 0, down = 0, most = 0;
  predicted.forEach((value, i) => {
    up += value > 0;
    down += value < 0;
    if (Math.abs(value) > Math.abs(predicted[most])) most = i;
  });
  return { text: `The output of ${count(down, "target")} would fall and that of ${up.toLocaleString("en")} rise; the largest change is ${signed(predicted[most])}${unit ? ` ${unit}` : ""} at target ${most}.`, most };
}

/** What an exported file adds to its answer, or why it gives none. */
function ofFile({ cut, steps, calibrated }, { kept, predicted }) {
  if (steps) return el("p", { class: "quiet" }, `Weights in this file are rounded to 1/${steps.toLocaleString("en")} of each target's largest.`);
  if (!(kept < 1)) return null;
  return el("p", { class: predicted ? "quiet" : "bad", id: "kept" }, `This file keeps the ${cut} strongest weights of each target: ${Math.floor(100 * kept)} % of the weights (by size) of the chosen examples. `,
    predicted ? calibrated && "Intervals are left out." : "That is too little to predict from; serve the run to see what would change.");
}

function ranking(source, words, answer, sign) {
  const order = largest(answer.predicted.map((value) => sign * value), 60).filter((i) => sign * answer.predicted[i] > 0);
  return order.map((i) => ({ index: i, value: answer.predicted[i], interval: answer.low && Number.isFinite(answer.low[i]) ? [answer.low[i], answer.high[i]] : undefined }));
}

export async function whatifView(source) {
  const [words, train] = await Promise.all([wording(source, "targets"), wording(source, "train")]);
  const title = el("header", { class: "heading" }, el("h1", { tabindex: "-1" }, "What if?"));
  if (!state.whatif.length) return { node: el("article", null, title, chosenList(source, train)), title: "What if" };
  const answer = await source.whatif(state.attribution, Int32Array.from(state.whatif), state.add);
  const facts = source.about.attributions.find((a) => a.name === state.attribution);
  if (!answer.predicted) {
    return { node: el("article", null, title, el("div", { class: "columns" }, chosenList(source, train), el("section", { class: "panel" }, el("h2", null, "Predicted change"), ofFile(facts, answer)))), title: "What if" };
  }
  const { predicted } = answer, unit = unitOf(source), told = summary(predicted, unit), paint = paintedChange(predicted);
  const name = "predicted change";
  const list = (heading, items) => el("section", { class: "panel", "aria-label": heading }, el("h2", null, heading), weightList(source, "targets", words, items, { shown: 10 }));
  const map = source.about.maps.length ? new PointMap({
    points: await source.map(state.map), colours: paint.colours, legend: paint.legend, colourName: name, shown: null, name: "Map of targets, coloured by predicted change", chosen: state.target,
    label: (i) => `${nounOf("targets", i)} ${words.label(i)}: ${signed(predicted[i])}`, card: (i) => hoverCard(source, "targets", words, i, `change ${signed(predicted[i])}`),
    choose: () => {}, open: (i) => go({ view: "target", index: i }),
  }) : null;
  say(told.text);
  const rows = () => [["index", "id", "label", "predicted_change", "low", "high"], ...Array.from(predicted, (value, i) => [i, words.id(i), words.label(i), value, answer.low?.[i], answer.high?.[i]])];
  const node = el("article", null, title, el("div", { class: "columns" }, chosenList(source, train),
    el("section", { class: "panel" }, el("h2", null, "Predicted change"), el("p", { id: "told" }, told.text),
      ofFile(facts, answer),
      histogram({ title: "predicted change over targets", ...binned(predicted), rules: [{ at: 0, name: "" }], xlabel: `change${unit ? `, ${unit}` : ""}`, ylabel: "targets" }),
      answer.low && el("p", { class: "quiet" }, "Lists show ", term("interval", "95 % intervals"), "."),
      el("div", { class: "buttons" }, el("button", { type: "button", onclick: () => saveCsv("whatif.csv", rows()) }, "CSV of every target")))),
  map && el("section", { class: "panel" }, map.node, legendOf(name, paint.legend, [], () => {})),
  el("div", { class: "pair" }, list("Would fall most", ranking(source, words, answer, -1)), list("Would rise most", ranking(source, words, answer, 1))),
  verifyPanel(source));
  return { node, title: "What if", mount: () => map?.mount() };
}
