"""Logits of several streams, for code that expects one."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any, TypedDict, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nr.network.checks import check_network
from nr.network.layers import Given, Network

if TYPE_CHECKING:
    from typing_extensions import Unpack


Labels = Tensor | Mapping[str, "Labels"] | Sequence["Labels"]


class Options(TypedDict, total=False):
    """Other arguments of torch's cross_entropy."""

    weight: Tensor | None
    ignore_index: int
    reduction: str
    label_smoothing: float


def loss(logits: Given, labels: Labels, **options: "Unpack[Options]") -> Tensor:
    """The sum over the streams of the cross-entropies of ``logits`` [B, S, classes, ...].

    ``labels``: as torch's cross_entropy takes them for logits [B, classes, ...]. Several heads, in
    a dict or tuple, are added up, without those that are None in this mode; each has the labels, or
    those at its place in a dict or tuple of labels. ``options``: of cross_entropy, such as
    label_smoothing. Raises ValueError for logits without streams, and for heads without labels.
    """
    if isinstance(logits, Tensor):
        if not isinstance(labels, Tensor):
            raise ValueError(f"labels: a {type(labels).__name__}, and logits of one head have one")
        streams = _with_streams(logits).unbind(1)
        return reduce(torch.add, (F.cross_entropy(s, labels, **options) for s in streams))
    heads = {name: head for name, head in _heads("logits", logits).items() if head is not None}
    shared = isinstance(labels, Tensor)
    own = dict.fromkeys(heads, labels) if shared else _heads("labels", labels)
    if missing := [name for name in heads if name not in own]:
        raise ValueError(
            f"labels: {[*own]} are there, none for the head {missing[0]!r}: give one tensor for all"
            f" heads, or one for each of {[*heads]}"
        )
    return reduce(torch.add, (loss(head, own[name], **options) for name, head in heads.items()))


@overload
def predict(logits: Tensor) -> Tensor: ...


@overload
def predict(logits: Given) -> Given: ...


def predict(logits: Given) -> Given:
    """The sum over the streams of ``logits``: [B, S, classes, ...] -> [B, classes, ...].

    For several heads, in a dict or tuple, the same for each; None stays None. Raises ValueError for
    logits without streams.
    """
    if isinstance(logits, Tensor):
        return _with_streams(logits).sum(dim=1)
    heads = _heads("logits", logits)
    sums = {name: head if head is None else predict(head) for name, head in heads.items()}
    return sums if isinstance(logits, Mapping) else tuple(sums.values())


def _with_streams(logits: Tensor) -> Tensor:
    if logits.ndim < 3:
        raise ValueError(
            f"logits: {list(logits.shape)} has no streams: an nr.Network gives [B, S, classes];"
            " what gives [B, classes] needs torch's cross_entropy alone"
        )
    return logits


def _heads(what: str, given: object) -> dict[Any, Any]:
    """Several outputs, or their labels, by name or place."""
    if not isinstance(given, Mapping | list | tuple):
        raise ValueError(f"{what}: a {type(given).__name__} is no tensor, dict or tuple of tensors")
    return dict(given) if isinstance(given, Mapping) else dict(enumerate(given))


class Joined(nn.Module):
    """A ``network`` whose output is [B, classes, ...], the sum over its streams.

    For several heads the same for each, in the network's dict or tuple. The network is shared, not
    copied: what trains, rebuilds or merges it changes this, too. Raises ValueError for what is no
    nr.Network.
    """

    def __init__(self, network: Network):
        super().__init__()
        check_network(network)
        self.network = network

    def forward(self, images: Tensor) -> Given:
        return predict(self.network(images))
