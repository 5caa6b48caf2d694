"""Files of every version of the format: python -m tests.kept makes those of today's.

Once committed they stay as they are, and every later version loads them: tests/files/VERSION has
networks in all forms and a checkpoint of cifar.py, and in expected.json what they have to say.
Whoever raises nr.structure.VERSION, or adds to what it describes, runs this once and commits what
is new; a file that is there is not written again.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import cifar
import nr
from nr.files.structure import VERSION
from tests.helpers import kill, open_cross_blocks, vary
from tests.running import dying

FILES = Path(__file__).parent / "files"
EXPECTED = "expected.json"
CHECKPOINT = "checkpoint.pth.tar"
FORMS = ("plain", "removed", "attention", "full", "none")
FLAGS = "-d synthetic -a resnet --depth 8 --width-mult 0.125 --subset 50 --train-batch 10"
FLAGS += " --schedule 1 --nr-target 0.75 --nr-sparsity 1e-4 --manualSeed 1"  # --epochs 1


def every_module() -> nr.Network:
    """All containers, and plain modules of many kinds."""
    features = nr.Chain(
        nr.ConvBN(3, 4, 3, 2, padding=1, eps=1e-3, momentum=None),
        nn.LeakyReLU(0.2),
        nn.Sequential(nn.MaxPool2d((3, 2), 2, ceil_mode=True), nn.PReLU()),
        nr.Residual(nr.Chain(nr.ConvBN(4, 4, 3), nn.SiLU(), nr.ConvBN(4, 4, 1))),
        nr.Concat(nr.Chain(nr.ConvBN(4, 4, 3), nn.ReLU())),
        nn.Upsample(scale_factor=2.0),
        nr.ConvBN(8, 6, 1, momentum=0.3),
        nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1),
    )
    return nr.Network(features, nr.Classifier(6, num_classes=3), (12, 10))


class Torch(nn.Module):
    """To be converted: a grouped convolution, one without batch norm, layers without bias."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.deep, self.deep_norm = nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4)
        self.bare = nn.Conv2d(4, 4, 1)
        self.hidden, self.fc = nn.Linear(4, 5, bias=False), nn.Linear(5, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = self.bare(torch.relu(self.deep_norm(self.deep(x))))
        return self.fc(torch.relu(self.hidden(x.mean((2, 3)))))


class TorchGraph(nn.Module):
    """A norm before a convolution, a gate, halves, a sum of three, other windows."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.grow = nn.Conv2d(4, 4, (3, 1), padding=(2, 0), dilation=2)
        self.grow_norm, self.pre = nn.BatchNorm2d(4), nn.BatchNorm2d(8)
        self.join, self.join_norm = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.squeeze, self.excite = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)
        self.up, self.up_norm = nn.ConvTranspose2d(4, 4, 2, stride=2), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.cat([x, torch.relu(self.grow_norm(self.grow(x)))], 1)
        x = torch.relu(self.join_norm(self.join(torch.relu(self.pre(x)))))
        left, right = x.chunk(2, 1)
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(left.mean((2, 3), keepdim=True)))))
        x = left * gate + right + left
        return self.fc(torch.relu(self.up_norm(self.up(x))).mean((2, 3)))


def converted(model: nn.Module) -> nr.Network:
    return nr.convert(model.eval(), (12, 10))


def frozen() -> nr.Network:
    model = every_module()
    model.features[0].requires_grad_(False)
    model.classifier.linears[0].bias.requires_grad_(False)
    return model


def rejuvenated(model: nr.Network, form: str, dead: str) -> nr.Network:
    vary(model)
    if form != "plain":
        kill(model, {dead: [0, 1]})
        nr.rejuvenate(model, form)
        open_cross_blocks(model)
    return model


def networks() -> dict[str, nr.Network]:
    """Every network that a file is made of, by name of the file."""
    torch.manual_seed(0)
    found = {f"{form}.pt": rejuvenated(every_module(), form, "features.6") for form in FORMS}
    for form in ("plain", "removed"):
        network = rejuvenated(converted(Torch()), form, "features.conv")
        found |= {f"converted-{form}.pt": network}
    for form in FORMS:
        network = rejuvenated(converted(TorchGraph()), form, "features.stem")
        found |= {f"graph-{form}.pt": network}
    found["frozen.pt"] = vary(frozen())
    found["bfloat16.pt"] = vary(every_module()).bfloat16()
    return found


def images(model: nr.Network) -> Tensor:
    """Two images [2, 3, H, W] that no random generator has made."""
    size = model.image_size
    height, width = (size, size) if isinstance(size, int) else size
    count = 2 * 3 * height * width
    return torch.arange(count).mul(0.37).sin().reshape(2, 3, height, width)


@torch.no_grad()
def says(model: nr.Network) -> dict:
    """What a network computes, counts and trains, as plain data."""
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    return {
        "logits": model.eval().float()(images(model)).tolist(),
        "parameters": nr.count_params(model),
        "utilization": nr.utilization(model).ratio,
        "frozen": frozen,
    }


def main() -> int:
    """Write the files of this version that are not there yet."""
    folder = FILES / str(VERSION)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / EXPECTED
    expected = json.loads(path.read_text()) if path.exists() else {}
    for name, model in networks().items():
        if name not in expected:
            nr.save(model, folder / name)
            expected[name] = says(nr.load(folder / name))
    if CHECKPOINT not in expected:
        dying(0)()
        with tempfile.TemporaryDirectory() as run:
            cifar.main([*FLAGS.split(), "--epochs", "1", "-c", run])
            shutil.copy(f"{run}/{CHECKPOINT}", folder)
        expected[CHECKPOINT] = says(nr.load(folder / CHECKPOINT))
    path.write_text(json.dumps(expected, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
