"""Names for the objects of torch-pruning, which has no types."""

from __future__ import annotations

from typing import Any, TypeAlias

#: A group of layers that must lose the same channels together: a torch_pruning.dependency.Group.
PruningGroup: TypeAlias = Any

#: The dependency graph of a network: a torch_pruning.DependencyGraph.
PruningGraph: TypeAlias = Any
