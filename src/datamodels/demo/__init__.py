"""The main job on real data, from training to a page, in one command."""

from datamodels.demo.job import run_demo

__all__ = ["run_demo"]
