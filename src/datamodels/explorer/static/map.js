// The map view: colour, filter, choose, select; what is chosen and selected stands beside it.

import {count, el, figure, largest, say, saveCsv, shareBar} from "./dom.js"
import {go, note, state} from "./state.js"
import {keyFigures} from "./figures.js"
import {legendOf, painted, visible} from "./paint.js"
import {hoverCard, large, nounOf, tileOf, wording} from "./cards.js"
import {PointMap} from "./scatter.js"
import {term} from "./words.js"

const ASKED = 100;  // targets of a selection whose helpers are gathered
const TAKEN = 20;

export function choice(name, options, value, change) {
  return el("label", { class: "choice" }, name, el("select", { onchange: (event) => change(event.target.value) },
    options.map(([key, shown = key]) => el("option", { value: key, selected: key === value }, shown))));
}

/** The card of the chosen target beside the map. */
async function chosenPanel(source, words, i) {
  if (i === null) {
    return [el("h2", null, "No target chosen"), el("p", { class: "quiet" }, "Each point is a ", term("target"), "; near points rest on the same training examples. Click one, or focus the map and use the arrow keys.")];
  }
  const details = await source.details("targets", i), facts = source.columnFacts("targets", state.colour);
  const value = facts && (await source.column("targets", facts.name))[i];
  return [
    el("h2", null, words.id(i) === String(i) ? `Target ${i}` : words.id(i)),
    large(source, "targets", i, { text: details.text, row: details.row?.slice(0, 6) }),
    el("p", null, [words.label(i), details.outputs && `mean output ${figure(details.outputs.mean)}`,
      facts && facts.kind === "number" && `${facts.name} ${figure(value)}`].filter(Boolean).join(" · ")),
    el("p", null, el("button", { type: "button", class: "main", onclick: () => go({ view: "target", index: i }) }, "Open this target")),
  ];
}

/** The training examples that help the selected targets most: their positive weights, added up. */
async function topHelpers(source, selection) {
  const step = Math.max(1, Math.ceil(selection.length / ASKED)), total = new Float64Array(source.about.n_train);
  const some = selection.filter((_, k) => k % step === 0);
  for (const one of await Promise.all(some.map((i) => source.weights(state.attribution, "targets", i)))) {
    one.indices.forEach((j, k) => (total[j] += Math.max(0, one.values[k])));
  }
  return largest(total, TAKEN).filter((j) => total[j] > 0);
}

export async function targetRows(source, indices) {
  const columns = source.about.targets.columns, words = await wording(source, "targets");
  const arrays = await Promise.all(columns.map((facts) => source.column("targets", facts.name)));
  const cell = (k, i) => (columns[k].kind === "category" ? columns[k].categories[arrays[k][i]] : arrays[k][i]);
  return [["index", "id", ...columns.map((facts) => facts.name)], ...indices.map((i) => [i, words.id(i), ...columns.map((_, k) => cell(k, i))])];
}

async function selectionPanel(source, words, selection, clear) {
  if (!selection.length) return [];
  const counts = new Map();
  for (const i of selection) counts.set(words.label(i), (counts.get(words.label(i)) ?? 0) + 1);
  const parts = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 8);
  return [
    el("h2", null, `${count(selection.length, "target")} selected`),
    counts.size > 1 || parts[0][0] ? el("dl", { class: "shares" }, parts.map(([label, size]) => [
      el("dt", null, label || "no label"), el("dd", null, shareBar(size / selection.length, label), ` ${size}`)])) : null,
    el("div", { class: "tiles" }, selection.slice(0, 12).map((i) => tileOf(source, "targets", words, i))),
    el("div", { class: "buttons" },
      el("button", { type: "button", class: "main", onclick: async () => go({ view: "whatif", whatif: await topHelpers(source, selection), add: false }) },
        `What if their ${TAKEN} top helpers are removed?`),
      el("button", { type: "button", onclick: async () => saveCsv("selection.csv", await targetRows(source, selection)) }, "Export CSV"),
      el("button", { type: "button", onclick: clear }, "Clear")),
  ];
}

export async function mapView(source) {
  const { about } = source;
  if (!about.maps.length) return { node: el("p", { class: "quiet" }, "This run has no map.") };
  const [points, words] = await Promise.all([source.map(state.map), wording(source, "targets")]);
  const facts = source.columnFacts("targets", state.colour), values = facts && (await source.column("targets", facts.name));
  const paint = facts ? painted(facts, values) : { colours: new Array(about.n_targets).fill("#4e79a7"), legend: null };
  const chosen = el("section", { class: "panel", "aria-label": "chosen target" }), selected = el("section", { class: "panel", "aria-label": "selection" });
  const legend = el("div", { class: "legend-box" });
  const fill = async (panel, made) => {
    const content = await made;
    panel.replaceChildren(...content.filter(Boolean));
    panel.hidden = !content.length;
  };
  let wanted = 0;
  const choose = async (i) => {
    note({ target: i });
    const mine = ++wanted, content = await chosenPanel(source, words, i);
    if (mine === wanted) await fill(chosen, content);
  };
  const select = async (list) => {
    note({ selection: list });
    say(`${count(list.length, "target")} selected`);
    await map.repaint({ selection: list });
    await fill(selected, selectionPanel(source, words, list, () => select([])));
  };
  const drawLegend = () => {
    if (!paint.legend) return;
    legend.replaceChildren(legendOf(facts.name, paint.legend, state.hidden, async (code, event) => {
      const at = paint.legend.items.findIndex((item) => item.code + 1 === code);
      const others = paint.legend.items.map((item) => item.code + 1).filter((other) => other !== code);
      const alone = others.every((other) => state.hidden.includes(other));
      const hidden = event.altKey ? (alone ? [] : others) : state.hidden.includes(code) ? state.hidden.filter((other) => other !== code) : [...state.hidden, code];
      note({ hidden });
      drawLegend();
      legend.querySelectorAll("button")[at]?.focus();
      await map.repaint({ shown: visible(facts, values, hidden) });
    }), facts.kind === "category" ? el("small", { class: "quiet" }, "Click hides or shows; Alt-click shows one alone.") : "");
  };
  const map = new PointMap({
    points, colours: paint.colours, legend: paint.legend, colourName: facts?.name, shown: facts ? visible(facts, values, state.hidden) : null,
    name: `Map of ${count(about.n_targets, "target")}, coloured by ${facts?.name ?? "nothing"}`,
    label: (i) => `${nounOf("targets", i)}${words.label(i) ? `, ${words.label(i)}` : ""}${facts?.kind === "number" ? `, ${facts.name} ${figure(values[i])}` : ""}`,
    card: (i) => hoverCard(source, "targets", words, i, facts?.kind === "number" && `${facts.name} ${figure(values[i])}`),
    chosen: state.target, selection: state.selection, choose, select, open: (i) => go({ view: "target", index: i }),
  });
  drawLegend();
  await Promise.all([fill(chosen, chosenPanel(source, words, state.target)), fill(selected, selectionPanel(source, words, state.selection, () => select([])))]);
  const of = about.maps.find((m) => m.name === state.map)?.attribution;
  const node = el("article", null, keyFigures(source, state.attribution), el("div", { class: "split" },
    el("section", { class: "panel" },
      el("div", { class: "choices" },
        choice("Colour", about.targets.columns.map((c) => [c.name]), state.colour, (colour) => go({ colour, hidden: [] })),
        about.maps.length > 1 && choice("Map", about.maps.map((m) => [m.name]), state.map, (name) => go({ map: name }))),
      map.node, legend,
      el("p", { class: "quiet" }, facts?.description ? `${facts.name}: ${facts.description}. ` : "", of ? `Positions come from the ${of} attribution.` : "")),
    el("div", { class: "side" }, chosen, selected)));
  return { node, title: "Map", mount: () => map.mount() };
}
