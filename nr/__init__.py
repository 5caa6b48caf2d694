"""Neural Rejuvenation: measure utilization, penalise scales, rebuild at the same budget."""

from nr.conversion import convert
from nr.counting import count_macs, count_params
from nr.files import FileError, load, save
from nr.layers import Chain, Classifier, Concat, Network, Residual
from nr.merging import merge
from nr.rejuvenation import rejuvenate
from nr.rescaling import rescale
from nr.sparsity import SGD, grow_sparsity, penalise
from nr.structure import build, structure
from nr.units import Conv, ConvBN
from nr.utilization import utilization

__version__ = "0.1.0"
__all__ = [
    "SGD",
    "Chain",
    "Classifier",
    "Concat",
    "Conv",
    "ConvBN",
    "FileError",
    "Network",
    "Residual",
    "build",
    "convert",
    "count_macs",
    "count_params",
    "grow_sparsity",
    "load",
    "merge",
    "penalise",
    "rejuvenate",
    "rescale",
    "save",
    "structure",
    "utilization",
]
