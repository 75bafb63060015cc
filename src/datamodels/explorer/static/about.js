// What was run, whether it is right, and what can be taken away.

import {el, figure, saveCsv} from "./dom.js"
import {targetRows} from "./map.js"
import {binned, histogram, lines} from "./chart.js"
import {groupScores} from "./figures.js"
import {state} from "./state.js"
import {term} from "./words.js"

function scores({ attributions, train }) {
  const scored = attributions.some((a) => a.lds), wholly = attributions.some((a) => Number.isFinite(a.lds?.models));
  return el("div", { class: "scroll" }, el("table", { class: "wide" },
    el("thead", null, el("tr", null, el("th", null, "attribution"), el("th", null, "estimator"), el("th", null, "units"), scored && [el("th", null, term("LDS")), el("th", null, term("interval")), el("th", null, term("ceiling"))], wholly && [el("th", null, term("Pearson")), el("th", null, term("R² on unseen models", "R²")), el("th", null, "unseen models")], el("th", null, "nonzero weights, median"))),
    el("tbody", null, attributions.map((a) => el("tr", null, el("th", { scope: "row" }, a.name), el("td", null, a.estimator), el("td", null, a.units),
      scored && [el("td", null, el("strong", null, figure(a.lds?.value))), el("td", null, a.lds ? `${figure(a.lds.low)} to ${figure(a.lds.high)}` : "–"), el("td", null, figure(a.lds?.ceiling))],
      wholly && [el("td", null, figure(a.lds?.pearson)), el("td", null, figure(a.lds?.r2)), el("td", null, figure(a.lds?.models))],
      el("td", null, figure(a.n_nonzero_median), a.cut ? ` (the ${a.cut} strongest are ${!a.steps ? "kept" : train.together && a.from_models ? "exact" : "listed"} here)` : ""))))));
}

/** LDS against models, and what more of them would give. */
function growth({ sizes, lds, low, high, ceiling, ahead }) {
  const series = [{ x: sizes, y: lds, low, high }, ...(ahead ? [{ x: ahead.sizes, y: ahead.lds, estimated: true }] : [])], last = sizes.at(-1);
  const twice = ahead && ahead.sizes.findIndex((size) => size >= 1.99 * last);
  return el("div", null,
    lines({ title: "LDS against models", series, xlabel: "models that are fitted", ylabel: "LDS", log: sizes.length > 1, zero: true, level: ceiling ? { at: ceiling, name: "ceiling" } : null }),
    ahead && el("p", { class: "quiet" }, `With ${last.toLocaleString("en")} models it reaches ${figure(lds.at(-1))}. Twice as many would reach about ${figure(ahead.lds[twice])}, without limit about ${figure(ahead.limit)}: estimates (dashed), which assume that 1/LDS² falls in proportion to 1/models.`));
}

/** LDS of single targets, of the shown attribution. */
async function spread(source) {
  const facts = source.columnFacts("targets", `LDS, ${state.attribution}`);
  if (!facts) return null;
  return histogram({ title: facts.name, ...binned(await source.column("targets", facts.name), 30), xlabel: `LDS of single targets, ${state.attribution}`, ylabel: "targets" });
}

export async function aboutView(source) {
  const { about } = source, { curve } = about, found = groupScores(about.groups), single = await spread(source);
  const everyone = Array.from({ length: about.n_targets }, (_, i) => i);
  const node = el("article", null, el("header", { class: "heading" }, el("h1", { tabindex: "-1" }, "About this run")),
    el("section", { class: "panel" }, el("h2", null, "Is it right?"),
      el("p", { class: "quiet" }, "An attribution is right when it predicts models that it has never seen; the ", term("LDS"), " measures that."), scores(about),
      el("div", { class: "charts" }, curve && growth(curve), single),
      found && [el("h2", null, "Does it find what was hidden?"), el("p", { class: "quiet" }, `No model ever saw the ${about.groups.label}. ${about.groups.given ? `The given groups (${about.groups.given})` : "Clusters of targets that rest on the same training examples"} agree with it:`), found]),
    el("div", { class: "columns" },
      el("section", { class: "panel" }, el("h2", null, "What was run"), el("table", { class: "facts" }, el("tbody", null,
        [["targets", about.n_targets.toLocaleString("en")], ["training examples", about.n_train.toLocaleString("en")], ...about.facts, ["made", about.created?.slice(0, 16).replace("T", " ")]]
          .filter(([, value]) => value).map(([name, value]) => el("tr", null, el("th", { scope: "row" }, name), el("td", null, String(value))))))),
      el("section", { class: "panel" },
        about.commands?.length > 0 && [el("h2", null, "To make it again"), el("pre", { tabindex: "0" }, about.commands.join("\n"))],
        el("h2", null, "To take away"),
        el("div", { class: "buttons" }, el("button", { type: "button", onclick: async () => saveCsv("targets.csv", await targetRows(source, everyone)) }, "Targets, CSV"),
          source.served && ["targets", "train"].map((side) => el("a", { class: "button", href: `api/table/${side}.parquet`, download: true }, `${side === "train" ? "Training examples" : "Targets"}, Parquet`)),
          source.served && about.maps.length > 0 && el("a", { class: "button", href: "api/atlas.parquet", download: true }, "Parquet for Embedding Atlas")),
        el("h2", null, "Keys"), el("table", { class: "facts" }, el("tbody", null, [["/", "search"], ["← ↑ → ↓", "on the map: the nearest point in that direction"], ["Enter", "open the chosen target"], ["Esc", "leave the search, or go back to the map"]]
          .map(([key, what]) => el("tr", null, el("th", { scope: "row" }, el("kbd", null, key)), el("td", null, what))))))));
  return { node, title: "About" };
}
