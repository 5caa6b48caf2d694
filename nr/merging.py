"""Two streams -> one plain network with the same sum of logits, exactly (spec section 9).

The channels of both streams stand side by side: for each layer the survived ones, then the
rejuvenated ones. A concatenation is read source by source, so its columns are permuted.
"""

from itertools import accumulate

import torch
from torch import Tensor

from nr.checks import refuse_sharded
from nr.layers import Network
from nr.rebuilding import remade, swap
from nr.wiring import IMAGE, Layer, Wiring, image_channels, wiring

Places = dict[str, tuple[Tensor, ...]]  # source -> its channels' places when merged, by stream
State = dict[str, Tensor]


@torch.inference_mode(False)
@torch.no_grad()
def merge(model: Network) -> None:
    """Make of both streams of ``model``, in place, one plain stream with the sum of their logits.

    Weights are block-diagonal after "removed" and dense after "full"; γ, β and running statistics
    stand side by side; the stem's rows are stacked, as both streams read the same image; the
    classifier is [W_S W_R] and counts the shared bias twice. Equal up to rounding in eval and in
    train mode. The result is an ordinary network: it can be measured, penalised and rejuvenated
    again. A network of one stream is merged already and stays as it is.

    All or nothing: raises ValueError, and leaves the network as it was, for "attention" whose
    cross weights are not 0, since its gate is no convolution, and where only one stream's part of
    a parameter is frozen. An optimizer made before holds the
    old parameters: make a new one.
    """
    if model.streams == 1:
        return
    refuse_sharded(model)
    plan = wiring(model)
    _refuse_gates(plan)
    _refuse_half_frozen(model, plan)
    places = _places(plan, model.streams)
    merged = {layer.name: _merged_layer(layer, places) for layer in plan.layers}
    classifier = _merged_classifier(model, places, plan.head)
    widths = {layer.name: (sum(layer.unit.out_channels),) for layer in plan.layers}
    widths[IMAGE] = (image_channels(plan.layers),)
    units, head = remade(model, plan, widths, "plain")
    for name, (weight, norm) in merged.items():
        units[name].convs[0].weight.copy_(weight)
        units[name].norms[0].load_state_dict(norm)
    head.linears[0].load_state_dict(classifier)
    swap(model, plan.layers, units, head)


def _refuse_gates(plan: Wiring) -> None:
    """Raise ValueError where cross-attention is at work."""
    for layer in plan.layers:
        if layer.unit.form == "attention":
            for i, o, block in layer.unit.blocks():
                if i != o and block.any():
                    raise ValueError(
                        f"{layer.name}: cross weights of the attention mode are not 0, and"
                        " own + 2σ(own)·cross is no convolution: only networks rejuvenated with"
                        ' cross="removed" or "full" merge after training'
                    )


def _refuse_half_frozen(model: Network, plan: Wiring) -> None:
    """Raise ValueError where a parameter would have to be frozen in part."""
    lists = {f"{layer.name}.convs": layer.unit.convs for layer in plan.layers}
    lists |= {f"{layer.name}.norms": layer.unit.norms for layer in plan.layers}
    lists["classifier.linears"] = model.classifier.linears
    for name, (first, *others) in lists.items():
        flags = {n: parameter.requires_grad for n, parameter in first.named_parameters()}
        for n, parameter in (pair for module in others for pair in module.named_parameters()):
            if parameter.requires_grad != flags[n]:
                raise ValueError(
                    f"{name}: {n} is frozen in one stream and not in the other, which one parameter"
                    " for both cannot be: give both the same requires_grad"
                )


def _places(plan: Wiring, streams: int) -> Places:
    """Where the outputs of each layer stand in the merged one: a LongTensor [C] a stream.

    Both streams read the same image. The end of a residual branch is laid out like its shortcut.
    """
    places: Places = {IMAGE: (torch.arange(image_channels(plan.layers)),) * streams}
    for layer in plan.layers:
        widths = layer.unit.out_channels
        places[layer.name] = torch.arange(sum(widths)).split(widths)
    for branch, shortcut in plan.sums.values():
        if len(branch) == 1:
            places[branch[0]] = _columns(places, shortcut)
    for name, (branch, shortcut) in plan.sums.items():
        ends, starts = _columns(places, branch), _columns(places, shortcut)
        if not all(map(torch.equal, ends, starts)):
            raise ValueError(f"{name}: its branch ends in another concatenation than its shortcut")
    return places


def _columns(places: Places, sources: tuple[str, ...]) -> tuple[Tensor, ...]:
    """Where each stream's inputs from ``sources`` stand in the merged input: [C_in] a stream."""
    widths = [max(int(stream.max()) for stream in places[source]) + 1 for source in sources]
    starts = accumulate(widths, initial=0)
    moved = [
        [stream + start for stream in places[source]]
        for source, start in zip(sources, starts, strict=False)
    ]
    return tuple(map(torch.cat, zip(*moved, strict=True)))


def _merged_layer(layer: Layer, places: Places) -> tuple[Tensor, State]:
    """The weight [o, i, k, k] and the batch norm's state of a layer with one stream."""
    columns, rows = _columns(places, layer.sources), places[layer.name]
    if layer.unit.group:
        weight = _merged_groups(layer, rows, columns)
        return weight, _side_by_side(layer, rows)
    like = layer.unit.convs[0].weight
    shape = (sum(map(len, rows)), int(torch.cat(columns).max()) + 1, *like.shape[2:])
    weight = like.new_zeros(shape)
    for i, o, block in layer.unit.blocks():
        row, column = (index.to(like.device) for index in (rows[o], columns[i]))
        part = block.new_zeros(len(row), *shape[1:]).index_add_(1, column, block)
        weight.index_add_(0, row, part)
    return weight, _side_by_side(layer, rows)


def _merged_groups(layer: Layer, rows: tuple[Tensor, ...], columns: tuple[Tensor, ...]) -> Tensor:
    """The groups of both streams, which stand side by side in the input too: [o, i, k, k]."""
    for places in (rows, columns):
        found = torch.cat(places)
        if not torch.equal(found, torch.arange(len(found))):
            raise ValueError(
                f"{layer.name}: its groups would be torn apart in the layout of a concatenation"
                " that is added to it: put a 1x1 nr.ConvBN between them"
            )
    return torch.cat([block for _, _, block in layer.unit.blocks()])


def _side_by_side(layer: Layer, rows: tuple[Tensor, ...]) -> State:
    """The state of the norms of both streams, in the order of the merged channels."""
    order = torch.cat(rows).argsort()  # merged channel -> its place side by side
    norms = [norm.state_dict() for norm in layer.unit.norms]
    return {
        key: torch.cat([norm[key] for norm in norms])[order.to(value.device)]
        if value.ndim
        else value
        for key, value in norms[0].items()
    }


def _merged_classifier(model: Network, places: Places, head: tuple[str, ...]) -> State:
    """[W_S W_R] in the order of the merged features, and the bias of every stream."""
    linears, columns = model.classifier.linears, _columns(places, head)
    like = linears[0].weight
    weight = like.new_zeros(len(like), int(torch.cat(columns).max()) + 1)  # [classes, i]
    for linear, column in zip(linears, columns, strict=True):
        weight.index_add_(1, column.to(like.device), linear.weight)
    bias = linears[0].bias
    return {"weight": weight} | ({} if bias is None else {"bias": bias * len(linears)})
