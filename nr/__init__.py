"""Neural Rejuvenation: measure utilization, penalise scales, rebuild at the same budget."""

from nr.conversion.converting import convert, obstacles
from nr.files.archive import FileError, load, save
from nr.files.building import build
from nr.files.structure import structure
from nr.given.giving import to_torch
from nr.given.outputs import Joined, loss, predict
from nr.method.carrying import carry
from nr.method.latency import Latency
from nr.method.merging import merge
from nr.method.planning import Plan, plan
from nr.method.rejuvenation import rejuvenate
from nr.method.rescaling import rescale
from nr.method.searching import Search
from nr.method.sparsity import SGD, grow_sparsity, penalise
from nr.method.utilization import utilization
from nr.network.convolutions import Conv, ConvBN
from nr.network.counting import count_macs, count_params
from nr.network.graph import Graph, Node
from nr.network.holding import hold
from nr.network.layers import Chain, Classifier, Concat, Network, Residual

__version__ = "0.1.0"
__all__ = [
    "SGD",
    "Chain",
    "Classifier",
    "Concat",
    "Conv",
    "ConvBN",
    "FileError",
    "Graph",
    "Joined",
    "Latency",
    "Network",
    "Node",
    "Plan",
    "Residual",
    "Search",
    "build",
    "carry",
    "convert",
    "count_macs",
    "count_params",
    "grow_sparsity",
    "hold",
    "load",
    "loss",
    "merge",
    "obstacles",
    "penalise",
    "plan",
    "predict",
    "rejuvenate",
    "rescale",
    "save",
    "structure",
    "to_torch",
    "utilization",
]
