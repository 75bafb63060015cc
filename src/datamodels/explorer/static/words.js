// The terms of the page, explained where they stand: hover or focus shows the sentence.

import {el} from "./dom.js"

const MEANINGS = {
  "target": "An example whose predictions are explained: one output was recorded for it from every model.",
  "weight": "How much the output changes, in output units, when this training example joins the training set.",
  "margin": "The correct class's score minus the best other one's: above zero the prediction is right.",
  "output": "What was recorded of every model at this target, such as the margin of the correct class.",
  "LDS": "Linear datamodelling score: the rank correlation between predicted and true outputs over models that the fit has not used. 1 is perfect.",
  "ceiling": "The best LDS that is possible against single noisy training runs, from repeated runs of the same subsets.",
  "interval": "95 % interval: by resampling the models, how far the number could be from the one shown.",
  "FDR": "Selected at the false-discovery level of the run: among marked examples, the expected share of false ones is held below it.",
  "λ": "The strength of the lasso's penalty, chosen per target on models that were held out. Larger keeps fewer training examples.",
  "R²": "Share of the output's variance over held-out models that the datamodel explains.",
  "duality gap": "A certificate that the fit has converged: 0 is exact, 0.00001 is as good as exact.",
  "similarity": "Cosine between two targets' weights: 1 means that they rest on the same training examples.",
  "overlap": "Share of the 20 strongest training examples that the two attributions have in common.",
  "cosine": "Cosine between the two weight vectors of a target: 1 agrees in everything, 0 in nothing.",
  "stability": "How alike a cluster comes out when the targets are resampled (mean Jaccard index): above 0.75 is stable, 1 is always the same. Refits on other models are a harder test: datamodels validate.",
  "confounder": "A column that differs inside the cluster from outside it, and may explain it.",
  "ARI": "Adjusted Rand index of clusters and labels: 1 is the same grouping, 0 is chance. Models never saw these labels.",
  "NMI": "Normalised mutual information of clusters and labels: 1 is the same grouping, 0 is none in common.",
  "Pearson": "Linear correlation of predicted and true outputs over models that the fit has not used, averaged over targets.",
  "R² on unseen models": "1 minus squared error over variance, on models that the fit has not used, averaged over targets.",
  "agreement": "Rank correlation between predicted and actual changes.",
};

export function term(name, shown = name) {
  const text = MEANINGS[name];
  return el("span", { class: "term", tabindex: "0", role: "note", "aria-label": `${shown}: ${text}`, "data-meaning": text }, shown);
}
