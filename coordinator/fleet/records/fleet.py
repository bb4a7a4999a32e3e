"""What the registry knows of nodes, candidates and campaigns."""

from coordinator.fleet.records.campaigns import Campaigns
from coordinator.fleet.records.candidates import Candidates
from coordinator.fleet.records.nodes import Nodes
from coordinator.registry.registry import Registry


class Fleet:
    """Nodes, candidates and campaigns in the registry's database.

    Args:
        registry: Opens the transactions.
    """

    def __init__(self, registry: Registry) -> None:
        self.nodes = Nodes(registry)
        self.candidates = Candidates(registry)
        self.campaigns = Campaigns(registry)
