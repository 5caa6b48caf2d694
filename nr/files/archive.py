"""Files that hold a network whole, written whole or not at all, and sealed against damage.

A file is torch.save's zip archive. The archive's comment is a SHA-256 of all bytes before it, so
torch.load reads the file, and a flipped bit anywhere is noticed.
"""

import copy
import errno
import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from nr.files.building import Custom, build_on_meta, freeze
from nr.files.structure import ENDS, HELD, class_name, structure
from nr.network.checks import refuse_sharded
from nr.network.layers import Network
from nr.network.retiring import retire

UNLIKE = ("form", "in_channels", "out_channels", "channels", "image_size", "frozen", "bias", *HELD)
SEAL = b"sha256:"
SEAL_BYTES = len(SEAL) + 64
# What file systems answer that have no fsync, or none for folders, as CIFS, FUSE and Windows:
# the data is as safe as it can be there. A full or broken disk answers otherwise.
NO_SYNC = (
    errno.EINVAL,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EPERM,
    errno.EACCES,
    errno.EBADF,
    errno.EISDIR,
)


class FileError(ValueError):
    """A file that cannot be written or read, is damaged, or holds no network of nr's."""


def save(model: Network, path: str | Path) -> None:
    """Write the structure and weights of ``model`` to ``path``; nr.load reads them.

    Raises FileError naming the path, and ValueError for a network that is sharded or that nr cannot
    follow.
    """
    refuse_sharded(model)
    write_sealed(path, {"structure": structure(model), "state_dict": model.state_dict()})


@torch.inference_mode(False)
def load(path: str | Path, into: Network | None = None) -> Network:
    """The network of a file of nr.save or of the scripts, on the CPU, in eval mode.

    Frozen parameters stay frozen; older files do not name them, and there all train. ``into``: a
    network with the same modules, of any widths. It provides the modules that nr does not know,
    becomes the network of the file, on its own device and in its own mode, and is returned. Raises
    FileError naming the file for anything else; ``into`` is then as it was.
    """
    content = read_sealed(path)
    payload = content if isinstance(content, dict) else {}
    for key in ("structure", "state_dict"):
        if key not in payload:
            raise FileError(f"{path}: holds no network of nr's: no {key!r} in it")
    try:
        network = restored(payload["structure"], payload["state_dict"], into)
    except ValueError as error:
        raise FileError(f"{path}: its network cannot be rebuilt: {error}") from error
    if into is None:
        return network.eval()
    network.to(next(into.parameters()).device).train(into.training)
    old = list(into.parameters())
    into.features, into.classifier = network.features, network.classifier
    into.image_size, into.keep, into.freeze = network.image_size, network.keep, network.freeze
    retire(into, old)
    return into


def restored(
    description: Mapping[str, Any], weights: object, like: Network | None = None
) -> Network:
    """The described network with ``weights``, in train mode. Raises ValueError if they do not fit.

    It takes no memory until the shapes are known to match. ``like`` has the custom modules.
    """
    weights = _checked_weights(weights)
    network = build_on_meta(description, like and modules_of(like))
    if like is not None:
        if not alike(structure(network), structure(like)):
            raise ValueError("its modules are not those of the network to load into")
        if "frozen" not in description:
            _freeze_as(like, network)
    try:
        network.load_state_dict(weights, strict=True, assign=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(" ".join(str(error).split())[:200]) from error
    return network


def _freeze_as(like: Network, network: Network) -> None:
    """Freeze the parameters of ``network`` whose namesakes in ``like`` are frozen."""
    frozen = {name for name, parameter in like.named_parameters() if not parameter.requires_grad}
    freeze(network, [name for name, _ in network.named_parameters() if name in frozen])


def alike(a: object, b: object) -> bool:
    """Whether two descriptions have the same modules, of any widths, forms, flags and biases."""
    if not isinstance(a, dict) or not isinstance(b, dict):
        return a == b
    if a.get("type") == b.get("type") == "Graph":
        ends = all(a.get(name) == b.get(name) for name in ENDS)
        return ends and _alike_graphs(a["nodes"], b["nodes"])
    a, b = ({n: part for n, part in side.items() if n not in UNLIKE} for side in (a, b))
    return a.keys() == b.keys() and all(
        (name == "branch" and None in (a[name], b[name])) or alike(a[name], b[name]) for name in a
    )


def _alike_graphs(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    """Whether one has the nodes of the other, but for selections and dropped branches."""
    ops = [
        {node["name"]: node["op"] for node in nodes if not _is_pick(node["op"])} for nodes in (a, b)
    ]
    fewer, more = sorted(ops, key=len)
    return all(name in more and alike(op, more[name]) for name, op in fewer.items())


def _is_pick(op: object) -> bool:
    return isinstance(op, dict) and op["type"] == "Pick"


def modules_of(network: Network) -> Custom:
    """A function that finds copies of the custom modules of ``network``."""

    def find(place: str, name: str) -> nn.Module:
        found = dict(network.named_modules(remove_duplicate=False)).get(place)
        if found is None or class_name(found) != name:
            raise ValueError(f"{place}: the file has a {name[:100]}, the network to load into not")
        return copy.deepcopy(found)

    return find


def _checked_weights(weights: object) -> dict[str, Tensor]:
    """Tensors by name, without DataParallel's prefix, each as large as its memory."""
    if not isinstance(weights, Mapping):
        raise ValueError(f"its weights are a {type(weights).__name__}, not a dict")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or not _is_plain(value):
            raise ValueError(f"its weights: {str(name)[:100]} is no tensor of real numbers")
        if value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise ValueError(f"its weights: {name[:100]} is larger than what is stored of it")
    return {name.removeprefix("module."): value for name, value in weights.items()}


def _is_plain(value: Tensor) -> bool:
    """Whether it holds numbers, one beside the other; a count of batches is an int."""
    real = value.is_floating_point() or value.ndim == 0
    return real and value.layout is torch.strided and not value.is_meta and not value.is_quantized


def write_sealed(path: str | Path, payload: object) -> None:
    """Write what torch.save writes, sealed and atomically, without a copy of the file in memory.

    Raises FileError naming the path.
    """
    with whole_file(Path(path)) as file:
        archive = Sealing(file)
        torch.save(payload, archive)  # type: ignore[arg-type] # torch only writes and flushes
        archive.seal()


def read_sealed(path: str | Path) -> object:
    """The content of a file, on the CPU; nothing is executed. Raises FileError naming it."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from error
    _check_seal(path, data)
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds; none of them may reach the user
        raise FileError(f"{path}: not a checkpoint, or a damaged one") from error


class Sealing:
    """torch.save writes a zip archive to this, and ``file`` gets it sealed.

    An archive without a comment ends with the length of the comment, two bytes, which are held
    back. ``seal`` raises the first error of ``file``: torch would turn some into its own.
    """

    def __init__(self, file: BinaryIO):
        self.file, self.hash, self.held = file, hashlib.sha256(), b""
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        count = len(data)
        if count < 2:
            data, self.held = self.held + bytes(data), b""
        self._pass_on(self.held)
        self._pass_on(data[:-2])
        self.held = bytes(data[-2:])
        return count

    def flush(self) -> None:
        """Does nothing: the file is flushed when all is in it."""

    def seal(self) -> None:
        """Write the archive's comment, the SHA-256 of all bytes before it. Raises OSError."""
        self._pass_on(SEAL_BYTES.to_bytes(2, "little"))
        if self.error is not None:
            raise self.error
        self.file.write(SEAL + self.hash.hexdigest().encode())

    def _pass_on(self, part: bytes | memoryview) -> None:
        self.hash.update(part)
        try:
            if self.error is None:
                self.file.write(part)
        except OSError as error:
            self.error = error


def _check_seal(path: str | Path, data: bytes) -> None:
    """Refuse damage. A file without a comment was saved again by torch.save, and may load."""
    body, end = data[:-SEAL_BYTES], data[-SEAL_BYTES:]
    if end.startswith(SEAL) and end[len(SEAL) :] == hashlib.sha256(body).hexdigest().encode():
        return
    if end.startswith(SEAL) or data[-2:] != b"\0\0":
        raise FileError(f"{path}: damaged, or not a checkpoint: its checksum does not match")


def write_atomically(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``, as ``whole_file`` does."""
    with whole_file(path) as file:
        file.write(data)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """After the block, ``path`` holds what it has written; if it fails, ``path`` is as it was.

    By a temporary file beside it, fsync, rename, and fsync of the folder; on a file system without
    fsync, by the rename alone. Raises FileError naming the path if the disk is full or the folder
    read-only.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            _sync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise FileError(f"{path}: could not be written: {error.strerror}") from error
        raise


def _sync_folder(folder: Path) -> None:
    """Let renames in ``folder`` survive a power cut, if folders can be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno in NO_SYNC:
            return
        raise
    try:
        _sync(handle)
    finally:
        os.close(handle)


def _sync(handle: int) -> None:
    """Put what is written on the disk, if the file system can be asked to."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
