"""How a run goes from one phase to the next: from search to training, and on to another round."""

from pathlib import Path

import nr
from nr.method.costs import LATENCY
from nr.method.rejuvenation import Report
from utils.errors import InputError
from utils.machine import distributed
from utils.machine.seeding import REJUVENATION, seed_generators
from utils.training import transitions
from utils.training.run import Run

TABLE = "latency.json"  # in the folder of a run


def before_rejuvenation(run: Run) -> None:
    """Save the network, and make its rejuvenated weights a function of seed and round."""
    state = run.state
    run.save(f"NR_{run.spec['arch']}_before_{run.args.nr_target:g}{state.suffix}.pth.tar")
    distributed.copy_from_main(run.network)
    number = () if state.round == 1 else (state.round,)
    seed_generators(state.seed, REJUVENATION, *number)


def budget(run: Run) -> str | nr.Latency:
    """What the rebuilt network keeps; for seconds a nr.Latency, with its table in the run's folder.

    The main process times for all processes, so that all rebuild the same.
    """
    args, name = run.args, run.args.nr_budget
    if name != LATENCY:
        return name
    file = run.folder.path / TABLE
    if distributed.is_main() and args.resume and not file.exists():
        beside = Path(args.resume).parent / TABLE  # of the run that this one goes on from
        if beside.exists():
            file.write_bytes(beside.read_bytes())
    try:
        found = nr.Latency(args.nr_latency_batch, file if distributed.is_main() else None)
        if distributed.is_main():
            nr.plan(
                run.network,
                args.nr_cross,
                image_size=args.image_size,
                from_scratch=args.nr_from_scratch,
                round_to=args.nr_round_to,
                budget=found,
            )
    except ValueError as error:
        raise InputError(f"--nr-budget {name}: {error}") from error
    found.table = distributed.gathered(found.table)[0]
    return found


def after_rejuvenation(run: Run, report: Report) -> None:
    """From the search to the train phase, with a fresh or carried optimizer; saves both files."""
    run.state = transitions.after_rejuvenation(run.state, report)
    for change in report.layers:
        (a, b), (c, d) = zip(change.before, change.after, strict=True)
        print(f"| Rejuvenation | input {a} -> {b} | output {c} -> {d}")
    print(
        f"| Expansion {report.expansion:.4f}, {nr.count_params(run.network):,} parameters;"
        f" {'with all connections ' * (not report.latency)}{report.budget:.1%} of the budget"
    )
    if report.latency:
        predicted, measured = (f"{1000 * seconds:.3g}" for seconds in report.latency)
        print(
            f"| Latency of {run.args.nr_latency_batch}: {predicted} ms predicted, {measured} ms"
            " measured"
        )
    run.trainer.go_on(run.args.nr_carry)
    distributed.check_equal(run.network)
    rescale_once(run)
    run.save(f"NR_{run.spec['arch']}_{run.args.nr_target:g}{run.state.suffix}.pth.tar")
    run.save()


def before_merging(run: Run) -> None:
    """Let every process merge the same streams, and note their multiply-adds of an image."""
    distributed.copy_from_main(run.network)
    run.trained_macs = nr.count_macs(run.network, run.args.image_size)


def after_merging(run: Run) -> None:
    """From a train phase to the search of the next round, with a fresh or carried optimizer."""
    macs = run.trained_macs, nr.count_macs(run.network, run.args.image_size)
    run.state = transitions.next_round(run.state, run.sparsity, macs)
    params = nr.count_params(run.network)
    print(f"\n| Round {run.state.round}: one stream of {params:,} parameters")
    run.trainer.go_on(run.args.nr_carry)
    distributed.check_equal(run.network)


def rescale_once(run: Run) -> None:
    """NR-BR at the start of the train phase, unless this network has had it."""
    target = run.args.nr_bn_target
    if run.state.rescaled:
        return
    if run.state.phase_epoch > 0 or run.trainer.partial is not None:
        if "nr_bn_target" in run.args.given:
            print("| --nr-bn-target: the train phase has begun without it, so it is not applied")
        return
    if target is None:
        return
    nr.rescale(run.network, target)
    run.state.rescaled = True
    print(f"| Rescaled: batch-norm scales of at least {target:g}")
