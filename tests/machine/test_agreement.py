"""machine.distributed.Question: several processes stop together without waiting each step."""

import pytest

from tests.machine import groups
from tests.machine.stopping import STEP
from utils.machine import distributed


@pytest.mark.slow
def test_two_processes_stop_after_the_same_step_and_wait_for_nobody(tmp_path):
    groups.succeed("tests.machine.stopping", tmp_path)
    # Asked in the step in which it came, answered in the one after it.
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == [f"15 {STEP + 1}"] * 2


def test_alone_the_answer_comes_at_once():
    assert [distributed.Question().ask(number) for number in (0, 15)] == [0, 15]
    assert distributed.Question().answer() == 0


def test_in_a_group_the_answer_comes_at_the_next_question(group):
    distributed.start([0])
    question = distributed.Question()
    assert [question.ask(number) for number in (0, 15, 2)] == [0, 0, 15]
    assert question.answer() == 0  # what has been answered is not asked on
