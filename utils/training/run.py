"""One run: its network, its state and its folder. The same for both scripts."""

import random
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

import models
import nr
from nr.layers import Network
from nr.rejuvenation import Report
from utils.errors import InputError
from utils.machine import distributed
from utils.machine.compiler import compile_network
from utils.machine.seeding import EPOCH, NETWORK, REJUVENATION, seed_generators
from utils.shown.meters import Figures
from utils.training import checkpoint
from utils.training.engine import evaluate, step_lr, train_epoch
from utils.training.folder import claim_folder, scale_histogram, write_description, write_outputs
from utils.training.options import NO_REJUVENATION
from utils.training.signals import Stopped, StopRequest
from utils.training.state import RunState

# Flags that say which run a checkpoint belongs to; to train on, they have to be the same.
IDENTITY = ("dataset", "subset", "image_size")
DRAWING_SHARE = 0.05  # of a run's time, at most
GAVE_UP = 3  # exit status of a search that never reached its target


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """What a payload of wrong types or sizes raises in the block, as an InputError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise InputError(f"{path}: its state cannot be restored: {error}") from error


class Run:
    """The network in training and everything that a checkpoint holds.

    ``spec``: family, arch and options of the network, which is built here or, with --resume,
    rebuilt from the checkpoint; ``sparsity``: λ of a fresh run's search. Raises InputError for a
    checkpoint that does not fit.
    """

    def __init__(self, args: Namespace, spec: dict, devices: list[torch.device], sparsity: float):
        self.args, self.spec, self.devices = args, spec, devices
        self.folder = Path(args.checkpoint)
        self.stop = StopRequest()
        self.partial: Tensor | None = None  # figures of the finished batches of an epoch
        self.started, self.drawing = time.perf_counter(), 0.0  # seconds spent on pictures
        self.improved = False  # whether the last epoch is the best of the train phase, unsaved
        found = self._find_checkpoint()
        if found is None:
            self._begin(sparsity)
        else:
            self._resume(*found)
        if distributed.is_main() and not args.evaluate:
            claim_folder(self.folder, found and found[0])
            if args.resume == "auto" and found and found[0].name == checkpoint.PREVIOUS:
                checkpoint.put_damaged_aside(self.folder)

    # Beginning and going on.

    def _find_checkpoint(self) -> tuple[Path, dict] | None:
        """The checkpoint that --resume names and its content, or None for a fresh run."""
        resume = self.args.resume
        if resume is None:
            return None
        if resume != "auto":
            return Path(resume), checkpoint.read(resume)
        found = checkpoint.read_last(self.folder)
        if found is None and self.args.evaluate:
            raise InputError(f"-e --resume auto: there is no {self.folder / checkpoint.LAST}")
        if found is None:
            print(f"==> Nothing to resume in {self.folder}: a fresh run")
        return found

    def _begin(self, sparsity: float) -> None:
        args = self.args
        seed = args.manualSeed
        if seed is None:
            seed = distributed.gathered(random.SystemRandom().randrange(2**31))[0]
            print(f"==> Seed: {seed} (--manualSeed)")
        self.state = RunState("search", seed, epoch=args.start_epoch, sparsity=sparsity)
        if args.nr_target >= NO_REJUVENATION:
            self.state.phase, self.state.sparsity = "train", 0.0
        seed_generators(seed, NETWORK)
        self.use(models.build(self.spec["family"], self.spec["arch"], **self.spec["options"]))

    def _resume(self, path: Path, payload: dict) -> None:
        print(f"==> Resuming from {path}")
        with restoring(path):
            self._check_identity(path, payload)
            network = checkpoint.network(payload, path)
            self.state = RunState(**payload["run"])
        self.use(network)
        with restoring(path):
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict(payload["optimizer"] | {"param_groups": groups})
            for parameter, state in self.optimizer.state.items():
                # In the order of its parameter, which the fused step needs.
                momentum = torch.empty_like(parameter, requires_grad=False)
                state["momentum_buffer"] = momentum.copy_(state["momentum_buffer"])
            self._resume_epoch(payload)

    def _resume_epoch(self, payload: dict) -> None:
        """Go on inside an epoch: its figures, kept by rank 0, and each process's generators."""
        self.partial, rank = payload["partial"], distributed.rank()
        if self.partial is not None and rank > 0:
            self.partial = torch.zeros_like(self.partial)
        if rank < len(payload["rng"]):
            checkpoint.set_rng_state(payload["rng"][rank])
        elif self.partial is not None:
            seed_generators(self.state.seed, EPOCH, self.state.epoch, rank, len(self.partial))

    def _check_identity(self, path: Path, payload: dict) -> None:
        """Refuse a checkpoint of another network, and, for training, of other data or seed."""
        if payload["network"] != self.spec:
            raise InputError(f"{path}: holds {payload['network']}, but the flags say {self.spec}")
        if self.args.evaluate:
            return
        identity = [
            (name, payload["args"].get(name), getattr(self.args, name, None)) for name in IDENTITY
        ]
        if self.args.manualSeed is not None:
            identity.append(("manualSeed", payload["run"]["seed"], self.args.manualSeed))
        for name, was, now in identity:
            if was != now:
                raise InputError(f"{path}: was trained with {name} {was}, but the flags say {now}")
        target = self.args.nr_target
        if payload["run"]["phase"] == "search" and target >= NO_REJUVENATION:
            raise InputError(
                f"{path}: stands in its search, which --nr-target {target:g} never ends"
            )
        same_batches = payload["args"].get("train_batch") == self.args.train_batch
        if payload["partial"] is not None and not same_batches:
            raise InputError(f"{path}: stands inside an epoch, so --train-batch cannot change here")

    # The network and its phases.

    def use(self, network: Network) -> None:
        """Train ``network`` from here on, with a fresh optimizer."""
        args = self.args
        # Convolutions of a CPU, and those of a GPU in bfloat16, are faster in this order.
        channels_last = args.amp or self.devices[0].type == "cpu"
        order = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(self.devices[0], memory_format=order)
        if args.compile:
            compile_network(self.network, self.devices[0])
        self.model = distributed.parallel(self.network, self.devices)
        self.optimizer = nr.SGD(
            self.network,
            args.lr,
            momentum=args.momentum,
            weight_decay=args.weight_decay,
            fused=True,
        )

    @property
    def searching(self) -> bool:
        return self.state.phase == "search"

    @property
    def phase_epoch(self) -> int:
        """The next epoch, counted from the start of its phase."""
        return self.state.epoch - self.state.search_epochs

    def before_rejuvenation(self) -> None:
        """Save the network, and make its rejuvenated weights a function of the run's seed."""
        self.save(f"NR_{self.spec['arch']}_before_{self.args.nr_target:g}.pth.tar")
        distributed.copy_from_main(self.network)
        seed_generators(self.state.seed, REJUVENATION)

    def after_rejuvenation(self, report: Report) -> None:
        """From the search to the train phase: λ = 0, the clock at 0, a fresh optimizer."""
        state = self.state
        state.phase, state.search_epochs, state.sparsity = "train", state.epoch, 0.0
        state.widths = [[c.name, c.before[1], c.survived[1], c.after[1]] for c in report.layers]
        for change in report.layers:
            (a, b), (c, d) = zip(change.before, change.after, strict=True)
            print(f"| Rejuvenation | input {a} -> {b} | output {c} -> {d}")
        print(f"| Expansion {report.expansion:.4f}, {nr.count_params(self.network):,} parameters")
        self.use(self.network)
        distributed.check_equal(self.network)
        self.rescale_once()
        self.save(f"NR_{self.spec['arch']}_{self.args.nr_target:g}.pth.tar")
        self.save()

    def rescale_once(self) -> None:
        """NR-BR at the start of the train phase, unless this network has had it."""
        target = self.args.nr_bn_target
        if target is None or self.searching or self.state.rescaled:
            return
        if self.phase_epoch > 0 or self.partial is not None:
            print("| --nr-bn-target: the train phase has begun without it, so it is not applied")
            return
        nr.rescale(self.network, target)
        self.state.rescaled = True
        print(f"| Rescaled: batch-norm scales of at least {target:g}")

    def give_up(self, flag: str) -> int:
        """The search never reached its target: say so, naming the flag that would help."""
        distributed.warn(
            f"Gave up the search after {self.state.epoch} epochs: utilization is"
            f" {self.state.utilization:.4f}, the target {self.args.nr_target:g}; a larger {flag}"
            f" gets there sooner. The checkpoint is kept in {self.folder}."
        )
        return GAVE_UP

    # An epoch.

    def epoch(self, train_batches, test_batches) -> None:
        """Train, evaluate, measure and log one epoch; after a signal save, and raise Stopped."""
        args, state = self.args, self.state
        lr = step_lr(args.lr, self.phase_epoch, args.schedule, args.gamma)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.sparsity = state.sparsity
        count = args.nr_max_epochs if self.searching else args.epochs
        print(f"\nEpoch: [{self.phase_epoch + 1} | {count}] LR: {lr:g} ({state.phase})")
        if self.partial is None:
            seed_generators(state.seed, EPOCH, state.epoch, distributed.rank())
        start = time.perf_counter()
        try:
            self.partial = train_epoch(
                self.model,
                train_batches,
                state.epoch,
                self.optimizer,
                args.amp,
                self.stop,
                self.partial,
            )
            train = Figures.of(distributed.total(self.partial.sum(dim=0)))
            test = evaluate(self.model, test_batches, args.amp, self.stop)
        except Stopped as stopped:
            sums = self.partial if stopped.sums is None else stopped.sums
            self.partial = distributed.total(sums).cpu()
            state.seconds += time.perf_counter() - start
            self.save()
            raise
        self.partial = None
        self._record(lr, train, test, state.seconds + time.perf_counter() - start)

    def _record(self, lr: float, train: Figures, test: Figures, seconds: float) -> None:
        """Measure utilization and move the state one epoch on."""
        state = self.state
        usage = nr.utilization(self.network, self.args.nr_flops, self.args.image_size)
        print(f"| Parameter utilization {usage.ratio:.4f}")
        state.rows.append(
            {
                "Learning Rate": lr,
                "Train Loss": train.loss,
                "Valid Loss": test.loss,
                "Train Acc.": train.top1,
                "Valid Acc.": test.top1,
            }
            | ({"Valid 5 Acc.": test.top5} if self.spec["family"] == "imagenet" else {})
            | {
                "Phase": state.phase,
                "Utilization": usage.ratio,
                "Sparsity": state.sparsity,
                "Params": nr.count_params(self.network),
                "Seconds": seconds,
            }
        )
        if not self.searching and test.top1 > state.best_acc:
            state.best_acc, self.improved = test.top1, True
        if self.searching:
            live = {r.name: r.live_out / r.out_channels for r in usage.layers if not r.fixed}
            state.live.append(live)
            state.scales.append(scale_histogram(self.network))
        state.epoch, state.acc, state.seconds = state.epoch + 1, test.top1, 0.0
        state.utilization = distributed.gathered(usage.ratio)[0]

    def print_evaluation(self, test_batches) -> int:
        """Evaluate and print; returns the exit status."""
        figures = evaluate(self.model, test_batches, self.args.amp, self.stop)
        print(
            f"Valid Loss: {figures.loss:.4f} | Valid Acc.: {figures.top1:.2f}"
            f" | Valid 5 Acc.: {figures.top5:.2f}"
        )
        return 0

    # Files.

    def save(self, name: str | None = None) -> None:
        """Write checkpoint ``name``, or, without one, everything that an epoch leaves behind."""
        payload = self._payload()
        if not distributed.is_main():
            return
        if name is not None:
            checkpoint.save(self.folder / name, payload)
            return
        checkpoint.save_last(self.folder, payload, best=self.improved)
        self.improved = False
        self._describe()
        start = time.perf_counter()
        searched = not self.searching and self.phase_epoch > 0 and self.drawing > 0
        write_outputs(self.folder, self.state, searched, due=self._pictures_are_due())
        self.drawing += time.perf_counter() - start

    def _pictures_are_due(self) -> bool:
        """After every epoch, or fewer where that would slow the run; always at a phase's end."""
        args, state = self.args, self.state
        if self.searching:
            ends = state.utilization <= args.nr_target or state.epoch >= args.nr_max_epochs
        else:
            ends = self.phase_epoch in (0, args.epochs)
        share = self.drawing / (time.perf_counter() - self.started)
        return ends or self.partial is not None or share < DRAWING_SHARE

    def _describe(self) -> None:
        description = {
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "seed": self.state.seed,
            "network": self.spec,
            "structure": nr.structure(self.network),
            "args": vars(self.args),
        }
        write_description(self.folder, description)

    def _payload(self) -> dict:
        state = self.state
        return {
            "format": checkpoint.FORMAT,
            "epoch": state.epoch,
            "arch": self.spec["arch"],
            "acc": state.acc,
            "best_acc": state.best_acc,
            "state_dict": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "network": self.spec,
            "structure": nr.structure(self.network),
            "run": asdict(state),
            "partial": self.partial,
            "args": vars(self.args),
            "rng": distributed.gathered(checkpoint.rng_state()),
        }
