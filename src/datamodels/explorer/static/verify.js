// Verify a what-if by retraining: only a served page can, and a job goes on when the page is left.

import {count, el, figure, say, saveCsv} from "./dom.js"
import {note, state} from "./state.js"
import {dots} from "./chart.js"
import {term} from "./words.js"

const EVERY = 700;  // milliseconds between questions
const DRAWN = 1500;

function resultOf(result) {
  const { targets, predicted, actual, low, high, predicted_low: left, predicted_high: right, chosen, seen } = result, step = Math.max(1, Math.ceil(targets.length / DRAWN));
  const some = (values) => values?.filter((_, k) => k % step === 0);
  const inside = low ? low.filter((value, k) => value <= predicted[k] && predicted[k] <= high[k]).length : null;
  const rows = () => [["target", "predicted", "predicted_low", "predicted_high", "actual", "low", "high"],
    ...targets.map((i, k) => [i, predicted[k], left?.[k], right?.[k], actual[k], low?.[k], high?.[k]])];
  const { agreement } = result, parts = typeof agreement === "number" ? { spearman: agreement } : agreement ?? {};
  const span = Number.isFinite(parts.low) ? ` (95 % interval ${figure(parts.low)} to ${figure(parts.high)})` : "";
  return [
    el("p", { id: "verdict" }, "Predicted and actual changes have an ", term("agreement"), ` of ${figure(parts.spearman)}${span} over ${count(targets.length, "target")}`,
      Number.isFinite(parts.pearson) && `, a linear correlation of ${figure(parts.pearson)}`,
      inside === null ? "." : `; ${Math.round((100 * inside) / targets.length)} % of predictions lie inside the 95 % interval of the retrained change.`),
    chosen !== undefined && el("p", { class: "quiet", id: "left-out" }, `Targets are judged on models that did not see them; left out are ${count(chosen, "target")} among the chosen examples${seen ? ` and ${seen.toLocaleString("en")} that nearly all models saw` : ""}.`),
    dots({ title: "Predicted against actual change", predicted: some(predicted), actual: some(actual), low: some(low), high: some(high), left: some(left), right: some(right), xlabel: "predicted change", ylabel: "actual change" }),
    el("div", { class: "buttons" }, el("button", { type: "button", onclick: () => saveCsv("verified.csv", rows()) }, "CSV")),
  ];
}

/** Asks until the job has ended or the panel has left the page. */
async function followed(source, id, place) {
  const bar = el("progress", { max: 1, value: 0, "aria-label": "retraining" }), words = el("span", { class: "quiet" }, "starting");
  place.replaceChildren(el("p", { class: "line" }, bar, words));
  while (true) {
    let found;
    try {
      found = await source.verification(id);
    } catch (error) {
      found = { state: "failed", message: error.message };
    }
    if (found.state === "failed") {
      place.replaceChildren(el("p", { class: "bad", role: "alert" }, `It did not work: ${found.message ?? "no reason given"}`));
      return;
    }
    if (found.state === "done") {
      place.replaceChildren(...resultOf(found.result).filter(Boolean));
      say("retraining is done");
      return;
    }
    bar.max = found.total || 1;
    bar.value = found.done;
    words.textContent = `${found.done} of ${count(found.total, "model")}${found.message ? `: ${found.message}` : ""}`;
    await new Promise((resume) => setTimeout(resume, EVERY));
    if (!place.isConnected) return;
  }
}

export function verifyPanel(source) {
  const { about } = source, place = el("div", null), frame = (...content) => el("section", { class: "panel", id: "verify" }, el("h2", null, "Verify by retraining"), ...content);
  if (!source.served) {
    return frame(el("p", null, "Retraining needs the library and the run's data, which a file does not hold. Serve the run and open the same address there:"),
      el("p", null, el("code", null, about.command ?? "datamodels explore RUN")));
  }
  if (!about.can_verify) return frame(el("p", { class: "quiet" }, "This run does not say how its models are trained, so nothing can be trained again."));
  const runs = el("input", { type: "number", name: "runs", min: 2, max: 1000, value: 20, required: true });
  const start = async (event) => {
    event.preventDefault();
    try {
      const id = await source.verify(state.attribution, state.whatif, state.add, Number(runs.value));
      note({ job: String(id) });
      await followed(source, id, place);
    } catch (error) {
      place.replaceChildren(el("p", { class: "bad", role: "alert" }, error.message));
    }
  };
  if (state.job) followed(source, state.job, place);
  const how = about.targets.train_columns
    ? "Trains models on drawn subsets, each once with all of the chosen examples and once with none of them, and compares their outputs at the targets that they did not see."
    : "Trains models on all training examples and on all but the chosen ones, and compares their outputs.";
  return frame(el("p", { class: "quiet" }, how),
    el("form", { class: "line", onsubmit: start }, el("label", null, "runs ", runs), el("button", { type: "submit", class: "main" }, "Verify")), place);
}
