"""Neural Rejuvenation on ImageNet-size images (Qiao, Lin, Zhang, Yuille, CVPR 2019).

As in cifar.py: search phase, rejuvenation, train phase, in rounds. Here λ grows by itself: after
each search epoch in which utilization hardly fell it is raised by --nr-increase-step.
"""

import sys

import nr
from models.imagenet import ALIASES
from utils.data.identity import folder_name, known_by
from utils.data.photographs import (
    TestBatches,
    TrainBatches,
    load_imagenet,
    make_synthetic,
    usual_test_batch,
)
from utils.files import Plain
from utils.machine import distributed
from utils.training import archs, options, phases, script
from utils.training.options import Flags
from utils.training.penalty import Penalty
from utils.training.run import Run
from utils.training.writer import finished

LEAST_BATCH = 2  # images: VGG's hidden layers have batch norm over 1x1 maps
LEAST_IMAGE_SIZE = 32  # pixels: the networks halve them five times


def parse(argv: list[str] | None) -> tuple[Flags, Plain]:
    """The flags, checked, and the builder options that they mean."""
    parser = options.shared_parser(
        "imagenet",
        "Train an ImageNet network with Neural Rejuvenation.",
        arch="resnet18_nr",
        epochs=90,
        schedule=[30, 60],
        train_batch=256,
        test_batch=None,
        workers=8,
        nr_target=0.5,
        nr_cross="attention",
    )
    add = options.adding(parser.add_argument_group("imagenet"))
    step = "batches whose gradients make one step, weighed as one large batch"
    grows = "λ grows after an epoch in which utilization fell by less than this"
    add("-d --data", "folder with train/<class>/* and val/<class>/*", options.path, metavar="DIR")
    add("--synthetic", "made images (--subset of them), no --data")
    add("--image-size", "pixels, H = W", options.positive_int, default=224)
    add("--iter-size", step, options.positive_int, default=1, metavar="N")
    add("--nr-sparsity-start", "λ at first", options.real(0), default=0.0)
    add("--nr-increase-step", "by which λ grows", options.real(0), default=5e-5)
    add("--nr-increase-thres", grows, options.real(0, 1), default=0.01)
    args = options.parsed(parser, argv)
    if (args.data is None) != args.synthetic:
        parser.error("either --data DIR or --synthetic is needed")
    if args.image_size < LEAST_IMAGE_SIZE:
        parser.error(f"--image-size {args.image_size}: at least {LEAST_IMAGE_SIZE} are needed")
    if args.train_batch < LEAST_BATCH:
        parser.error(f"--train-batch {args.train_batch}: at least {LEAST_BATCH} are needed")
    args.arch = ALIASES.get(args.arch, args.arch)
    options.check(parser, args, "synthetic" if args.synthetic else "imagenet")
    return args, archs.check_network(parser, "imagenet", args)


@finished()
def main(argv: list[str] | None = None) -> int:
    args, keywords = parse(argv)
    devices = distributed.start(args.gpu_id)
    folder = script.open_folder(args)

    if args.test_batch is None:
        args.test_batch = usual_test_batch(args.train_batch, devices[0])
    train_set, val_set = (
        make_synthetic(args.image_size, args.subset)
        if args.synthetic
        else load_imagenet(args.data, args.image_size, args.subset)
    )
    name = "synthetic" if args.synthetic else folder_name(args.data)
    data = known_by(name, train_set, val_set, digested=not args.evaluate)
    keywords["num_classes"] = len(train_set.classes)
    spec = {"family": "imagenet", "arch": args.arch, "options": keywords}
    run = Run(args, spec, devices, folder, args.nr_sparsity_start, train_set.classes, data)
    script.begin(run)
    place = (args.workers, devices[0], distributed.rank(), distributed.world())
    val_batches = TestBatches(val_set, args.test_batch, *place, normalisation=run.normalisation)
    if args.evaluate:
        return script.evaluate(run, val_batches)
    train_batches = TrainBatches(
        train_set,
        args.train_batch,
        run.state.seed,
        *place,
        devices=len(devices),
        iter_size=args.iter_size,
        normalisation=run.normalisation,
    )
    return rejuvenation(run, args, train_batches, val_batches)


def rejuvenation(
    run: Run, args: Flags, train_batches: TrainBatches, val_batches: TestBatches
) -> int:
    """The method, from where ``run`` stands to the end of its last round: the exit status."""
    penalty = Penalty(run, train_batches)
    while True:
        # Search phase: penalise the scales, harder and harder, until enough of them is dead.
        while run.state.searching:
            before = run.state.utilization
            if before <= args.nr_target:
                phases.before_rejuvenation(run)
                report = nr.rejuvenate(
                    run.network,
                    cross=args.nr_cross,
                    budget=phases.budget(run),
                    image_size=args.image_size,
                    from_scratch=args.nr_from_scratch,
                    round_to=args.nr_round_to,
                )
                phases.after_rejuvenation(run, report)
            elif run.state.phase_epoch >= args.nr_max_epochs:
                return script.give_up(run, penalty.remedy("--nr-increase-step"))
            else:
                penalty.tell()
                run.epoch(train_batches, val_batches)
                run.state.sparsity = nr.grow_sparsity(
                    run.state.sparsity,
                    before,
                    run.state.utilization,
                    threshold=args.nr_increase_thres,
                    step=args.nr_increase_step,
                )
                run.save()
        last = run.state.round >= args.nr_rounds
        if last and args.nr_compress_only:
            return 0

        # Train phase: both streams together, on a schedule that starts again.
        script.train(run, train_batches, val_batches)
        if last:
            return 0

        # The next round: both streams as one plain network, and λ from its start again.
        phases.before_merging(run)
        nr.merge(run.network)
        phases.after_merging(run)


if __name__ == "__main__":
    sys.exit(script.exit_status(main))
