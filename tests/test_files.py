"""files: written whole or not at all."""

import errno
import os
import resource

import pytest

from utils.errors import InputError
from utils.files import write_atomically


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log.txt"


def failing(*_, **__):
    raise OSError(28, "No space left on device")


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_nothing_but_the_file_is_left(tmp_path):
    write_atomically(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_leaves_the_older_file_whole(monkeypatch, tmp_path, call):
    path = tmp_path / "file"
    path.write_bytes(b"older")
    monkeypatch.setattr(os, call, failing)
    with pytest.raises(InputError) as error:
        write_atomically(path, b"newer")
    assert str(error.value) == f"{path}: could not be written: No space left on device"
    assert path.read_bytes() == b"older"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EPERM, errno.EACCES])
@pytest.mark.parametrize("call", ["fsync", "open"])
def test_a_file_system_that_syncs_nothing_holds_the_whole_file(monkeypatch, tmp_path, call, code):
    """CIFS, FUSE and Windows refuse the fsync of a folder or to open it, some every fsync."""

    def refused(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, refused)
    write_atomically(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"
    assert names(tmp_path) == ["file"]


def test_a_full_disk_leaves_the_older_file_whole(tmp_path):
    """The system's limit on the size of a file stands for the end of the disk."""
    path = tmp_path / "file"
    path.write_bytes(b"older")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(InputError, match=r"file: could not be written: File too large$"):
            write_atomically(path, bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"older"
    assert names(tmp_path) == ["file"]


def test_the_data_is_on_the_disk_before_the_name_changes(monkeypatch, tmp_path):
    """fsync of the data, rename, fsync of the folder: the order that survives a power cut."""
    calls = []
    path = tmp_path / "file"
    fsync, replace = os.fsync, os.replace

    def spy_fsync(handle):
        calls.append(os.readlink(f"/proc/self/fd/{handle}"))
        assert calls[1:] or os.fstat(handle).st_size == 7  # flushed
        fsync(handle)

    def spy_replace(source, target):
        calls.append((os.fspath(source), os.fspath(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    write_atomically(path, b"content")
    temporary = str(tmp_path / ".file.tmp")
    assert calls == [temporary, (temporary, str(path)), str(tmp_path)]


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    path = tmp_path / "missing" / "log.txt"
    with pytest.raises(InputError) as error:
        write_atomically(path, b"row")
    assert str(error.value) == f"{path}: could not be written: No such file or directory"


def test_a_folder_in_the_place_of_the_file_is_refused(log):
    log.mkdir()
    with pytest.raises(InputError, match=r"log\.txt: could not be written: Is a directory$"):
        write_atomically(log, b"row")
    assert names(log.parent) == ["log.txt"]


@pytest.mark.parametrize("path", ["file/log.txt", "n" * 252 + ".txt"], ids=["file", "long"])
def test_a_path_that_cannot_even_be_tidied_up_is_refused(tmp_path, path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="could not be written"):
        write_atomically(tmp_path / path, b"row")


def test_a_read_only_file_system_is_refused(monkeypatch, log):
    """On one, unlink too may answer EROFS before it looks whether the file exists."""

    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("builtins.open", read_only)
    monkeypatch.setattr(os, "unlink", read_only)
    with pytest.raises(InputError, match="Read-only file system"):
        write_atomically(log, b"row")
