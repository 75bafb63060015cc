// The page of one target: what it is, what models made of it, and which training examples drive it.

import {count, el, figure} from "./dom.js"
import {go, link, state} from "./state.js"
import {bySign, columnTable, csvButton, large, legendOfLists, membersOf, tileOf, togetherOf, unitOf, weightList, wording} from "./cards.js"
import {histogram, lines} from "./chart.js"
import {term} from "./words.js"

const REMOVED = 20;

/** The fit in words; any fact may be missing. */
function fitWords(source, fit, weights) {
  const n = source.about.n_train, kept = fit?.n_nonzero ?? weights.indices.length, parts = [];
  parts.push(el("li", null, `${count(kept, "training example")} of ${n.toLocaleString("en")} have a `, term("weight"), "."));
  if (Number.isFinite(fit?.lam)) parts.push(el("li", null, "The penalty ", term("λ"), ` is ${figure(fit.lam)}.`));
  if (Number.isFinite(fit?.val_r2)) parts.push(el("li", null, `On held-out models it explains ${figure(100 * Math.max(0, fit.val_r2))} % of the variance (`, term("R²"), ` ${figure(fit.val_r2)}).`));
  if (Number.isFinite(fit?.lds)) parts.push(el("li", null, "It ranks unseen models' outputs with an ", term("LDS"), ` of ${figure(fit.lds)}.`));
  if (Number.isFinite(fit?.gap)) parts.push(el("li", null, "Convergence: ", term("duality gap"), ` ${figure(fit.gap)}.`));
  return el("ul", { class: "plain-list" }, parts);
}

function outputsFigure(source, outputs) {
  const name = source.about.output_name || "output", { mean, sd, low, high, counts, runs } = outputs;
  const share = counts.reduce((sum, size, k) => sum + (low + ((k + 0.5) * (high - low)) / counts.length < 0 ? size : 0), 0) / Math.max(1, counts.reduce((a, b) => a + b, 0));
  return el("section", { class: "panel" }, el("h2", null, "What the models made of it"),
    el("p", null, `Over ${count(runs ?? counts.reduce((a, b) => a + b, 0), "model")}${source.about.targets.train_columns ? " that did not see it" : ""} the `, term(name in { margin: 0 } ? name : "output", name),
      ` was ${figure(mean)} on average (standard deviation ${figure(sd)})${low < 0 && high > 0 ? `; it was below zero in about ${Math.round(100 * share)} %` : ""}.`),
    histogram({ title: `${name} over models`, counts, low, high, rules: [{ at: mean, name: `mean ${figure(mean)}` }], xlabel: name, ylabel: "models" }));
}

/** Error and size along the path, one under the other. */
function pathFigure(path) {
  const chosen = typeof path.chosen === "number" ? (Number.isInteger(path.chosen) && path.chosen < path.lam.length ? path.lam[path.chosen] : path.chosen) : null;
  const draw = (y, title, ylabel, zero) => lines({ title, series: [{ x: path.lam, y, name: title }], xlabel: "λ", ylabel, log: true, chosen, zero });
  return el("section", { class: "panel" }, el("h2", null, "Along the penalty"),
    el("p", { class: "quiet" }, "Each point is a fit at one ", term("λ"), "; the one with the least error on held-out models is taken."),
    el("div", { class: "charts" }, path.error?.length ? draw(path.error, "error on held-out models", "error") : null,
      path.n_nonzero?.length ? draw(path.n_nonzero, "training examples with a weight", "nonzero weights", true) : null));
}

/** The training examples of the first items, up to 20; of groups at least one. */
function strongestOf(items) {
  const chosen = [];
  for (const members of items.map(membersOf)) {
    if (chosen.length && chosen.length + members.length > REMOVED) break;
    chosen.push(...members);
  }
  return chosen;
}

/** One key of details that may be given by attribution. */
export function ofAttribution(given, name) {
  return given && typeof given === "object" && name in given ? given[name] : given && ("lam" in given || "n_nonzero" in given || "indices" in given) ? given : null;
}

function stepper(view, i, size) {
  const at = (index, name, key) => (index >= 0 && index < size ? link({ view, index }, { class: "step", rel: key, "aria-label": key === "prev" ? "previous" : "next" }, name) : null);
  return el("span", { class: "steps" }, at(i - 1, "←", "prev"), at(i + 1, "→", "next"));
}

/** Title line of an example's page. */
export function heading(source, side, i, words) {
  const id = words.id(i), label = words.label(i), facts = source.labelColumn(side);
  const [view, noun, size] = side === "train" ? ["train", "Training example", source.about.n_train] : ["target", "Target", source.about.n_targets];
  return el("header", { class: "heading" }, el("h1", { tabindex: "-1" }, `${noun} ${i}`, label && el("span", { class: "chip" }, `${facts.name}: ${label}`), id !== String(i) && el("small", null, id)), stepper(view, i, size));
}

/** Two lists of weights side by side, those that raise and those that lower. */
export function twoLists(source, side, words, { positive, negative }, titles, unit) {
  const part = (title, items, name) => el("section", { class: "panel", "aria-label": title }, el("h2", null, title, csvButton(`${name}.csv`, () => [
    ["index", "id", "label", "weight", "low", "high", "selected"],
    ...items.map((item) => [membersOf(item).join(" "), item.group ?? words.id(item.index), item.group ? "" : words.label(item.index), item.value, item.interval?.[0], item.interval?.[1], item.selected ?? ""])])),
  weightList(source, side, words, items, { unit }));
  return el("div", { class: "pair" }, part(titles[0], positive, "helpful"), part(titles[1], negative, "harmful"));
}

export async function targetView(source) {
  const i = state.index, name = state.attribution;
  const [details, weights, words, train, table, together] = await Promise.all([
    source.details("targets", i), source.weights(name, "targets", i), wording(source, "targets"), wording(source, "train"), columnTable(source, "targets", i), togetherOf(source, name)]);
  const signs = bySign(weights, details.intervals?.[name], { together }), path = ofAttribution(details.path, name), unit = unitOf(source);
  const ask = (items, noun) => {
    const chosen = strongestOf(items);
    return el("button", { type: "button", disabled: !items.length, onclick: () => go({ view: "whatif", whatif: [...chosen].sort((a, b) => a - b), add: false }) },
      `Remove the ${chosen.length} most ${noun}: what if?`);
  };
  const node = el("article", null,
    heading(source, "targets", i, words),
    el("div", { class: "lead" },
      el("section", { class: "panel" }, large(source, "targets", i, details), fitWords(source, ofAttribution(details.fit, name), weights),
        el("div", { class: "buttons" }, ask(signs.positive, "helpful"), ask(signs.negative, "harmful"),
          el("button", { type: "button", onclick: () => go({ view: "map", target: i }) }, "Show on the map"),
          source.about.attributions.length > 1 && el("button", { type: "button", onclick: () => go({ view: "compare", target: i }) }, "Compare attributions"))),
      el("div", null, twoLists(source, "train", train, signs, ["Most helpful training examples", "Most harmful training examples"], unit),
        legendOfLists(unit, [...signs.positive, ...signs.negative], together))),
    el("div", { class: "columns" }, el("div", { class: "side" }, details.outputs && outputsFigure(source, details.outputs), details.nearest?.length > 0 && el("section", { class: "panel" }, el("h2", null, "Nearest targets"), el("p", { class: "quiet" }, "By ", term("similarity"), " of weights."),
        el("div", { class: "tiles" }, details.nearest.slice(0, source.about.sprites?.targets ? 12 : 6).map((near) => tileOf(source, "targets", words, near.index, figure(near.similarity)))))),
      path && pathFigure(path), el("section", { class: "panel" }, el("h2", null, "Among all targets"), table)));
  return { node, title: `Target ${i}` };
}
