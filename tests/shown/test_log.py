"""shown.log: log.txt there and back."""

import pytest

from utils.errors import InputError
from utils.shown.log import read_log, rounds, write_log

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


@pytest.mark.parametrize(
    ("phases", "expected"),
    [
        ("", []),
        ("t t", [(0, 2)]),
        ("s s", [(2, 0)]),
        ("s s t", [(2, 1)]),
        ("s s t s", [(2, 1), (1, 0)]),
        ("s s t s t t", [(2, 1), (1, 2)]),
        ("t s t s t", [(0, 1), (1, 1), (1, 1)]),
    ],
)
def test_the_epochs_of_every_round(phases, expected):
    names = {"s": "search", "t": "train"}
    assert rounds([{"Phase": names[phase]} for phase in phases.split()]) == expected


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log.txt"


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_header_and_a_row_word_for_word(log):
    write_log(log, [ROW])
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
    write_log(log, [{"Value": value}])
    assert log.read_text() == f"Value\n{text}\n"


def test_there_and_back(log):
    rows = [ROW, ROW | {"Phase": "train", "Sparsity": 0.0, "Learning Rate": 5e-05, "Params": 7}]
    write_log(log, rows)
    assert read_log(log) == rows


def test_a_log_without_rows(log):
    write_log(log, [])
    assert read_log(log) == []


def test_six_digits_are_kept(log):
    write_log(log, [{"Utilization": 0.25002168353}])
    assert read_log(log) == [{"Utilization": 0.250022}]


def test_writing_again_replaces(log):
    write_log(log, [ROW, ROW])
    write_log(log, [ROW])
    assert read_log(log) == [ROW]
    assert names(log.parent) == ["log.txt"]


@pytest.mark.parametrize(
    "text",
    ["", "Loss\nx\n", "Loss\tPhase\n1\n", "Loss\n1\t2\n", "Loss\n\n", b"\xff\xfe\n1\n"],
    ids=repr,
)
def test_a_file_that_is_no_log_is_refused(log, text):
    log.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=r"log\.txt: not a log\.txt: ") as error:
        read_log(log)
    assert len(str(error.value).splitlines()) == 1


def test_a_log_that_is_not_there_is_refused(log):
    with pytest.raises(InputError, match=r"log\.txt: not a log\.txt: .*No such file"):
        read_log(log)
