"""What an attribution is good for."""

from datamodels.applications.baselines import Features, last_layer, loss_scores, nearest_neighbours, random_scores
from datamodels.applications.clustering import cluster, embed
from datamodels.applications.debias import (
    Debiased,
    balanced_mask,
    d3m,
    debias,
    group_accuracies,
    group_alignment,
    pseudo_groups,
    worst_group_accuracy,
)
from datamodels.applications.duplicates import Leak, leaks
from datamodels.applications.neighbours import Neighbours, neighbours, overlap
from datamodels.applications.subgroups import Subgroups, subgroups, write_to
from datamodels.applications.validation import Validation, validate

__all__ = [
    "Debiased",
    "Features",
    "Leak",
    "Neighbours",
    "Subgroups",
    "Validation",
    "balanced_mask",
    "cluster",
    "d3m",
    "debias",
    "embed",
    "group_accuracies",
    "group_alignment",
    "last_layer",
    "leaks",
    "loss_scores",
    "nearest_neighbours",
    "neighbours",
    "overlap",
    "pseudo_groups",
    "random_scores",
    "subgroups",
    "validate",
    "worst_group_accuracy",
    "write_to",
]
