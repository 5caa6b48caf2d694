"""A run as the scripts drive it: where it stands, its folder and its network, moved together."""

import random
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

import models
import nr
from nr.network.layers import Network
from utils.data.batches import Testing, Training
from utils.data.normalisation import Normalisation
from utils.errors import DataError, InputError
from utils.files import Plain
from utils.machine import bfloat16, distributed
from utils.machine.seeding import NETWORK, seed_generators
from utils.training import checkpoint, transitions
from utils.training.engine import step_lr
from utils.training.folder import RunFolder
from utils.training.identity import done, unfit, unmergeable
from utils.training.options import Flags
from utils.training.signals import Stopped, StopRequest
from utils.training.state import NO_ACCURACY, Epoch, RunState
from utils.training.trainer import Trainer


class Run:
    """The state, folder and network of a run.

    ``spec``: family, arch and options of the network, which is built here or, with --resume, from
    the checkpoint; ``sparsity``: λ with which every search begins; ``classes``: their names;
    ``data``: of utils.data.identity.known_by. InputError for a checkpoint that does not fit.
    """

    def __init__(
        self,
        args: Flags,
        spec: Plain,
        devices: list[torch.device],
        folder: RunFolder,
        sparsity: float,
        classes: Sequence[str],
        data: Plain | None = None,
    ):
        self.args, self.spec, self.classes, self.data = args, spec, list(classes), data
        self.folder, self.stop, self.sparsity = folder, StopRequest(), sparsity
        self.trained_macs = 0  # of the network before it is merged
        sgd = {"lr": args.lr, "momentum": args.momentum, "weight_decay": args.weight_decay}
        self.trainer = Trainer(devices, **sgd, amp=args.amp, compiled=args.compile)
        if args.amp:
            bfloat16.say_if_slow(devices[0])
        self.improved = False  # whether the last epoch is the best of the train phases, unsaved
        found = self.folder.find(args.resume, needed=args.evaluate)
        checkpoint.refuse_different(found)
        self.resumed = found is not None
        if found is None:
            self._begin()
        else:
            self._resume(*found)
        if distributed.is_main() and not args.evaluate:
            self.folder.claim(*(found or (None, None)))
            if found:
                self.folder.catch_up(found[1], self.state)

    @property
    def network(self) -> Network:
        return self.trainer.network

    @property
    def normalisation(self) -> Normalisation:
        return checkpoint.normalisation(vars(self.args), self.spec["family"])

    def _begin(self) -> None:
        seed = self.args.manualSeed
        if seed is None:
            seed = distributed.gathered(random.SystemRandom().randrange(2**31))[0]
            print(f"==> Seed: {seed} (--manualSeed)")
        first = self.args.start_epoch
        self.state = transitions.begin(seed, self.args.nr_target, self.sparsity, first)
        seed_generators(seed, NETWORK)
        network = models.build(self.spec["family"], self.spec["arch"], **self.spec["options"])
        nr.hold(network, keep=self.args.nr_keep or ())
        self.trainer.use(network)

    def _resume(self, path: Path, payload: Plain) -> None:
        print(f"==> Resuming from {path}")
        with checkpoint.restoring(path):
            if wrong := unfit(payload, self.spec, self.args, self.classes, self.data):
                raise InputError(f"{path}: {wrong}")
            if not self.args.evaluate:
                vars(self.args).update(done(payload))
            if found := payload["args"].get("normalisation"):
                self.args.normalisation = found
            network = checkpoint.network(payload, path)
            checkpoint.refuse_non_finite(network.state_dict(), path)
            self.state = RunState(**payload["run"])
            if wrong := unmergeable(network, self.state.round, vars(self.args)):
                raise InputError(f"{path}: {wrong}")
        self.trainer.use(network)
        with checkpoint.restoring(path):
            self.trainer.restore(payload, self.state)

    def epoch(self, train_batches: Training, test_batches: Testing) -> None:
        """Train, evaluate, measure and log one epoch.

        Saves before it raises Stopped, after a signal, or DataError, where a batch is missing.
        """
        args, state = self.args, self.state
        lr = step_lr(args.lr, state.phase_epoch, args.schedule, args.gamma)
        count = args.nr_max_epochs if state.searching else args.epochs
        phase = state.phase if state.round == 1 else f"{state.phase}, round {state.round}"
        print(f"\nEpoch: [{state.phase_epoch + 1} | {count}] LR: {lr:g} ({phase})")
        start = time.perf_counter()
        try:
            train, test = self.trainer.epoch(state, lr, train_batches, test_batches, self.stop)
        except (Stopped, DataError) as end:
            state.seconds += time.perf_counter() - start
            self.save()
            end.saved = True
            raise
        seconds = state.seconds + time.perf_counter() - start
        usage = self.trainer.measure(args.nr_flops, args.image_size, state.searching)
        print(f"| Parameter utilization {usage.ratio:.4f}")
        if not state.searching and not self.folder.has_best():
            state.best_acc = NO_ACCURACY
        self.improved = transitions.improves(state, test.top1)
        epoch = Epoch(lr, train, test, usage, seconds)
        self.state = transitions.after_epoch(state, epoch, top5=self.spec["family"] == "imagenet")

    def save(self, name: str | None = None) -> None:
        """Begin to write checkpoint ``name``, or, without one, all that an epoch leaves behind."""
        args, state = self.args, self.state
        payload = {
            "format": checkpoint.FORMAT,
            "epoch": state.epoch,
            "arch": self.spec["arch"],
            "acc": state.acc,
            "best_acc": state.best_acc,
            "network": self.spec,
            "classes": self.classes,
            "data": self.data,
            "run": asdict(state),
            "args": vars(args),
            **self.trainer.payload(),
        }
        if not distributed.is_main():
            return
        if name is not None:
            self.folder.save(name, payload)
            return
        ends = transitions.at_phase_end(state, args.nr_target, args.nr_max_epochs, args.epochs)
        due = ends or self.trainer.partial is not None
        self.folder.save_last(payload, state, best=self.improved, due=due)
        self.improved = False
