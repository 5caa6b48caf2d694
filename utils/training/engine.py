"""One pass over the data: training an epoch, evaluating, and the learning rate of an epoch."""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

import nr
from utils.data.batches import Share, Testing, Training
from utils.errors import DataError, InputError
from utils.machine import distributed
from utils.shown.meters import COLUMNS, Display, Figures, batch_sums
from utils.training.signals import Stopped, StopRequest

T = TypeVar("T")
# Weight of each auxiliary loss by how many there are: of Inception v3 and GoogLeNet, as published.
AUXILIARY = {1: 0.4, 2: 0.3}


def step_lr(base: float, epoch: int, milestones: Sequence[int], gamma: float) -> float:
    """Learning rate of an epoch counted from the start of its phase (0, 1, ...)."""
    return base * gamma ** sum(epoch >= milestone for milestone in milestones)


def stream_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over the S streams of the mean cross-entropy: logits [B, S, classes], labels [B]."""
    if len(labels) == 0:  # one of several processes may have none
        return logits.float().sum()
    return nr.loss(logits.float(), labels)


def with_auxiliary(outputs: Tensor | tuple[Tensor, ...], labels: Tensor) -> tuple[Tensor, Tensor]:
    """The logits [B, S, classes], and the loss, to which auxiliary heads add theirs."""
    if isinstance(outputs, Tensor):
        return outputs, stream_loss(outputs, labels)
    logits, *others = outputs
    share = AUXILIARY.get(len(others), min(AUXILIARY.values()))
    auxiliary = sum(stream_loss(other, labels) for other in others)
    return logits, stream_loss(logits, labels) + share * auxiliary


def train_epoch(
    model: nn.Module,
    batches: Training,
    epoch: int,
    optimizer: nr.SGD,
    amp: bool,
    stop: StopRequest,
    done: Tensor | None = None,
) -> Tensor:
    """Train on every batch of ``epoch`` once; return this process's sums [batches, 4].

    The shares of ``batches`` say how each batch is weighed, and after which the optimizer steps:
    gradients add up till then, and a run stops there only. ``done``: the sums [k, 4] of the k
    batches that an interrupted run had finished.

    Raises Stopped, with the sums so far, after a signal; DataError, with them, where the first
    batch of a step is missing; InputError where a later one is, for a loss that is not finite,
    naming the batch, and for an epoch of less than k batches.
    """
    model.train()
    first = 0 if done is None else len(done)
    if first > len(batches):
        raise InputError(
            f"--resume: the run stands after batch {first} of epoch {epoch + 1}, which has only"
            f" {len(batches)} of these images: go on with those that it was trained on, and on as"
            " many GPUs"
        )
    sums = _allocate(model, len(batches), done)
    display = Display("Training", len(batches), first)
    count, begins_step, lr = first, True, optimizer.param_groups[0]["lr"]
    try:
        for images, labels in _timed(batches.epoch(epoch, first), display):
            share = batches.shares[count]
            if begins_step:
                optimizer.zero_grad(set_to_none=True)
            logits, loss = _gradients(model, images, labels, share, amp)
            if share.steps:
                optimizer.step()
            begins_step = share.steps
            sums[count] = batch_sums(logits, labels, loss)
            count += 1
            signum = stop.agreed() if share.steps else 0
            if signum or display.due(count):
                _refuse_non_finite(sums[:count], epoch, lr)
                display.show(count, sums[:count].sum(dim=0))
            if signum:
                raise Stopped(signum, sums[:count])
    except DataError as error:
        if not begins_step:  # batch norm has seen a part of it
            raise InputError(str(error)) from error
        _refuse_non_finite(sums[:count], epoch, lr)
        error.sums = sums[:count]
        raise
    return sums


def _gradients(
    model: nn.Module, images: Tensor, labels: Tensor, share: Share, amp: bool
) -> tuple[Tensor, Tensor]:
    """Add the gradients of a batch to those that are there: its logits and its loss."""
    with distributed.exchange(model, share.steps):
        with torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
            outputs = model(images)
        logits, loss = with_auxiliary(outputs, labels)
        (loss * share.weight).backward()
    return logits, loss


@torch.no_grad()
def evaluate(model: nn.Module, batches: Testing, amp: bool, stop: StopRequest) -> Figures:
    """Loss and accuracies over all of ``batches``, in eval mode.

    Raises Stopped after a signal, and InputError for a loss that is not finite.
    """
    model = distributed.local(model).eval()
    sums = _allocate(model, len(batches))
    display = Display("Evaluating", len(batches))
    for count, (images, labels) in enumerate(_timed(batches, display), start=1):
        with torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
            logits = model(images)
        sums[count - 1] = batch_sums(logits, labels, stream_loss(logits, labels))
        if display.due(count):
            display.show(count, sums[:count].sum(dim=0))
        if stop.signum:
            break
    if signum := stop.agreed_now():
        raise Stopped(signum)
    figures = Figures.of(distributed.total(sums.sum(dim=0)))
    if not math.isfinite(figures.loss):
        raise InputError("the test loss is not finite: the network has diverged; not saved")
    return figures


def _allocate(model: nn.Module, batches: int, done: Tensor | None = None) -> Tensor:
    """Sums [batches, 4] on the model's device, the first rows from an interrupted run."""
    device = next(model.parameters()).device
    sums = torch.zeros(batches, COLUMNS, dtype=torch.float64, device=device)
    if done is not None:
        sums[: len(done)] = done.to(device)
    return sums


def _timed(batches: Iterable[T], display: Display) -> Iterator[T]:
    """Pass the batches on, adding the seconds spent on making them to the display."""
    start = time.perf_counter()
    for batch in batches:
        display.data_seconds += time.perf_counter() - start
        yield batch
        start = time.perf_counter()


def _refuse_non_finite(sums: Tensor, epoch: int, lr: float) -> None:
    """Raise InputError naming the first batch whose loss is not a finite number."""
    bad = (~torch.isfinite(sums[:, 1])).nonzero()
    if len(bad):
        raise InputError(
            f"the loss is not finite at epoch {epoch + 1}, batch {int(bad[0]) + 1}, learning rate"
            f" {lr:g}; nothing of this epoch was saved"
        )
