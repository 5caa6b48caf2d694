"""tests.copies: a copy is as what was made, its own, and the random numbers go on alike."""

import torch

from tests.copies import copied
from tests.helpers import batch, loss_of, rebuilt, same_tensors, worn

made = []


@copied
def drawn(count: int, *, twice: bool = False) -> tuple[torch.nn.Parameter, dict]:
    made.append((count, twice))
    torch.manual_seed(count)
    parameter = torch.nn.Parameter(torch.rand(count).expand(2, count).contiguous().T)
    return parameter, {"again": parameter}


def test_it_is_made_once_for_the_same_arguments_and_copied():
    first, others = drawn(3)
    after = torch.rand(2)
    torch.manual_seed(9)
    second, _ = drawn(3)
    assert torch.equal(torch.rand(2), after)
    assert torch.equal(first, second) and first.stride() == second.stride()
    assert isinstance(second, torch.nn.Parameter) and others["again"] is first
    with torch.no_grad():
        first.zero_()
    assert second.all() and drawn(3)[0].all()
    assert len(drawn(4)[0]) == len(drawn(3, twice=True)[0]) + 1
    assert made == [(3, False), (4, False), (3, True)]


def test_copies_of_networks_share_nothing_and_are_as_made():
    for make in (lambda: worn("basic"), lambda: rebuilt("bottleneck", "full")[0]):
        first, second = make(), make()
        state = make().state_dict()
        loss_of(first.train(), *batch()).backward()
        with torch.no_grad():
            for tensor in (*first.parameters(), *first.buffers()):
                tensor.add_(1)
        assert same_tensors(second.state_dict(), state)
        assert not {id(m) for m in first.modules()} & {id(m) for m in second.modules()}
        assert all(parameter.grad is None for parameter in second.parameters())
    assert same_tensors(worn("basic").state_dict(), worn.__wrapped__("basic").state_dict())
