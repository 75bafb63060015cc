// The key figures of a run: is it right, on how many models does it rest, and does it find what was hidden?

import {count, el, figure} from "./dom.js"
import {link} from "./state.js"
import {term} from "./words.js"

/** Adjusted Rand index and mutual information of the clusters, against the same pipeline on raw features. */
export function groupScores(groups) {
  if (!groups || !Number.isFinite(groups.ari)) return null;
  const given = Number.isFinite(groups.ari_baseline), row = (name, ari, nmi) => el("tr", null, el("th", { scope: "row" }, name), el("td", null, el("strong", null, figure(ari, true))), el("td", null, figure(nmi, true)));
  return el("div", { class: "scroll" }, el("table", { class: "wide" },
    el("thead", null, el("tr", null, el("th", null, `clusters against ${groups.label}`), el("th", null, term("ARI", "adjusted Rand index")), el("th", null, term("NMI", "mutual information")))),
    el("tbody", null, row(groups.given ?? `of ${groups.attribution} datamodels`, groups.ari, groups.nmi), given && row("of raw features", groups.ari_baseline, groups.nmi_baseline))));
}

/** One line above the map: the score of an attribution, what it rests on, and the subgroups. */
export function keyFigures(source, name) {
  const { about } = source, { groups } = about, lds = about.attributions.find((a) => a.name === name)?.lds;
  const part = (view, ...content) => el("span", { class: "key" }, ...content, " ", link({ view }, { class: "more", "aria-label": `more in ${view}` }, "›"));
  return el("p", { class: "keys" },
    lds && part("about", term("LDS"), " ", el("strong", null, figure(lds.value, true)), " (", term("interval", `${figure(lds.low, true)} to ${figure(lds.high, true)}`),
      Number.isFinite(lds.ceiling) && ["; ", term("ceiling"), ` ${figure(lds.ceiling, true)}`], ")"),
    about.n_models && part("about", el("strong", null, about.n_models.toLocaleString("en")), " models"),
    el("span", { class: "key" }, `${count(about.n_targets, "target")}, ${count(about.n_train, "training example")}`),
    groups && part("groups", Number.isFinite(groups.ari)
      ? [groups.given ? `${groups.given}, against ${groups.label}: ` : `hidden ${groups.label} found: `, term("ARI"), " ", el("strong", null, figure(groups.ari, true)),
        Number.isFinite(groups.ari_baseline) && ` (raw features ${figure(groups.ari_baseline, true)})`, ", ", term("NMI"), " ", el("strong", null, figure(groups.nmi, true)),
        Number.isFinite(groups.nmi_baseline) && ` (${figure(groups.nmi_baseline, true)})`]
      : `${count(groups.n_clusters, "subgroup")}`));
}
