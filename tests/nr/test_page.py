"""The loops of nr/README.md, as written: short, and each rebuilds the network."""

import re

import pytest
import torch

import nr
from tests.helpers import kill, same_tensors
from tests.running import ROOT

PAGE = (ROOT / "nr" / "README.md").read_text(encoding="utf-8")
SECTION = re.search(r"^## In your loop$(.*?)^## ", PAGE, re.DOTALL | re.MULTILINE)[1]
BEGIN, *LOOPS = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
KINDS = ["save", "GradScaler", "DistributedDataParallel", "AveragedModel", "lightning"]


def run(kind: str, monkeypatch, tmp_path) -> dict:
    """The names that the loop of this kind leaves, with half of the channels dead before it."""
    (code,) = (loop for loop in LOOPS if kind in loop)
    assert len(code.splitlines()) <= 15
    names: dict = {}
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(BEGIN, "page", "exec"), names)
    kill(names["network"], {"features.0": slice(8)})
    exec(compile(code, "page", "exec"), names)
    return names


def test_the_page_has_each_loop_once():
    assert [[kind for kind in KINDS if kind in loop] for loop in LOOPS] == [[k] for k in KINDS]


@pytest.mark.parametrize("kind", KINDS[:2])
def test_loops_of_one_process(kind, monkeypatch, tmp_path):
    names = run(kind, monkeypatch, tmp_path)
    assert names["network"].streams == 2 and names["search"].plan.layers[0].survivors == tuple(
        range(8, 16)
    )
    held = {id(p) for group in names["optimizer"].param_groups for p in group["params"]}
    assert held == {id(p) for p in names["network"].parameters()}
    if kind == "save":
        assert nr.load("network.pt").streams == 2


def test_the_loop_with_ddp(monkeypatch, tmp_path):
    """In a process that torchrun would have started."""
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": 0}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    try:
        names = run("DistributedDataParallel", monkeypatch, tmp_path)
        assert names["ddp"].module is names["network"] and names["network"].streams == 2
        assert len(names["search"].plan.layers[0].survivors) == 8
    finally:
        torch.distributed.destroy_process_group()


def test_the_loop_with_an_average(monkeypatch, tmp_path):
    names = run("AveragedModel", monkeypatch, tmp_path)
    average, network = names["average"].module, names["network"]
    assert nr.structure(average) == nr.structure(network) and network.streams == 2
    assert not same_tensors(average.state_dict(), network.state_dict())


def test_the_callback_of_lightning(monkeypatch, tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self, network: nr.Network):
            super().__init__()
            self.network, self.steps = network, 0

        def training_step(self, batch: tuple, _: int):
            self.steps += 1
            return nr.loss(self.network(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    names = run("lightning", monkeypatch, tmp_path)
    module, network = Module(names["network"]), names["network"]
    callback = names["Rejuvenate"]()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=2, callbacks=[callback], enable_model_summary=False, **quiet
    )
    before = network.features[0].norms[0].weight.detach().clone()
    trainer.fit(module, torch.utils.data.DataLoader(names["loader"], batch_size=None))
    assert network.streams == 2 and module.steps == 6
    assert trainer.optimizers[0] is callback.search.optimizer
    assert not torch.equal(network.features[0].norms[0].weight, before[8:])
