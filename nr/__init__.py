"""Neural Rejuvenation: measure utilization, penalise scales, rebuild at the same budget."""

from nr.layers import Network
from nr.merging import merge
from nr.rejuvenation import rejuvenate
from nr.rescaling import rescale
from nr.sparsity import SGD, grow_sparsity, penalise
from nr.structure import count_macs, count_params, restore, structure
from nr.utilization import utilization

__all__ = [
    "SGD",
    "Network",
    "count_macs",
    "count_params",
    "grow_sparsity",
    "load",
    "merge",
    "penalise",
    "rejuvenate",
    "rescale",
    "restore",
    "structure",
    "utilization",
]


def load(path: str) -> Network:
    """Build the network of a checkpoint, with its weights, on the CPU and in eval mode.

    Raises CheckpointError, naming the file, for anything that is no checkpoint.
    """
    from utils.training.checkpoint import (
        load_network,
    )  # here, so that nr alone needs neither utils nor models

    return load_network(path)
