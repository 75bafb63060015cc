// Subgroups: clusters of targets that rest on the same training examples, in a table and in words.

import {count, el, figure, saveCsv, shareBar} from "./dom.js"
import {go, link, state} from "./state.js"
import {categoryColour} from "./paint.js"
import {thumb, tileOf, wording} from "./cards.js"
import {term} from "./words.js"

/** A stacked bar of the labels in a cluster. */
function composition(parts, size, codeOf) {
  const words = parts.map(([label, k]) => `${label}: ${k}`).join(", ");
  return el("div", null,
    el("span", { class: "stack", role: "img", "aria-label": words, title: words }, parts.map(([label, k]) => el("i", { style: { width: `${(100 * k) / size}%`, background: categoryColour(codeOf(label)) } }))),
    el("small", null, parts.slice(0, 3).map(([label, k]) => `${label}: ${Math.round((100 * k) / size)} %`).join(" · ")));
}

/** A button that shows one cluster alone on the map. */
function onMap(source, groups, row) {
  const facts = source.columnFacts("targets", groups.column), code = facts.categories.indexOf(String(row.cluster));
  const hidden = [0, ...facts.categories.map((_, k) => k + 1)].filter((k) => k !== code + 1);
  return el("button", { type: "button", class: "plain", onclick: () => go({ view: "map", colour: facts.name, hidden }) }, "on the map");
}

export async function groupsView(source) {
  const [groups, words] = await Promise.all([source.groups(), wording(source, "targets")]);
  const title = el("header", { class: "heading" }, el("h1", { tabindex: "-1" }, "Subgroups"));
  if (!groups) return { node: el("article", null, title, el("p", { class: "quiet" }, "This run has no subgroups.")), title: "Subgroups" };
  const categories = source.labelColumn("targets")?.categories ?? [], other = [...new Set(groups.rows.flatMap((row) => row.composition.map(([label]) => label)))];
  const codeOf = (label) => (categories.includes(label) ? categories.indexOf(label) : other.indexOf(label));
  const sample = (row) => el("div", { class: "tiles" }, row.representatives.slice(0, source.about.sprites?.targets ? 6 : 3).map((i) => (
    thumb(source, "targets", i, 36) ? link({ view: "target", index: i }, { class: "mini", "aria-label": `target ${i} ${words.label(i)}`, title: `target ${i} ${words.label(i)}` },
      thumb(source, "targets", i, 36)) : tileOf(source, "targets", words, i))));
  const cell = (name, ...content) => el("td", { "data-name": name }, ...content);
  const labelled = groups.rows.some((row) => row.composition.length), stable = groups.rows.some((row) => Number.isFinite(row.stability));
  const confounded = groups.rows.some((row) => row.confounders.length);
  const table = el("table", { class: "groups" },
    el("thead", null, el("tr", null, el("th", null, groups.given ? "group" : "cluster"), el("th", null, "targets"), labelled && el("th", null, "composition"),
      stable && el("th", null, term("stability")), confounded && el("th", null, term("confounder", "confounders")), el("th", null, "representative members"))),
    el("tbody", null, groups.rows.map((row) => el("tr", null,
      el("th", { scope: "row" }, String(row.cluster), " ", onMap(source, groups, row)), cell("targets", row.size.toLocaleString("en")),
      labelled && cell("composition", composition(row.composition, row.size, codeOf)),
      stable && cell("stability", Number.isFinite(row.stability) ? [shareBar(row.stability, "stability"), ` ${figure(row.stability)}`] : "–"),
      confounded && cell("confounders", row.confounders.slice(0, 4).map((c) => el("span", { class: "chip", title: `p = ${figure(c.p)}` }, `${c.name} ${figure(c.effect)}`))),
      cell("members", sample(row))))));
  const rows = () => [["cluster", "size", "stability", "composition", "representatives", "confounders"], ...groups.rows.map((row) => [
    row.cluster, row.size, row.stability, row.composition.map(([label, k]) => `${label}: ${k}`).join("; "), row.representatives.join(" "),
    row.confounders.map((c) => `${c.name} (effect ${c.effect}, p ${c.p})`).join("; ")])];
  const node = el("article", null, title,
    el("section", { class: "panel" },
      el("p", null, groups.given ? `${count(groups.n_clusters, "group")} of targets: ${groups.given}. Representative members are nearest to their group's mean datamodel (${groups.attribution}).`
        : `${count(groups.n_clusters, "cluster")} of targets by their weights (${[groups.method, groups.attribution ?? state.attribution].filter(Boolean).join(", ")}).`),
      groups.statements?.length > 0 && el("ul", { class: "statements" }, groups.statements.map((text) => el("li", null, text))),
      table, el("div", { class: "buttons" }, el("button", { type: "button", onclick: () => saveCsv("subgroups.csv", rows()) }, "CSV"))));
  return { node, title: "Subgroups" };
}
