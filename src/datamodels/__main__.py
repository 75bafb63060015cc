"""``python -m datamodels`` is the ``datamodels`` command."""

from datamodels.cli import main

main()
