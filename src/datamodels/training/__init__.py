"""Campaigns of training runs, and the classic commands."""
