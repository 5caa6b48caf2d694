"""utils.logger: log.txt there and back, and files written whole or not at all."""

import os
import resource

import pytest

from utils import logger
from utils.errors import InputError

ROW = {
    "Learning Rate": 0.1,
    "Train Loss": 2.25,
    "Valid Loss": 1.5,
    "Train Acc.": 12.5,
    "Valid Acc.": 50.0,
    "Phase": "search",
    "Utilization": 0.75,
    "Sparsity": 1.5e-4,
    "Params": 20035018,
    "Seconds": 3.5,
}


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log.txt"


def failing(*_, **__):
    raise OSError(28, "No space left on device")


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_header_and_a_row_word_for_word(log):
    logger.write_log(log, [ROW])
    assert log.read_bytes().decode() == (
        "Learning Rate\tTrain Loss\tValid Loss\tTrain Acc.\tValid Acc.\tPhase\tUtilization"
        "\tSparsity\tParams\tSeconds\n"
        "0.1\t2.25\t1.5\t12.5\t50\tsearch\t0.75\t0.00015\t20035018\t3.5\n"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.5e-4, "0.00015"),
        (5e-05, "5e-05"),
        (0.01, "0.01"),
        (0.1 * 0.1, "0.01"),
        (0.1 * 0.1 * 0.1, "0.001"),
        (0.0, "0"),
        (100.0, "100"),
        (1 / 3, "0.333333"),
        (1e-4, "0.0001"),
        (37706664, "37706664"),
        (0, "0"),
        ("train", "train"),
    ],
)
def test_how_a_value_is_written(log, value, text):
    logger.write_log(log, [{"Value": value}])
    assert log.read_text() == f"Value\n{text}\n"


def test_there_and_back(log):
    rows = [ROW, ROW | {"Phase": "train", "Sparsity": 0.0, "Learning Rate": 5e-05, "Params": 7}]
    logger.write_log(log, rows)
    assert logger.read_log(log) == rows


def test_a_log_without_rows(log):
    logger.write_log(log, [])
    assert logger.read_log(log) == []


def test_six_digits_are_kept(log):
    logger.write_log(log, [{"Utilization": 0.25002168353}])
    assert logger.read_log(log) == [{"Utilization": 0.250022}]


def test_writing_again_replaces(log):
    logger.write_log(log, [ROW, ROW])
    logger.write_log(log, [ROW])
    assert logger.read_log(log) == [ROW]
    assert names(log.parent) == ["log.txt"]


@pytest.mark.parametrize(
    "text",
    ["", "Loss\nx\n", "Loss\tPhase\n1\n", "Loss\n1\t2\n", "Loss\n\n", b"\xff\xfe\n1\n"],
    ids=repr,
)
def test_a_file_that_is_no_log_is_refused(log, text):
    log.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=r"log\.txt: not a log\.txt: ") as error:
        logger.read_log(log)
    assert len(str(error.value).splitlines()) == 1


def test_a_log_that_is_not_there_is_refused(log):
    with pytest.raises(InputError, match=r"log\.txt: not a log\.txt: .*No such file"):
        logger.read_log(log)


def test_nothing_but_the_file_is_left(tmp_path):
    logger.write_atomically(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_leaves_the_older_file_whole(monkeypatch, tmp_path, call):
    path = tmp_path / "file"
    path.write_bytes(b"older")
    monkeypatch.setattr(os, call, failing)
    with pytest.raises(InputError) as error:
        logger.write_atomically(path, b"newer")
    assert str(error.value) == f"{path}: could not be written: No space left on device"
    assert path.read_bytes() == b"older"
    assert names(tmp_path) == ["file"]


def test_a_full_disk_leaves_the_older_file_whole(tmp_path):
    """The system's limit on the size of a file stands for the end of the disk."""
    path = tmp_path / "file"
    path.write_bytes(b"older")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(InputError, match=r"file: could not be written: File too large$"):
            logger.write_atomically(path, bytes(5000))
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
    logger.write_atomically(path, b"content")
    temporary = str(tmp_path / ".file.tmp")
    assert calls == [temporary, (temporary, str(path)), str(tmp_path)]


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    path = tmp_path / "missing" / "log.txt"
    with pytest.raises(InputError) as error:
        logger.write_log(path, [ROW])
    assert str(error.value) == f"{path}: could not be written: No such file or directory"


def test_a_folder_in_the_place_of_the_file_is_refused(log):
    log.mkdir()
    with pytest.raises(InputError, match=r"log\.txt: could not be written: Is a directory$"):
        logger.write_log(log, [ROW])
    assert names(log.parent) == ["log.txt"]


@pytest.mark.parametrize("path", ["file/log.txt", "n" * 252 + ".txt"], ids=["file", "long"])
def test_a_path_that_cannot_even_be_tidied_up_is_refused(tmp_path, path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="could not be written"):
        logger.write_log(tmp_path / path, [ROW])


def test_a_read_only_file_system_is_refused(monkeypatch, log):
    """On one, unlink too may answer EROFS before it looks whether the file exists."""

    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("builtins.open", read_only)
    monkeypatch.setattr(os, "unlink", read_only)
    with pytest.raises(InputError, match="Read-only file system"):
        logger.write_log(log, [ROW])
