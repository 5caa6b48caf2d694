"""Neural Rejuvenation on CIFAR-size images (Qiao, Lin, Zhang, Yuille, CVPR 2019).

The method in order: train with a penalty on batch-norm scales until utilization falls to
--nr-target (search phase), rebuild the network at the same budget, train it (train phase);
with --nr-rounds merge its two streams into one network, and again.
"""

import sys

import nr
from utils.data.batches import TestBatches, TrainBatches
from utils.data.identity import folder_name, known_by
from utils.data.sets import load_cifar
from utils.files import Plain
from utils.machine import distributed
from utils.training import archs, options, phases, script
from utils.training.options import Flags
from utils.training.penalty import Penalty
from utils.training.run import Run
from utils.training.writer import finished

IMAGE_SIZE = 32  # pixels, H = W
DATASETS = ("cifar10", "cifar100", "folder", "synthetic")


def parse(argv: list[str] | None) -> tuple[Flags, Plain]:
    """The flags, checked, and the builder options that they mean."""
    parser = options.shared_parser(
        "cifar",
        "Train a CIFAR network with Neural Rejuvenation.",
        arch="vgg19_bn",
        epochs=300,
        schedule=[150, 225],
        train_batch=64,
        workers=4,
        nr_target=0.25,
        nr_cross="removed",
        image_size=IMAGE_SIZE,
    )
    add = options.adding(parser.add_argument_group("cifar"))
    where = "where it is, or is downloaded to"
    add("-d --dataset", "data set", choices=DATASETS, default="cifar10")
    add("--data", where, options.path, default="./data", metavar="DIR")
    add("--growthRate", "densenet: channels a layer adds", options.positive_int)
    add("--compressionRate", "densenet: transitions keep C/rate", options.real(1))
    add("--nr-sparsity", "λ of the penalty on scales", options.real(0), default=1e-4)
    args = options.parsed(parser, argv)
    options.check(parser, args, args.dataset)
    return args, archs.check_network(parser, "cifar", args)


@finished()
def main(argv: list[str] | None = None) -> int:
    args, keywords = parse(argv)
    devices = distributed.start(args.gpu_id)
    folder = script.open_folder(args)

    with distributed.main_first():
        train_set, test_set = load_cifar(
            args.dataset, args.data, devices[0], args.subset, args.workers
        )
    name = folder_name(args.data) if args.dataset == "folder" else args.dataset
    data = known_by(name, train_set, test_set, digested=not args.evaluate)
    keywords["num_classes"] = len(train_set.classes)
    spec = {"family": "cifar", "arch": args.arch, "options": keywords}
    run = Run(args, spec, devices, folder, args.nr_sparsity, train_set.classes, data)
    script.begin(run)
    share = (distributed.rank(), distributed.world())
    test_batches = TestBatches(test_set, args.test_batch, *share, normalisation=run.normalisation)
    if args.evaluate:
        return script.evaluate(run, test_batches)
    train_batches = TrainBatches(
        train_set,
        args.train_batch,
        run.state.seed,
        *share,
        devices=len(devices),
        normalisation=run.normalisation,
    )
    return rejuvenation(run, args, train_batches, test_batches)


def rejuvenation(
    run: Run, args: Flags, train_batches: TrainBatches, test_batches: TestBatches
) -> int:
    """The method, from where ``run`` stands to the end of its last round: the exit status."""
    penalty = Penalty(run, train_batches)
    while True:
        # Search phase: penalise the scales until enough of the network is dead, then rebuild it.
        while run.state.searching:
            if run.state.utilization <= args.nr_target:
                phases.before_rejuvenation(run)
                report = nr.rejuvenate(
                    run.network,
                    cross=args.nr_cross,
                    budget=phases.budget(run),
                    image_size=IMAGE_SIZE,
                    from_scratch=args.nr_from_scratch,
                    round_to=args.nr_round_to,
                )
                phases.after_rejuvenation(run, report)
            elif run.state.phase_epoch >= args.nr_max_epochs:
                return script.give_up(run, penalty.remedy("--nr-sparsity"))
            else:
                run.state.sparsity = args.nr_sparsity
                penalty.tell()
                run.epoch(train_batches, test_batches)
                run.save()
        last = run.state.round >= args.nr_rounds
        if last and args.nr_compress_only:
            return 0

        # Train phase: the two streams together, on a schedule that starts again.
        script.train(run, train_batches, test_batches)
        if last:
            return 0

        # The next round: both streams as one plain network, whose scales are penalised again.
        phases.before_merging(run)
        nr.merge(run.network)
        phases.after_merging(run)


if __name__ == "__main__":
    sys.exit(script.exit_status(main))
