"""Runs and stores on the Hugging Face Hub: only new rows travel, and several people extend one run."""

from datamodels.hub.claims import Claim, claim
from datamodels.hub.pulling import pull
from datamodels.hub.pushing import push
from datamodels.hub.records import Exchanged
from datamodels.hub.remote import HubError

__all__ = ["Claim", "Exchanged", "HubError", "claim", "pull", "push"]
