import pytest
import torch
import torchvision.transforms.functional as TF
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from utils.data import batches
from utils.data.images import ImageSet
from utils.errors import InputError


def made(count: int) -> ImageSet:
    """Random images; the label of an image is its index."""
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return ImageSet(images, torch.arange(count), ("one",))


def labels_of(epoch) -> list[list[int]]:
    return [labels.tolist() for _, labels in epoch]


def same(first, second) -> bool:
    """Whether two series of batches are bit-equal."""
    pairs = list(zip(first, second, strict=True))
    assert pairs
    return all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))


def columns(shares: list[list]) -> list[list]:
    """What each process has of a batch, batch by batch."""
    return [list(ranks) for ranks in zip(*shares, strict=True)]


def by_torchvision(image: Tensor, top: int, left: int, flip: bool) -> Tensor:
    """One image uint8 [3, 32, 32] augmented and normalised by torchvision."""
    crop = TF.crop(TF.pad(image, [4]), top, left, 32, 32)
    return normalised(TF.hflip(crop) if flip else crop)


def normalised(image: Tensor) -> Tensor:
    pixels = TF.convert_image_dtype(image, torch.float32)
    return TF.normalize(pixels, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


def test_augmentation_is_torchvisions():
    images = made(300)
    order, top, left, flip = batches.draw_epoch(300, seed=5, epoch=2)
    found = list(batches.TrainBatches(images, 64, seed=5).epoch(2))
    assert [len(labels) for _, labels in found] == [64, 64, 64, 64, 44]
    assert torch.equal(torch.cat([labels for _, labels in found]), order)
    pixels = torch.cat([pixels for pixels, _ in found])
    for position, index in enumerate(order):
        where = (int(top[position]), int(left[position]), bool(flip[position]))
        wanted = by_torchvision(images.images[index], *where)
        torch.testing.assert_close(pixels[position], wanted, rtol=0, atol=1e-6)


def test_draws_cover_all_crops_and_flip_half():
    order, top, left, flip = batches.draw_epoch(20000, seed=0, epoch=0)
    assert torch.equal(order.sort().values, torch.arange(20000))
    for offsets in (top, left):
        assert offsets.unique().tolist() == list(range(9))
        assert offsets.bincount().min() > 2000  # 2222 expected, standard deviation 44
    assert abs(flip.float().mean() - 0.5) < 0.02
    assert abs(torch.corrcoef(torch.stack([top, left, flip]).float()) - torch.eye(3)).max() < 0.03


def test_every_draw_changes_with_seed_and_epoch():
    draws = [batches.draw_epoch(500, *pair) for pair in ((0, 0), (0, 1), (1, 0), (1, 1))]
    for kind in zip(*draws, strict=True):
        assert len({tuple(draw.tolist()) for draw in kind}) == 4


def test_epochs_repeat_and_differ():
    train = batches.TrainBatches(made(50), 16, seed=3)
    assert same(train.epoch(0), train.epoch(0))
    assert same(train.epoch(7), batches.TrainBatches(made(50), 16, seed=3).epoch(7))
    assert not same(train.epoch(0), train.epoch(1))
    assert not same(train.epoch(0), batches.TrainBatches(made(50), 16, seed=4).epoch(0))


def test_the_images_stay_as_they_are():
    images = made(20)
    list(batches.TrainBatches(images, 8, seed=0).epoch(0))
    list(batches.TestBatches(images, 8))
    assert torch.equal(images.images, made(20).images)


def test_the_global_generator_is_neither_read_nor_moved():
    train = batches.TrainBatches(made(40), 16, seed=0)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = list(train.epoch(0))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert same(first, train.epoch(0))


@pytest.mark.parametrize("first", range(6))
def test_an_epoch_goes_on_where_it_stopped(first):
    train = batches.TrainBatches(made(75), 16, seed=0)
    whole = list(train.epoch(4))
    rest = list(train.epoch(4, first_batch=first))
    assert len(whole) == len(train) == 5
    assert len(rest) == 5 - first
    assert not rest or same(whole[first:], rest)


@pytest.mark.parametrize("world", [2, 3, 5])
def test_the_processes_share_the_batches_of_one(world):
    images = made(90)
    single = list(batches.TrainBatches(images, 16, seed=1).epoch(0))
    parts = [batches.TrainBatches(images, 16, 1, rank, world) for rank in range(world)]
    shares = [list(part.epoch(0)) for part in parts]
    assert all(len(part) == len(share) == 6 for part, share in zip(parts, shares, strict=True))
    joined = [[torch.cat(part) for part in zip(*ranks, strict=True)] for ranks in columns(shares)]
    assert same(single, joined)
    sizes = [len(labels) for share in shares for _, labels in share[:5]]
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(2, 200), st.integers(1, 50), st.integers(1, 50), st.integers(1, 4))
def test_any_number_of_processes_has_the_batches_of_one(count, batch_size, world, iter_size):
    world = min(world, batch_size)
    single = batches.train_shares(count, batch_size, 0, 1, iter_size=iter_size)
    ranks = [
        batches.train_shares(count, batch_size, rank, world, iter_size=iter_size)
        for rank in range(world)
    ]
    for one, *parts in zip(single, *ranks, strict=True):
        positions = [p for part in parts for p in range(*part.positions.indices(count))]
        assert positions == list(range(*one.positions.indices(count)))
        assert {part.steps for part in parts} == {one.steps}


@pytest.mark.parametrize(("first", "second"), [(2, 1), (1, 2), (2, 7)])
def test_another_number_of_processes_goes_on_with_the_same_batches(first, second):
    """123 images in batches of 20, of which the last has 3."""

    def epoch(world: int, start: int = 0) -> list[list[int]]:
        parts = [batches.TrainBatches(made(123), 20, 1, rank, world) for rank in range(world)]
        shares = [labels_of(part.epoch(0, start)) for part in parts]
        return [[label for labels in ranks for label in labels] for ranks in columns(shares)]

    whole = epoch(first)
    assert [len(labels) for labels in whole] == [20] * 6 + [3]
    assert epoch(second, 4) == whole[4:]


def test_the_processes_resume_too():
    part = batches.TrainBatches(made(90), 16, 1, rank=1, world=2)
    assert same(list(part.epoch(0))[3:], part.epoch(0, first_batch=3))


@pytest.mark.parametrize(
    ("count", "batch_size", "world", "sizes"),
    [
        (64, 16, 1, [16] * 4),
        (66, 16, 1, [16] * 4 + [2]),
        (65, 16, 1, [16] * 4),
        (67, 16, 2, [16] * 4 + [3]),
        (65, 16, 4, [16] * 4),
        (66, 16, 4, [16] * 4 + [2]),
        (68, 16, 2, [16] * 4 + [4]),
        (10, 16, 1, [10]),
        (2, 16, 1, [2]),
        (4, 16, 2, [4]),
        (3, 1, 1, [1] * 3),
        (5, 3, 3, [3, 2]),
    ],
)
def test_a_last_batch_needs_two_images_whatever_the_processes(count, batch_size, world, sizes):
    parts = [batches.TrainBatches(made(count), batch_size, 0, r, world) for r in range(world)]
    shares = [labels_of(part.epoch(0)) for part in parts]
    assert [sum(map(len, ranks)) for ranks in columns(shares)] == sizes
    assert all(len(part) == len(sizes) for part in parts)
    seen = [label for share in shares for labels in share for label in labels]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(("count", "world", "least"), [(1, 1, 2), (1, 2, 2), (0, 1, 2)])
def test_too_few_training_images(count, world, least):
    with pytest.raises(InputError, match=f"^{count} training images: .* at least {least}$"):
        batches.TrainBatches(made(count), 16, seed=0, rank=0, world=world)


def parts_of(size: int, devices: int) -> list[int]:
    """What nn.DataParallel's scatter gives to each device, which is torch.chunk."""
    parts = [len(part) for part in torch.arange(size).chunk(devices)]
    return parts + [0] * (devices - len(parts))


@given(st.integers(1, 200), st.integers(2, 17))
def test_the_smallest_part_is_that_of_torch_chunk(size, devices):
    assert batches.smallest_part(size, devices) == min(parts_of(size, devices))


@pytest.mark.parametrize(
    ("count", "batch_size", "devices", "sizes"),
    [
        (64 + 15, 64, 8, [64]),  # 7 x 2 + 1
        (64 + 16, 64, 8, [64, 16]),
        (64 + 17, 64, 8, [64]),  # 5 x 3 + 2 and two devices without any
        (64 + 23, 64, 8, [64, 23]),  # 7 x 3 + 2
        (16 + 3, 16, 2, [16]),
        (16 + 5, 16, 2, [16, 5]),
        (20 + 9, 20, 4, [20]),  # 3 x 3 and one device without any
    ],
)
def test_a_last_batch_needs_two_images_for_each_of_several_gpus(count, batch_size, devices, sizes):
    train = batches.TrainBatches(made(count), batch_size, 0, devices=devices)
    assert [len(labels) for labels in labels_of(train.epoch(0))] == sizes


@given(st.integers(2, 300), st.integers(2, 80), st.integers(2, 9))
def test_every_batch_of_several_gpus_has_two_images_for_each(count, batch_size, devices):
    try:
        taken = batches.train_shares(count, batch_size, 0, 1, devices)
    except InputError:
        assert min(parts_of(batch_size, devices)) < 2 or count < batch_size
        return
    sizes = [share.positions.stop - share.positions.start for share in taken]
    assert all(min(parts_of(size, devices)) >= 2 for size in sizes)
    assert count - sum(sizes) < batch_size


@pytest.mark.parametrize(
    ("batch_size", "devices", "least", "right"), [(15, 8, 1, 16), (18, 8, 0, 24), (1, 2, 0, 4)]
)
def test_a_batch_that_several_gpus_cannot_share_is_refused(batch_size, devices, least, right):
    message = rf"^--train-batch {batch_size}: leaves {least} image.* {devices} GPUs.* {right} would"
    with pytest.raises(InputError, match=message):
        batches.TrainBatches(made(60), batch_size, 0, devices=devices)
    batches.TrainBatches(made(60), right, 0, devices=devices)


def test_too_few_training_images_for_several_gpus():
    for count, least in ((15, 16), (17, 24)):
        with pytest.raises(InputError, match=f"^{count} training images: .* at least {least}$"):
            batches.TrainBatches(made(count), 64, 0, devices=8)


def test_a_batch_smaller_than_the_processes():
    with pytest.raises(InputError, match="--train-batch 2: must be at least 3"):
        batches.TrainBatches(made(10), 2, seed=0, rank=0, world=3)
    with pytest.raises(InputError, match="--test-batch 2: must be at least 3"):
        batches.TestBatches(made(10), 2, rank=0, world=3)


def test_test_batches_are_in_order_and_only_normalised():
    images = made(25)
    found = list(batches.TestBatches(images, 10))
    assert len(found) == len(batches.TestBatches(images, 10)) == 3
    assert [label for _, labels in found for label in labels.tolist()] == list(range(25))
    pixels = torch.cat([pixels for pixels, _ in found])
    torch.testing.assert_close(pixels, normalised(images.images), rtol=0, atol=1e-6)
    assert same(found, batches.TestBatches(images, 10))


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("count", [20, 21, 23, 2])
def test_each_test_image_goes_to_one_process(count, world):
    parts = [batches.TestBatches(made(count), 10, rank, world) for rank in range(world)]
    found = [labels_of(part) for part in parts]
    assert [len(part) for part in parts] == [len(batch) for batch in found]
    assert all(labels for part in found for labels in part)
    seen = sorted(label for part in found for labels in part for label in labels)
    assert seen == list(range(count))
    if count >= 10:
        assert sorted(label for part in found for label in part[0]) == list(range(10))


@given(st.integers(0, 200), st.integers(1, 50), st.integers(1, 9))
def test_shares_cut_every_batch_evenly_and_leave_nothing_out(count, batch_size, world):
    ranks = [batches.shares(count, batch_size, rank, world) for rank in range(world)]
    cut = [share.positions for shares in zip(*ranks, strict=True) for share in shares]
    assert [p for taken in cut for p in range(taken.start, taken.stop)] == list(range(count))
    for number, shares in enumerate(zip(*ranks, strict=True)):
        sizes = [share.positions.stop - share.positions.start for share in shares]
        assert sum(sizes) == min(batch_size, count - number * batch_size)
        assert max(sizes) - min(sizes) <= 1
        # The mean over processes of (weight x mean over a share) is the mean over the batch.
        for share, size in zip(shares, sizes, strict=True):
            assert share.weight / world == pytest.approx(size / sum(sizes))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_batches_are_the_same_on_a_gpu():
    images = made(100)
    moved = images.to("cuda")
    pairs = [
        (batches.TrainBatches(images, 32, 0).epoch(1), batches.TrainBatches(moved, 32, 0).epoch(1)),
        (batches.TestBatches(images, 32), batches.TestBatches(moved, 32)),
    ]
    for host, device in pairs:
        for (pixels, labels), (there, labels_there) in zip(host, device, strict=True):
            assert there.is_cuda and torch.equal(labels, labels_there.cpu())
            torch.testing.assert_close(there.cpu(), pixels, rtol=0, atol=1e-6)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("iter_size", [1, 2, 3, 50])
def test_a_step_weighs_every_image_alike(world, iter_size):
    """Weight times the mean over a process's images: 1 / images of the step, for each image."""
    ranks = [
        batches.train_shares(107, 10, rank, world, iter_size=iter_size) for rank in range(world)
    ]
    assert [share.steps for share in ranks[0]] == [
        number % iter_size == 0 or number == 11 for number in range(1, 12)
    ]
    for start in range(0, 11, iter_size):
        images = min(107, 10 * (start + iter_size)) - 10 * start
        for share in (share for rank in ranks for share in rank[start : start + iter_size]):
            taken = share.positions.stop - share.positions.start
            assert share.weight / taken / world == pytest.approx(1 / images)
    if iter_size == 1:
        assert ranks == [batches.shares(107, 10, rank, world) for rank in range(world)]
