"""Regression of outputs on subset membership, and the classic commands."""
