"""One page about a run: a map of targets, what drives each, what each training example does, and what if. Served, or as a file."""

from datamodels.explorer.assemble import write_run
from datamodels.explorer.export import export
from datamodels.explorer.gather import gather
from datamodels.explorer.report import report_attribution, report_run
from datamodels.explorer.server import app, serve

__all__ = ["app", "export", "gather", "report_attribution", "report_run", "serve", "write_run"]
