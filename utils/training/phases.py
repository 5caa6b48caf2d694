"""How a run goes from one phase to the next: from search to training, and on to another round."""

import nr
from nr.method.rejuvenation import Report
from utils.machine import distributed
from utils.machine.seeding import REJUVENATION, seed_generators
from utils.training import transitions
from utils.training.run import Run


def before_rejuvenation(run: Run) -> None:
    """Save the network, and make its rejuvenated weights a function of seed and round."""
    state = run.state
    run.save(f"NR_{run.spec['arch']}_before_{run.args.nr_target:g}{state.suffix}.pth.tar")
    distributed.copy_from_main(run.network)
    number = () if state.round == 1 else (state.round,)
    seed_generators(state.seed, REJUVENATION, *number)


def after_rejuvenation(run: Run, report: Report) -> None:
    """From the search to the train phase, with a fresh or carried optimizer; saves both files."""
    run.state = transitions.after_rejuvenation(run.state, report)
    for change in report.layers:
        (a, b), (c, d) = zip(change.before, change.after, strict=True)
        print(f"| Rejuvenation | input {a} -> {b} | output {c} -> {d}")
    print(
        f"| Expansion {report.expansion:.4f}, {nr.count_params(run.network):,} parameters;"
        f" with all connections {report.budget:.1%} of the budget"
    )
    run.trainer.go_on(run.args.nr_carry)
    distributed.check_equal(run.network)
    rescale_once(run)
    run.save(f"NR_{run.spec['arch']}_{run.args.nr_target:g}{run.state.suffix}.pth.tar")
    run.save()


def before_merging(run: Run) -> None:
    """Let every process merge the same streams, and keep what an image costs in them."""
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
