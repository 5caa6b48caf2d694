"""What is run, as data: arms, the settings that they are run in, and groups of settings."""

from dataclasses import dataclass, replace

TRAIN, BOTH, COMPUTE = "train", "search + train", "multiply-adds of NR-CR"  # lengths of an arm


@dataclass(frozen=True)
class Arm:
    """One way to train.

    ``flags``: beside those of its setting; ``searches``: it has a search of its own; ``resumes``:
    it starts from the network that its seed's search ended with; ``length``: how many epochs its
    train phase has; ``narrow``: as wide as gives it NR-CR's parameters; ``rounds``: of the method,
    each after the first with a search of its own.
    """

    name: str
    flags: str = ""
    searches: bool = False
    resumes: bool = False
    length: str = TRAIN
    narrow: bool = False
    rounds: int = 1

    @property
    def needs_search(self) -> bool:
        """Whether it can only start when its seed's search is done."""
        return self.resumes or self.length != TRAIN or self.narrow

    def searches_in(self, number: int) -> bool:
        """Whether the search of round ``number``, from 1, is its own."""
        return self.searches if number == 1 else number <= self.rounds


TWO_ROUNDS = "two-rounds"
SEARCH, NR_CR = "search", "nr-cr"
PLAIN_LONG, PLAIN_COMPUTE, PLAIN_NARROW = "plain-long", "plain-compute", "plain-narrow"
ARMS = {
    arm.name: arm
    for arm in (
        Arm(SEARCH, "--nr-compress-only", searches=True),
        Arm("plain", "--nr-target 1"),
        Arm(NR_CR, "--nr-cross removed", resumes=True),
        Arm("nr-ca", "--nr-cross attention", resumes=True),
        Arm("full", "--nr-cross full", resumes=True),
        Arm("nr-fs", "--nr-from-scratch", resumes=True),
        Arm("pruned", "--nr-cross none", resumes=True),
        Arm(TWO_ROUNDS, "--nr-cross removed --nr-rounds 2", resumes=True, rounds=2),
        Arm(PLAIN_LONG, "--nr-target 1", length=BOTH),
        Arm(PLAIN_COMPUTE, "--nr-target 1", length=COMPUTE),
        Arm(PLAIN_NARROW, "--nr-target 1", length=BOTH, narrow=True),
        Arm("nr", searches=True),  # search and train phase by one command
    )
}
PLAIN_ARMS = ("plain", PLAIN_LONG, PLAIN_COMPUTE, PLAIN_NARROW)
ALL_ARMS = tuple(name for name in ARMS if name != "nr")
IMAGES, HELD_OUT = "{images}", "-d folder --data {heldout}"  # CIFAR-10, or what --data names


@dataclass(frozen=True)
class Setting:
    """A network, data and a schedule, and the arms that are compared in it.

    ``name``: without a hyphen, since run folders are NAME-ARM-seedN; ``data``: flags, with the
    places that `places.Places` fills in; ``images``: --subset; ``sparsity``: λ, None where the
    script chooses it or nobody has yet; ``search_schedule`` and ``max_epochs``: of the search;
    ``threads``: of a run, None for as many as there are; ``evaluated``: on the whole test set.
    """

    name: str
    network: str
    data: str
    flags: str = ""
    images: int | None = None
    width: float = 1.0
    sparsity: float | None = None
    target: float = 0.25
    epochs: int = 40
    schedule: tuple[int, ...] = (20, 30)
    search_schedule: tuple[int, ...] = (40,)
    max_epochs: int = 45
    arms: tuple[str, ...] = ALL_ARMS
    seeds: tuple[int, ...] = (1, 2, 3)
    script: str = "cifar.py"
    threads: int | None = 1
    evaluated: bool = True

    @property
    def train_images(self) -> int:
        """Images of an epoch."""
        return self.images or (1_281_167 if self.script == "imagenet.py" else 50_000)

    @property
    def pilot(self) -> bool:
        """Whether it is there to choose λ, on held-out training images."""
        return self.data == HELD_OUT

    @property
    def chosen(self) -> bool:
        """Whether its λ is known, where it needs one."""
        searches = any(ARMS[name].searches for name in self.arms)
        return self.sparsity is not None or not searches or self.script == "imagenet.py"


A = Setting(
    "a", "-a vgg19_bn", IMAGES, "--amp", images=5000, width=0.25, sparsity=1.4e-3
)  # λ chosen on held-out training images: checkpoints/heldout
# Twice as wide on half as many images, trained until it knows them: most channels are to spare, and
# more epochs are no longer what a network lacks. Batches of 32 give as many steps an epoch as
# setting a has. λ is chosen by --pilot b: with 5e-4 the search stays at a utilization of 0.43, with
# 1e-3 NR-CR errs more than with 7e-4. The second milestone is late so that the plain network of
# the pilot gets to 95 % train accuracy.
B = Setting(
    "b",
    "-a vgg19_bn",
    IMAGES,
    "--amp --train-batch 32",
    images=2500,
    width=0.5,
    sparsity=7e-4,
    epochs=100,
    schedule=(50, 90),
    max_epochs=60,
    arms=(SEARCH, "plain", NR_CR, "nr-ca", "pruned", PLAIN_LONG, PLAIN_NARROW),
)
# So deep and narrow a network learns slowly: it spends most of its epochs at the first learning
# rate. λ is chosen by --pilot c: with 1.5e-3 the search stays at a utilization of 0.38.
C = Setting(
    "c",
    "-a resnet --depth 110",
    IMAGES,
    "--amp --train-batch 32 --lr 0.03",
    images=2500,
    width=0.25,
    sparsity=2e-3,
    epochs=60,
    schedule=(45, 54),
    max_epochs=60,
    arms=(SEARCH, "plain", NR_CR, "nr-ca", PLAIN_LONG),
)


def pilots(setting: Setting, *sparsities: float) -> tuple[Setting, ...]:
    """``setting`` on held-out training images: plain, and search and NR-CR for each λ."""
    name = f"pilot{setting.name}"
    pilot = replace(setting, data=HELD_OUT, seeds=(11,))
    return (
        replace(pilot, name=name, arms=("plain",), sparsity=None),
        *(
            replace(pilot, name=f"{name}_{value:g}", sparsity=value, arms=(SEARCH, NR_CR))
            for value in sparsities
        ),
    )


def published_cifar(name: str, network: str, dataset: str, sparsity: float) -> Setting:
    """A row of the paper's CIFAR table and its plain network (specification section 11)."""
    return Setting(
        name,
        network,
        f"-d {dataset} --data {{torchvision}}",
        "--gamma 0.1 --wd 1e-4",
        sparsity=sparsity,
        epochs=300,
        schedule=(150, 225),
        search_schedule=(150, 225),
        max_epochs=300,
        arms=("nr", "plain"),
        seeds=(1,),
        threads=None,
        evaluated=False,
    )


def published_imagenet(name: str, arch: str, epochs: int, batch: int) -> Setting:
    """A row of the paper's ImageNet table: λ grows by itself, scales are raised to 0.5."""
    schedule = (30, 60, 90) if epochs > 90 else (30, 60)
    return Setting(
        name,
        f"-a {arch}",
        "--data {imagenet} --image-size 224",
        f"--gamma 0.1 --train-batch {batch} --nr-bn-target 0.5",
        target=0.5,
        epochs=epochs,
        schedule=schedule,
        search_schedule=schedule,
        max_epochs=epochs,
        arms=("nr",),
        seeds=(1,),
        script="imagenet.py",
        threads=None,
        evaluated=False,
    )


VGG, RESNET = "-a vgg19_bn", "-a resnet --depth 110"
DENSENET = "-a densenet --depth 100 --growthRate 40 --train-batch 64"
QUICK = Setting(
    "quick",
    "-a resnet --depth 8",
    "-d synthetic",
    "--train-batch 10 --gamma 0.5 --lr 0.01",  # small steps of the penalty: each search ends
    images=200,
    width=0.25,
    sparsity=0.04,
    target=0.9,
    epochs=3,
    schedule=(2,),
    search_schedule=(20,),
    max_epochs=30,
    arms=(SEARCH, "plain", NR_CR, PLAIN_LONG),
    seeds=(1, 2),
)
# The published setting with every arm: settings by --setting are much smaller.
PUBLISHED_ARMS = replace(
    published_cifar("vgg19arms", VGG, "", 1.5e-4),
    data=IMAGES,
    arms=(SEARCH, "plain", NR_CR, "nr-ca", PLAIN_LONG),
    seeds=(1, 2, 3),
)
# What is asked for on the command line -> settings, in the order in which they are run.
GROUPS: dict[str, tuple[Setting, ...]] = {
    "setting a": (A,),
    "setting b": (B,),
    "setting c": (C,),
    "pilot a": pilots(A, 1e-3, 1.4e-3, 2e-3),
    "pilot b": pilots(B, 5e-4, 7e-4, 1e-3),
    "pilot c": pilots(C, 1.5e-3, 2e-3),
    "paper cifar": (
        published_cifar("vgg19c10", VGG, "cifar10", 1.5e-4),
        published_cifar("vgg19c100", VGG, "cifar100", 3e-4),
        published_cifar("resnet164c10", RESNET, "cifar10", 1.5e-4),
        published_cifar("resnet164c100", RESNET, "cifar100", 2.5e-4),
        published_cifar("densenet100c10", DENSENET, "cifar10", 1e-4),
        published_cifar("densenet100c100", DENSENET, "cifar100", 2e-4),
    ),
    "paper arms": (PUBLISHED_ARMS,),
    "paper imagenet": (
        published_imagenet("densenet121", "densenet121_nr", 90, 256),
        published_imagenet("vgg16", "vgg16_nr", 100, 128),
        published_imagenet("resnet18", "resnet18_nr", 90, 256),
        published_imagenet("resnet34", "resnet34_nr", 90, 256),
        published_imagenet("resnet50", "resnet50_nr", 90, 256),
        published_imagenet("resnet101", "resnet101_nr", 90, 256),
    ),
    "quick": (QUICK,),
}
