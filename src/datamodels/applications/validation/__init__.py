"""Checks of hidden subgroups, so that nobody publishes noise."""

from datamodels.applications.validation.confounding import Confounders, confounding
from datamodels.applications.validation.markers import Markers, markers
from datamodels.applications.validation.permutation import PermutationNull, permutation_null
from datamodels.applications.validation.stability import ClusterStability, cluster_stability
from datamodels.applications.validation.transfer import Transfer, transfer
from datamodels.applications.validation.validate import Validation, Verdict, validate

__all__ = [
    "ClusterStability",
    "Confounders",
    "Markers",
    "PermutationNull",
    "Transfer",
    "Validation",
    "Verdict",
    "cluster_stability",
    "confounding",
    "markers",
    "permutation_null",
    "transfer",
    "validate",
]
