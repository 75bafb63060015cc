// Two attributions of the same targets: where they agree on the map, and their lists side by side.

import {el, figure, saveCsv} from "./dom.js"
import {go, note, state} from "./state.js"
import {bySign, hoverCard, legendOfLists, nounOf, togetherOf, weightList, wording} from "./cards.js"
import {binned, histogram} from "./chart.js"
import {legendOf, painted} from "./paint.js"
import {choice} from "./map.js"
import {PointMap} from "./scatter.js"
import {term} from "./words.js"

function mean(values) {
  const finite = Array.from(values).filter(Number.isFinite);
  return finite.reduce((sum, value) => sum + value, 0) / finite.length;
}

/** The top lists of both attributions for one target; examples in both are marked. */
async function sideBySide(source, words, train, i) {
  if (i === null) return [el("p", { class: "quiet" }, "Choose a target on the map to see both lists of training examples.")];
  const names = [state.attribution, state.other], details = await source.details("targets", i);
  const together = await Promise.all(names.map((name) => togetherOf(source, name))), both = await Promise.all(names.map((name) => source.weights(name, "targets", i)));
  const tops = both.map((weights) => new Set(weights.indices.subarray(0, 20)));
  const signs = both.map((weights, k) => bySign(weights, details.intervals?.[names[k]], { k: 10, together: together[k] }));
  return [el("h2", null, `Target ${i}${words.label(i) ? `: ${words.label(i)}` : ""}`), legendOfLists("", signs.flatMap((one) => [...one.positive, ...one.negative]), together.find(Boolean)),
    el("div", { class: "pair" }, signs.map(({ positive, negative }, k) => {
      const shared = [...tops[k]].filter((j) => tops[1 - k].has(j)).length;
      return el("section", { class: "panel", "aria-label": names[k] }, el("h2", null, names[k], el("small", null, ` ${shared} of its 20 strongest are in both`)),
        el("h3", null, "helpful"), weightList(source, "train", train, positive), el("h3", null, "harmful"), weightList(source, "train", train, negative));
    }))];
}

export async function compareView(source) {
  const names = source.about.attributions.map((a) => [a.name]), title = el("header", { class: "heading" }, el("h1", { tabindex: "-1" }, "Compare attributions"));
  if (names.length < 2) return { node: el("article", null, title, el("p", { class: "quiet" }, "This run has one attribution only; another one (TRAK, say) gives something to compare.")), title: "Compare" };
  const [agreement, words, train] = await Promise.all([source.agreement(state.attribution, state.other), wording(source, "targets"), wording(source, "train")]);
  const about = source.about.targets.columns.filter((c) => c.kind === "number" && [state.attribution, state.other].some((name) => c.name.endsWith(`, ${name}`)));
  const legal = ["overlap", "cosine", ...about.map((c) => c.name)], kind = legal.includes(state.sort) ? state.sort : "overlap";
  const values = agreement[kind] ?? (await source.column("targets", kind)), paint = painted({ name: kind, kind: "number" }, values);
  const lists = el("div", { "aria-live": "polite" });
  let wanted = 0;
  const choose = async (i) => {
    note({ target: i });
    const mine = ++wanted, content = await sideBySide(source, words, train, i);
    if (mine === wanted) lists.replaceChildren(...content);
  };
  const map = source.about.maps.length ? new PointMap({
    points: await source.map(state.map), colours: paint.colours, legend: paint.legend, colourName: kind, shown: null, chosen: state.target,
    name: `Map of targets, coloured by ${kind}${kind in agreement ? ` of ${state.attribution} and ${state.other}` : ""}`,
    label: (i) => `${nounOf("targets", i)} ${words.label(i)}: ${kind} ${figure(values[i])}`, card: (i) => hoverCard(source, "targets", words, i, `${kind} ${figure(values[i])}`),
    choose, open: (i) => go({ view: "target", index: i }),
  }) : null;
  lists.replaceChildren(...(await sideBySide(source, words, train, state.target)));
  const rows = () => [["index", "id", "label", "overlap", "cosine"], ...Array.from(agreement.overlap, (value, i) => [i, words.id(i), words.label(i), value, agreement.cosine[i]])];
  const node = el("article", null, title,
    el("div", { class: "split" },
      el("section", { class: "panel" }, el("div", { class: "choices" },
        choice("First", names, state.attribution, (attribution) => go({ attribution })), choice("Second", names, state.other, (other) => go({ other })),
        choice("Colour", legal.map((name) => [name]), kind, (sort) => go({ sort }))),
      map?.node, legendOf(kind, paint.legend, [], () => {})),
      el("div", { class: "side" }, el("section", { class: "panel" }, el("h2", null, "Over all targets"),
        el("p", null, "Mean ", term("overlap"), ` ${figure(mean(agreement.overlap))}, mean `, term("cosine"), ` ${figure(mean(agreement.cosine))}.`),
        histogram({ title: `${kind} over targets`, ...binned(values, 24), rules: [{ at: mean(values), name: "mean" }], xlabel: kind, ylabel: "targets" }),
        el("div", { class: "buttons" }, el("button", { type: "button", onclick: () => saveCsv("agreement.csv", rows()) }, "CSV"))))), lists);
  return { node, title: "Compare", mount: () => map?.mount() };
}
