"""Which influences are real: selection at a false-discovery rate, intervals, stability."""

from datamodels.significance.intervals import Intervals, intervals
from datamodels.significance.knockoffs import Selection, select
from datamodels.significance.stability import Stability, stability

__all__ = ["Intervals", "Selection", "Stability", "intervals", "select", "stability"]
