"""The study's lengths, schedules, widths and command lines."""

import json
from dataclasses import replace
from functools import cache

import pytest

import models
import nr
from tests.helpers import kill, prunable
from tests.running import try_once
from tests.study import jobs
from tests.study.jobs import Job, Places, Searched, shape, start_words, stretched, words
from tests.study.settings import ALL_ARMS, ARMS, COMPUTE, GROUPS, Setting
from tests.study.settings import A as SETTING_A
from tests.study.settings import B as SETTING_B
from utils.training.options import NO_REJUVENATION

SPEC = {"family": "cifar", "arch": "vgg19_bn", "options": {"width_mult": 0.25, "num_classes": 10}}
RUNS = "runs"


@pytest.fixture
def places(tmp_path) -> Places:
    return Places(tmp_path / RUNS, tmp_path / "images", tmp_path / "imagenet")


@cache
def searched(epochs: int = 25, form: str = "removed") -> Searched:
    """A search of VGG-19 x0.25 at whose end half of every layer was live."""
    network = models.build("cifar", "vgg19_bn", **SPEC["options"])
    for name, layer in prunable(network).items():
        kill(network, {name: slice(layer.unit.out_channels[0] // 2)})
    nr.rejuvenate(network, form)
    return Searched(epochs, json.dumps(SPEC), json.dumps(nr.structure(network)))


def job(arm: str, seed: int = 1, setting: Setting = SETTING_A) -> Job:
    return Job(setting, ARMS[arm], seed)


def test_a_first_seed_comes_whole_before_the_second():
    names = [found.name for found in jobs.all_jobs((SETTING_A,), None)]
    count = len(ALL_ARMS)
    assert names[0] == "a-search-seed1"
    assert all(name.endswith("-seed1") for name in names[:count])
    assert all(name.endswith("-seed3") for name in names[2 * count :]) and len(names) == 3 * count
    assert [found.seed for found in jobs.all_jobs((SETTING_A,), [7])] == [7] * count


@pytest.mark.parametrize(
    ("schedule", "epochs", "longer", "expected"),
    [
        ((20, 30), 40, 40, (20, 30)),
        ((20, 30), 40, 65, (33, 49)),  # 32.5 and 48.75
        ((150, 225), 300, 380, (190, 285)),
        ((2,), 3, 7, (5,)),  # 4.67
    ],
)
def test_schedules_fall_at_the_same_fractions(schedule, epochs, longer, expected):
    assert stretched(schedule, epochs, longer) == expected


def test_lengths_of_the_arms():
    # Half of each layer live and removed connections: half the multiply-adds but for the stem.
    found = searched(epochs=25)
    shapes = {arm: shape(job(arm), found) for arm in ALL_ARMS}
    assert shapes["search"].schedule == (40,)  # the learning rate does not fall
    for arm in ("plain", "nr-cr", "nr-ca", "full", "nr-fs", "pruned", "two-rounds"):
        assert (shapes[arm].epochs, shapes[arm].schedule) == (40, (20, 30))
    assert (shapes["plain-long"].epochs, shapes["plain-long"].schedule) == (65, (33, 49))
    plain, rejuvenated = (jobs.macs(found.spec, s) for s in (None, found.structure))
    assert shapes["plain-compute"].epochs == round(25 + 40 * rejuvenated / plain) == 45
    assert shapes["plain-narrow"].epochs == 65
    assert {shapes[arm].width for arm in ALL_ARMS if arm != "plain-narrow"} == {0.25}


def test_no_plain_run_of_nearly_the_same_length():
    """With nothing removed NR-CR costs what the plain network costs: plain-long is the answer."""
    assert shape(job("plain-compute"), searched(form="full")) is None
    assert shape(job("plain-compute"), searched()) is not None
    assert ARMS["plain-compute"].length == COMPUTE


def test_the_narrow_network_has_the_parameters_nearest_to_those_of_nr_cr():
    found = searched()
    width = shape(job("plain-narrow"), found).width

    def off(width: float) -> int:
        options = SPEC["options"] | {"width_mult": width}
        network = models.build("cifar", "vgg19_bn", **options)
        wanted = nr.count_params(jobs.network(found.spec, found.structure))
        return abs(nr.count_params(network) - wanted)

    assert 0.1 < width < 0.25
    assert off(width) <= min(off(width + 0.001), off(width - 0.001))
    assert off(width) <= min(off(0.001 * step) for step in range(150, 200, 5))


def test_an_arm_of_a_search_starts_from_its_last_network(places):
    shaped = shape(job("nr-ca", seed=2), searched())
    first = start_words(job("nr-ca", seed=2), places, shaped, begun=False)
    before = places.runs / "a-search-seed2" / "NR_vgg19_bn_before_0.25.pth.tar"
    assert first[first.index("--resume") + 1] == str(before)
    again = start_words(job("nr-ca", seed=2), places, shaped, begun=True)
    assert again == [*first[:-1], "auto"]


def test_command_lines_of_setting_a(places):
    shared = (
        f"cifar.py -a vgg19_bn -d folder --data {places.data} --amp --subset 5000"
        " --width-mult 0.25 --epochs {} --schedule {} {} --manualSeed 1"
    )
    expected = {
        "search": (
            "40",
            "40",
            "--nr-target 0.25 --nr-sparsity 0.0014 --nr-max-epochs 45 --nr-compress-only",
        ),
        "plain": ("40", "20 30", "--nr-target 1"),
        "nr-cr": ("40", "20 30", "--nr-target 0.25 --nr-cross removed"),
        "pruned": ("40", "20 30", "--nr-target 0.25 --nr-cross none"),
        "two-rounds": (
            "40",
            "20 30",
            "--nr-target 0.25 --nr-sparsity 0.0014 --nr-max-epochs 45 --nr-cross removed"
            " --nr-rounds 2",
        ),
        "plain-long": ("65", "33 49", "--nr-target 1"),
    }
    for arm, parts in expected.items():
        line = words(job(arm), places, shape(job(arm), searched()))
        folder = places.runs / f"a-{arm}-seed1"
        assert " ".join(line) == f"{shared.format(*parts)} -c {folder}"


@pytest.mark.parametrize("setting", [SETTING_A, replace(SETTING_B, arms=ALL_ARMS)])
def test_two_rounds_start_from_the_search_of_their_seed(setting, places):
    found = job("two-rounds", 2, setting)
    assert found in jobs.all_jobs((setting,), None)
    line = start_words(found, places, shape(found, searched()), begun=False)
    before = places.runs / f"{setting.name}-search-seed2" / "NR_vgg19_bn_before_0.25.pth.tar"
    assert line[-2:] == ["--resume", str(before)]
    assert found.arm.needs_search and found.arm.rounds == 2


def test_without_a_folder_the_images_are_torchvisions(places):
    """Beside cifar.py's own, and the pilots' beside them."""
    places = replace(places, data=None)
    assert places.filled(SETTING_A.data) == "-d cifar10 --data data"
    (pilot, *_) = GROUPS["pilot a"]
    assert places.filled(pilot.data) == "-d folder --data data/cifar10-heldout"
    assert jobs.data_of(pilot, places) == "CIFAR-10, held-out training images"
    assert jobs.data_of(SETTING_A, places) == "CIFAR-10"


def test_evaluation_is_on_every_test_image_with_the_last_network(places):
    shaped = shape(job("plain"), None)
    line = jobs.evaluation_words(job("plain"), places, shaped, "checkpoint.pth.tar")
    assert "--subset" not in line and "5000" not in line
    assert line[-3:] == ["--resume", str(places.runs / "a-plain-seed1/checkpoint.pth.tar"), "-e"]
    trained = words(job("plain"), places, shaped)
    assert [word for word in trained if word not in line] == ["--subset", "5000"]


@pytest.mark.parametrize("group", GROUPS)
def test_every_command_line_is_one_that_its_script_takes(group, places, monkeypatch):
    try_once(monkeypatch)
    for found in jobs.all_jobs(GROUPS[group], None):
        width = found.setting.width
        known = searched() if found.setting.network == SETTING_A.network else None
        if found.arm.needs_search and (known is None or width != 0.25):
            continue  # widths of another network
        shaped = shape(found, known)
        line = words(found, places, shaped)
        spec = json.loads(jobs.parsed_spec(line))
        assert spec["options"].get("width_mult", 1) == shaped.width
        assert (shaped.width == width) != found.arm.narrow
        script = jobs.cifar if line[0] == "cifar.py" else jobs.imagenet
        args, _ = script.parse(line[1:])
        assert (args.nr_target >= NO_REJUVENATION) == found.arm.name.startswith("plain")
        assert args.nr_rounds == found.arm.rounds
        assert args.checkpoint == str(places.runs / found.name)
        assert "-" not in found.setting.name


def test_the_published_settings_are_those_of_the_specification(places):
    from utils.report.tables import PUBLISHED_CIFAR, PUBLISHED_IMAGENET

    lines = [
        " ".join(words(found, places, shape(found, None)))
        for found in jobs.all_jobs(GROUPS["paper cifar"], None)
        if found.arm.name == "nr"
    ]
    assert len(lines) == len(PUBLISHED_CIFAR)
    for line, (_, _, data, sparsity, _) in zip(lines, PUBLISHED_CIFAR, strict=True):
        args, _ = jobs.cifar.parse(line.split()[1:])
        assert (args.epochs, args.schedule, args.nr_target) == (300, [150, 225], 0.25)
        assert args.nr_sparsity == float(sparsity)
        assert args.dataset == data.lower().replace("-", "")
    assert len(GROUPS["paper imagenet"]) == len(PUBLISHED_IMAGENET)


def test_the_blocks_of_a_rejuvenated_network_make_up_its_convolutions():
    """Without the classifier: survived and rejuvenated those of NR-CR, with cross those of full."""
    blocks = jobs.block_macs(searched())
    own = blocks["survived"] + blocks["rejuvenated"]
    for form, expected in (("removed", own), ("full", own + blocks["cross"])):
        found = searched(form=form)
        network = jobs.network(found.spec, found.structure)
        classifier = sum(linear.weight.numel() for linear in network.classifier.linears)
        assert jobs.macs(found.spec, found.structure) - classifier == expected
