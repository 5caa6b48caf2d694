"""What a search's last network would become in each form and by each budget, before it does."""

import copy
from argparse import Namespace
from itertools import product
from pathlib import Path

import nr
from nr.method.costs import LATENCY, WEIGHTS, Budgeted, name_of
from nr.network.units import CROSS, PRUNED
from utils.errors import InputError
from utils.report.tables import markdown
from utils.training import checkpoint
from utils.training.phases import TABLE

USUAL_MULTIPLE = 8  # channels; planned beside 1 where a run has no --nr-round-to
HEADER = "budget|--nr-round-to|--nr-cross|r|parameters|multiply-adds|of the budget|flags of the run"


def plans(folder: Path) -> str:
    """A table of the forms and one of the layers. Raises InputError where there is no search."""
    path, network, args = searched(folder)
    size, multiple = args.image_size, args.nr_round_to
    multiples = (1, multiple if multiple > 1 else USUAL_MULTIPLE)
    budgets: list[Budgeted] = [*WEIGHTS]
    if args.nr_budget == LATENCY:  # only then, as timing takes long
        try:
            budgets.append(nr.Latency(args.nr_latency_batch, folder / TABLE))
        except ValueError as error:
            raise InputError(f"--plan: {error}") from error
    rows: list[list[str]] = []
    columns: dict[str, nr.Plan] = {}
    for budget, to in product(budgets, multiples):
        for cross in (*CROSS, PRUNED):
            if cross == PRUNED and budget != WEIGHTS[0]:
                continue  # pruning alone has no budget
            made = copy.deepcopy(network)
            try:
                plan = nr.plan(made, cross, image_size=size, round_to=to, budget=budget)
                nr.rejuvenate(made, plan=plan)
            except ValueError as error:
                raise InputError(f"{path}: {error}") from error
            name = name_of(budget)
            columns.setdefault(f"{name}, {to}", plan)
            own = (name, to, cross) == (args.nr_budget, multiple, args.nr_cross)
            counts = f"{plan.params[1]:,}", f"{nr.count_macs(made, size):,}"
            share = f"{plan.cost[1] / plan.cost[0]:.1%}"
            cells = name, str(to), cross, f"{plan.expansion:.4f}", *counts, share
            rows.append([*cells, "yes" if own else ""])
    before = f"{nr.count_params(network):,} parameters, {nr.count_macs(network, size):,}"
    first = f"{path}: {before} multiply-adds\n"
    return "\n".join([first, markdown(HEADER.split("|"), rows), "", layer_table(columns)])


def layer_table(columns: dict[str, nr.Plan]) -> str:
    """Each layer's channels now, and by each budget those that survive and its width."""
    first = next(iter(columns.values())).layers
    rows = [
        [row.name, str(row.outputs), *(f"{len(a.survivors)} -> {a.width}" for a in others)]
        for row, *others in zip(first, *(plan.layers for plan in columns.values()), strict=True)
    ]
    return markdown(["layer", "outputs", *columns], rows)


def searched(folder: Path) -> tuple[Path, nr.Network, Namespace]:
    """The last network of a search, where its file is, and the flags of its run."""
    befores = sorted(folder.glob("NR_*_before_*.pth.tar"), key=lambda path: path.stat().st_mtime)
    found = checkpoint.read_last(folder)
    if found is None:
        raise InputError(f"{folder}: no {checkpoint.LAST} is there")
    path, payload = found
    if payload["run"]["phase"] != "search":
        if not befores:
            raise InputError(f"{path}: is no search's, and no NR_*_before_* is beside it")
        path, payload = befores[-1], checkpoint.read(befores[-1])
    flags = {"nr_round_to": 1, "nr_budget": None} | payload["args"]  # older files have none
    flags["nr_budget"] = flags["nr_budget"] or ("flops" if flags["nr_flops"] else "params")
    return path, checkpoint.network(payload, path), Namespace(**flags)
