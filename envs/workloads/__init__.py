"""Training problems by name: what a controller is trained and tested on.

Importing this package registers the built-in workloads. None of them loads data, or imports
scikit-learn, before it is asked for.
"""

from rlrate.envs.workload import Workload, check_workload
from rlrate.envs.workloads import (
    attention,
    caution,
    conditioned,
    deep,
    distributions,
    heldout,
    images,
    moving,
    noisy,
    ordinary,
    plateau,
    quadratic,
    relations,
    restricted,
    routing,
    scarce,
    selection,
    sequences,
    structured,
    tabular,
)
from rlrate.envs.workloads.quadratic import QuadraticWorkload
from rlrate.envs.workloads.registry import (
    Factory,
    Kind,
    WorkloadEntry,
    WorkloadSpec,
    get_workload,
    make_workload,
    register_workload,
    workload_entries,
    workload_names,
)

__all__ = [
    "Factory",
    "Kind",
    "QuadraticWorkload",
    "Workload",
    "WorkloadEntry",
    "WorkloadSpec",
    "attention",
    "caution",
    "check_workload",
    "conditioned",
    "deep",
    "distributions",
    "get_workload",
    "heldout",
    "images",
    "make_workload",
    "moving",
    "noisy",
    "ordinary",
    "plateau",
    "quadratic",
    "register_workload",
    "relations",
    "restricted",
    "routing",
    "scarce",
    "selection",
    "sequences",
    "structured",
    "tabular",
    "workload_entries",
    "workload_names",
]
