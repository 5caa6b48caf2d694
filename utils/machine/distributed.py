"""Devices and processes: one CPU, one GPU, DataParallel, or torchrun."""

import gc
import hashlib
import os
import socket
import sys
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from utils.errors import InputError, one_line
from utils.machine.failure import Failure
from utils.machine.syncbn import synchronise_batch_norm

T = TypeVar("T")

# What torchrun tells a process; job schedulers set some of these for ordinary ones, too.
TORCHRUN = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched() -> bool:
    """Whether torchrun started this process."""
    return all(os.environ.get(name) for name in TORCHRUN)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes the files and the screen."""
    return rank() == 0


def warn(message: str) -> None:
    """One line on the screen's error stream, however many processes there are."""
    if is_main():
        print(message, file=sys.stderr)


def start(gpu_ids: list[int]) -> list[torch.device]:
    """Choose this process's devices, the first of them its own; under torchrun join the group.

    InputError for a GPU that is missing where others are, and for one that several processes share.
    """
    devices = _devices(gpu_ids)
    if devices[0].type == "cuda":
        torch.cuda.set_device(devices[0])
    if launched():
        join("cpu:gloo,cuda:nccl" if devices[0].type == "cuda" else "gloo")
        if devices[0].type == "cuda":
            refuse_shared_gpu(devices[0])
        if not is_main():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the life of the process
    return devices


def _devices(gpu_ids: list[int]) -> list[torch.device]:
    """The GPUs of ``gpu_ids``, or under torchrun the one of this process, or the CPU."""
    count = torch.cuda.device_count()
    missing = [i for i in gpu_ids if i >= count]
    if count and missing:
        raise InputError(f"--gpu-id {missing[0]}: this machine has GPUs 0 to {count - 1}")
    local_rank = int(os.environ["LOCAL_RANK"]) if launched() else 0
    if not count:
        if local_rank == 0:
            print("No GPU on this machine: running on the CPU.")
        return [torch.device("cpu")]
    if launched():  # the remainder: each process may see GPUs of its own
        return [torch.device("cuda", local_rank % count)]
    return [torch.device("cuda", i) for i in gpu_ids]


def refuse_shared_gpu(device: torch.device) -> None:
    """InputError in every process where two of them have the same GPU of the same machine."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    name = visible.split(",")[device.index].strip() if visible else str(device.index)
    number = str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))
    gpus = gathered((socket.gethostname(), name, number))
    for host, name, number in gpus:
        sharing = gpus.count((host, name, number))
        if sharing > 1:
            there = len({gpu for gpu in gpus if gpu[0] == host})
            raise InputError(
                f"torchrun: {sharing} processes would share GPU {name} of {host}; start at most"
                f" {there} there (--nproc_per_node), or give each its own CUDA_VISIBLE_DEVICES"
            )


def join(backend: str) -> None:
    """Join the process group that torchrun describes; host-side decisions never wait for a GPU."""
    try:
        store, rank, world = next(rendezvous("env://"))
    except (RuntimeError, ValueError) as error:  # the latter: a number that is none
        address, port = (os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT"))
        if "address already in use" in str(error).lower():
            raise InputError(
                f"MASTER_PORT {port}: in use on {address}, perhaps by another job; set a free one"
                " (torchrun --standalone finds one itself)"
            ) from error
        place = f"MASTER_ADDR {address}, MASTER_PORT {port}"
        reason = one_line(error)[:200]
        raise InputError(f"the processes cannot meet at {place}: {reason}") from error
    store = dist.PrefixStore(agreed_prefix(store, rank, world), store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    Failure.store = store


def agreed_prefix(store: dist.Store, rank: int, world: int) -> str:
    """A name that the processes of one start agree on, new each time.

    torchrun keeps its store over --max-restarts, with the addresses of dead processes. So rank 0
    makes up a name, and the others sign up under it until rank 0, which is alive, answers.
    """
    mine = uuid.uuid4().hex
    if rank == 0:
        store.set("newest", mine)
        for other in range(1, world):
            signature = store.get(f"{mine}/{other}").decode()  # waits for it
            store.set(f"{mine}/answer to {signature}", "")
        return mine
    while True:
        newest = store.get("newest").decode()
        store.set(f"{newest}/{rank}", mine)
        if store.check([f"{newest}/answer to {mine}"]):
            return newest
        time.sleep(0.02)


@contextmanager
def main_first() -> Iterator[None]:
    """Let rank 0 go through the block before the others, which then find its files."""
    if not is_main():
        gathered(None)
    try:
        yield
    finally:
        if is_main():
            gathered(None)


class Replicas(nn.DataParallel[nn.Module]):
    """nn.DataParallel whose replicas compute in the autocast type of the thread that calls it.

    torch tells its threads whether autocast is on, but not its type: on GPUs they would compute in
    float16 instead of bfloat16.
    """

    def parallel_apply(
        self, replicas: Sequence[nn.Module], inputs: Sequence[Any], kwargs: Any
    ) -> list[Any]:
        kind = self.src_device_obj.type
        enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

        def cast(replica: nn.Module, *positional: Any, **named: Any) -> Any:
            with torch.autocast(kind, dtype, enabled=enabled):
                return replica(*positional, **named)

        casting: list[Any] = [partial(cast, replica) for replica in replicas]
        return super().parallel_apply(casting, inputs, kwargs)


def parallel(network: nn.Module, devices: list[torch.device]) -> nn.Module:
    """The network as it is trained: wrapped for several processes or several devices.

    Batch norm is over all processes, so no buffers need be sent. DDP's static_graph would gain
    nothing: every parameter is used in every step.
    """
    if dist.is_initialized():
        synchronise_batch_norm(network)
        ids = [devices[0]] if devices[0].type == "cuda" else None
        with warnings.catch_warnings():  # torch 2.14 has a new name for broadcast_buffers
            warnings.simplefilter("ignore", FutureWarning)
            return nn.parallel.DistributedDataParallel(
                network, ids, gradient_as_bucket_view=True, broadcast_buffers=False
            )
    if len(devices) > 1:
        return Replicas(network, devices)
    return network


def exchange(model: nn.Module, due: bool) -> AbstractContextManager[None]:
    """For a pass of ``model``: unless ``due``, each process keeps its gradients to itself.

    They add up until a pass that is due sends their sums: a step of several batches sends
    gradients once. Batch norm still is over all processes.
    """
    if due or not isinstance(model, nn.parallel.DistributedDataParallel):
        return nullcontext()
    return model.no_sync()


def local(model: nn.Module) -> nn.Module:
    """The network without DDP, for evaluation: processes may have different numbers of batches."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def total(figures: Tensor) -> Tensor:
    """The sum of ``figures`` over all processes."""
    if dist.is_initialized():
        figures = figures.clone()
        dist.all_reduce(figures)
    return figures


def largest(number: int) -> int:
    """The largest of one host-side number per process."""
    return max(gathered(number))


class Question:
    """The largest of one host-side number per process, answered when it is next asked for.

    So nobody waits for the slowest process, and all have the same answer in the same step.
    """

    def __init__(self) -> None:
        self.asked: tuple[dist.Work, Tensor] | None = None

    def ask(self, number: int) -> int:
        """The answer to what was asked before; if that is 0 or nothing, ask with ``number``.

        In one process the answer is ``number``, at once.
        """
        if not dist.is_initialized():
            return number
        answer = self.answer()
        if not answer:
            agreed = torch.tensor(number)
            self.asked = dist.all_reduce(agreed, dist.ReduceOp.MAX, async_op=True), agreed
        return answer

    def answer(self) -> int:
        """Wait for the answer to what was asked; 0 without a question."""
        if self.asked is None:
            return 0
        work, agreed = self.asked
        work.wait()
        self.asked = None
        return int(agreed)


def gathered(value: T) -> list[T]:
    """A plain value of every process, in the order of their ranks."""
    if not dist.is_initialized():
        return [value]
    values = [value] * world()
    dist.all_gather_object(values, value)
    return values


def copy_from_main(network: nn.Module) -> None:
    """Give every process rank 0's parameters and buffers."""
    if dist.is_initialized():
        for tensor in network.state_dict().values():
            dist.broadcast(tensor, 0)


def check_equal(network: nn.Module) -> None:
    """Raise RuntimeError unless all processes hold the same network, by a hash of its tensors."""
    if dist.is_initialized():
        digest = hashlib.sha256()
        for name, tensor in network.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.cpu().numpy().tobytes())
        if len(set(gathered(digest.hexdigest()))) > 1:
            raise RuntimeError("the processes hold different networks")


def stop() -> None:
    """Leave the process group, as all of its processes do."""
    if dist.is_initialized():
        # DDP's wrappers are circles that keep the group's threads. A thread that lets go of a
        # tensor while the interpreter ends would abort the process.
        gc.collect()
        dist.destroy_process_group()
        Failure.store = None
