import threading
from types import SimpleNamespace

import pytest
import torch

from vae_lab.data.batches import BINARIZE_MODES, Batch, EpochSampler, ImageData
from vae_lab.data.decoding import Images
from vae_lab.errors import DataError
from vae_lab.training.module import check_same_images

SHAPE = (2, 3, 4)
TOTAL = 103


class Numbered:
    """A source whose image i holds the byte i in its first pixel, and noise elsewhere."""

    def __init__(self, num_test: int = 0, num_val: int = 0):
        self.num_test, self.num_val, self.reads = num_test, num_val, 0

    def read(self) -> Images:
        self.reads += 1
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (TOTAL, *SHAPE), dtype=torch.uint8, generator=generator)
        pixels[:, 0, 0, 0] = torch.arange(TOTAL)
        return Images(pixels, torch.arange(TOTAL)[:, None], ("number",), self.num_test, self.num_val)


def image_data(source=None, rank: int | None = None, world_size: int = 1, **changes) -> ImageData:
    arguments = {"image_shape": SHAPE, "batch_size": 8, "binarize": "none", "flip": False, "num_workers": 0}
    arguments |= {"val_size": 0.1, "test_size": 0.2, "split_seed": 0, "seed": 0, **changes}
    data = ImageData(source or Numbered(), **arguments)
    if rank is not None:
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
    data.setup("fit")
    return data


def numbers(loader) -> list[int]:
    """Which images a loader serves, in order."""
    return [number for batch in loader for number in batch.x[:, 0, 0, 0].tolist()]


def epoch(data: ImageData, number: int) -> list[int]:
    loader = data.train_dataloader()
    loader.batch_sampler.sampler.set_epoch(number)
    return numbers(loader)


def split_numbers(data: ImageData) -> dict[str, list[int]]:
    return {name: split.pixels[split.index][:, 0, 0, 0].tolist() for name, split in data.splits.items()}


# Splits


@pytest.mark.parametrize(("num_val", "num_test"), [(0, 0), (0, 17), (7, 10)])
def test_splits_cover_everything_and_keep_those_of_the_source(num_val, num_test):
    data = image_data(Numbered(num_test=num_test, num_val=num_val))
    splits = split_numbers(data)
    assert list(splits) == ["train", "val", "test"]
    assert sorted(sum(splits.values(), [])) == list(range(TOTAL))
    assert splits["train"] == sorted(splits["train"])
    assert (splits["test"] == list(range(TOTAL - num_test, TOTAL))) == (num_test > 0)
    assert (splits["val"] == list(range(TOTAL - 17, TOTAL - 10))) == (num_val > 0)


@pytest.mark.parametrize(
    ("val_size", "test_size", "sizes"),
    [(0.1, 0.2, (74, 8, 21)), (10, 20, (73, 10, 20)), (0, 0, (103, 0, 0)), (0.0, 5, (98, 0, 5)), (101, 1, (1, 101, 1))],
)
def test_sizes_are_numbers_or_fractions(val_size, test_size, sizes):
    # The validation images are taken from what the test images leave: round(0.1 * (103 - 21)) = 8.
    splits = image_data(val_size=val_size, test_size=test_size).splits
    assert tuple(len(splits[name]) for name in ("train", "val", "test")) == sizes


def test_a_split_depends_on_its_seed_only():
    first = split_numbers(image_data())
    torch.manual_seed(99)
    assert split_numbers(image_data(seed=5, batch_size=3, flip=True)) == first
    other = split_numbers(image_data(split_seed=1))
    assert other["val"] != first["val"]
    assert other["test"] != first["test"]


# Batches and epochs


def test_batches_hold_the_images_of_the_source():
    data, pixels = image_data(), Numbered().read().pixels
    for loader, total in ((data.train_dataloader(), 74), (data.val_dataloader(), 8), (data.test_dataloader(), 21)):
        batches = list(loader)
        assert len(batches) == len(loader)
        assert [len(batch.x) for batch in batches] == [8] * (total // 8) + [total % 8] * (total % 8 > 0)
        for batch in batches:
            assert torch.equal(batch.x, pixels[batch.x[:, 0, 0, 0].long()])
            assert torch.equal(batch.y, batch.x[:, 0, 0, :1].long())  # the labels travel with their images
    assert next(iter(image_data(grey(128)).train_dataloader())).y is None  # without labels


def test_batches_gathered_ahead_are_the_same():
    """As where the images do not fit on a GPU; executions of one to four batches, from the third batch on."""

    def batches(target, data):
        data.batches_at_once = lambda batch: 1 + batch % 4
        data.start_at(0, 2)
        loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
        for split in data.splits.values():
            split.target = target
        return [list(loader) for loader in loaders]

    for make in (image_data, lambda: image_data(grey(128))):  # without labels
        ahead, plain = batches(torch.device("cpu"), make()), batches(None, make())
        assert [len(batch.x) for batch in ahead[0]][:2] == [24, 16]
        for one, other in zip(sum(ahead, []), sum(plain, []), strict=True):
            assert torch.equal(one.x, other.x)
            assert one.y is other.y is None or torch.equal(one.y, other.y)

    data, before = image_data(), threading.active_count()
    data.splits["train"].target = torch.device("cpu")
    loading = iter(data.train_dataloader())
    next(loading)
    assert threading.active_count() == before + 1
    loading.close()  # a run that stops within an epoch
    assert threading.active_count() == before


def test_every_epoch_visits_every_training_image_once_in_its_own_order():
    data = image_data()
    train = split_numbers(data)["train"]
    epochs = [epoch(data, number) for number in range(4)]
    assert all(sorted(order) == train for order in epochs)
    assert len({tuple(order) for order in [train, *epochs]}) == 5


def test_an_order_depends_on_the_seed_and_the_epoch_only():
    data = image_data()
    orders = [epoch(data, number) for number in range(3)]
    torch.manual_seed(99)
    other = image_data(batch_size=5)
    assert [epoch(other, number) for number in (2, 0, 1)] == [orders[2], orders[0], orders[1]]
    assert epoch(image_data(seed=1), 0) != orders[0]
    assert epoch(image_data(seed=1), 0) != orders[1]  # seeds are not added to epochs


def test_evaluation_is_always_in_the_same_order():
    data = image_data()
    for loader, split in ((data.val_dataloader, "val"), (data.test_dataloader, "test")):
        assert numbers(loader()) == numbers(loader()) == split_numbers(data)[split]
    data.test_split = "val"
    assert numbers(data.test_dataloader()) == split_numbers(data)["val"]


@pytest.mark.parametrize(("batch", "process"), [(0, {}), (1, {}), (5, {}), (9, {}), (3, {"rank": 1, "world_size": 2})])
def test_training_continues_at_the_right_image(batch, process):
    orders = [epoch(image_data(**process), number) for number in range(4)]
    data = image_data(**process)
    data.start_at(2, batch)
    loader = data.train_dataloader()
    loader.batch_sampler.sampler.set_epoch(2)  # as Lightning does before every epoch; it must not start it over
    assert numbers(loader) == orders[2][8 * batch :]
    loader.batch_sampler.sampler.set_epoch(3)
    assert numbers(loader) == orders[3]
    assert len(loader) == (5 if process else 10)  # of a whole epoch


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_no_training_image(world_size):
    ranks = [image_data(rank=rank, world_size=world_size) for rank in range(world_size)]
    train = split_numbers(ranks[0])["train"]
    for number in range(3):
        parts = [epoch(data, number) for data in ranks]
        assert {len(part) for part in parts} == {len(train) // world_size}  # or one process would wait forever
        seen = sum(parts, [])
        assert len(set(seen)) == len(seen) == len(train) // world_size * world_size
        assert set(seen) <= set(train)


def test_the_images_left_over_are_others_in_every_epoch():
    samplers = [EpochSampler(7, 0, rank, 4, 0, 0) for rank in range(4)]
    left_over = set()
    for number in range(20):
        for sampler in samplers:
            sampler.set_epoch(number)
        left_over |= set(range(7)) - {i for sampler in samplers for i in sampler}
    assert left_over == set(range(7))


@pytest.mark.parametrize("split", ["val", "test"])
def test_processes_evaluate_every_image_once(split):
    ranks = [image_data(rank=rank, world_size=3) for rank in range(3)]
    seen = [number for data in ranks for number in numbers(getattr(data, f"{split}_dataloader")())]
    assert sorted(seen) == split_numbers(ranks[0])[split]


# Pixels


def test_pixels_are_bytes_over_255():
    batch = torch.arange(256).to(torch.uint8).view(1, 1, 16, 16)
    x = image_data().to_pixels(Batch(batch), training=True).x
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.flatten(), torch.arange(256) / 255)
    assert (x.min(), x.max()) == (0, 1)
    assert batch.flatten().tolist() == list(range(256))  # the resident images are not written to


def test_threshold_is_at_one_half():
    data = image_data(binarize="threshold")
    pixels = Numbered().read().pixels
    assert torch.equal(data.splits["train"].pixels, (pixels >= 128).to(torch.uint8) * 255)


def grey(value: int):
    images = Images(torch.full((500, *SHAPE), value, dtype=torch.uint8), torch.zeros(500, 0).long(), (), 0)
    return SimpleNamespace(read=lambda: images)


@pytest.mark.parametrize("mode", ["dynamic", "static"])
@pytest.mark.parametrize("value", [0, 64, 200, 255])
def test_a_binarized_pixel_has_the_mean_of_the_grey_one(value, mode):
    data = image_data(grey(value), binarize=mode, val_size=0, test_size=0)
    x = data.to_pixels(data.splits["train"].__getitems__(range(500)), training=True).x
    p = value / 255
    # 4 standard errors of the mean of 500 * 24 coins; exact where the coin is certain
    assert x.mean().item() == pytest.approx(p, abs=4 * (p * (1 - p) / x.numel()) ** 0.5)


def test_dynamic_binarization_differs_between_visits():
    data = image_data(grey(128), binarize="dynamic")
    batch = data.splits["train"].__getitems__(range(50))
    visits = [data.to_pixels(batch, training).x for training in (True, True, False)]
    for first, second in ((0, 1), (0, 2)):
        # Two fair coins agree half of the time; 4 standard errors of 1200 of them.
        assert visits[first].eq(visits[second]).float().mean().item() == pytest.approx(0.5, abs=0.06)


def test_static_binarization_is_drawn_once_from_the_split_seed():
    first = image_data(grey(128), binarize="static").splits["train"].pixels
    torch.manual_seed(99)
    data = image_data(grey(128), binarize="static", seed=7)
    assert torch.equal(data.splits["train"].pixels, first)
    batch = Batch(first[:10])
    assert torch.equal(data.to_pixels(batch, training=True).x, data.to_pixels(batch, training=False).x)
    assert not torch.equal(image_data(grey(128), binarize="static", split_seed=1).splits["train"].pixels, first)
    assert len(first[:, 0, 0].unique(dim=0)) > 1  # images differ from each other


def test_flips_mirror_half_of_the_training_images():
    data = image_data(flip=True)
    batch = torch.randint(0, 256, (2000, *SHAPE), dtype=torch.uint8)
    for is_asked, training in ((True, False), (False, True)):
        unchanged = image_data(flip=is_asked).to_pixels(Batch(batch), training)
        assert torch.equal(unchanged.x, batch / 255)
    x = data.to_pixels(Batch(batch), training=True).x
    same = (x == batch / 255).flatten(1).all(1)
    mirrored = (x == batch.flip(3) / 255).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / 2000**0.5)  # 4 standard errors


@pytest.mark.parametrize("binarize", BINARIZE_MODES)
def test_examples_are_the_same_at_every_call(binarize):
    data = image_data(binarize=binarize, flip=True)
    (x, labels), (again, _) = data.examples("val", 5), data.examples("val", 5)
    assert torch.equal(x, again)
    assert x.shape == (5, *SHAPE)
    assert labels.shape == (5, 1)
    assert binarize == "none" or ((x == 0) | (x == 1)).all()
    if binarize == "none":
        assert torch.equal((x[:, 0, 0, 0] * 255).round().long(), labels[:, 0])  # labels belong to their images
    assert len(data.examples("val", 1000)[0]) == 8


def test_examples_are_drawn_from_the_whole_split():
    pixels, labels = torch.zeros(1000, *SHAPE, dtype=torch.uint8), torch.arange(1000)[:, None] // 100  # sorted by class
    images = Images(pixels, labels, ("class",), num_test=0)
    data = image_data(SimpleNamespace(read=lambda: images), val_size=500)
    few = data.examples("val", 30)[1]
    assert len(few.unique()) > 6  # of 10 classes; the first 30 would be of one
    assert torch.equal(data.examples("val", 60)[1][:30], few)


# Ranges


@pytest.mark.fault
@pytest.mark.parametrize(
    ("sizes", "key", "left"),
    [
        ({"test_size": 103}, "test_size", "103 images, got 103"),
        ({"test_size": 0.999}, "test_size", "103 images, got 0.999"),
        ({"test_size": 20, "val_size": 83}, "val_size", "83 images, got 83"),
        ({"test_size": 0.6, "val_size": 0.6}, "val_size", "41 images, got 0.6"),  # each is a fraction of all
    ],
)
def test_b11_splits_that_leave_nothing_name_their_key(sizes, key, left):
    with pytest.raises(ValueError, match=rf"dataset\.{key} must leave at least one of {left}"):
        image_data(**sizes)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("batch_size", 0), ("num_workers", -1), ("split_seed", -1), ("binarize", "sometimes")),
        *(("val_size", value) for value in (-1, -0.1, 1.0, float("nan"))),
        *(("test_size", value) for value in (-1, 1.5, float("nan"))),
    ],
)
def test_ranges_are_checked_before_the_source_is_read(key, value):
    source = Numbered()
    with pytest.raises(ValueError, match=rf"dataset\.{key} must be .*got '?{value}"):
        image_data(source, **{key: value})
    assert source.reads == 0


@pytest.mark.fault
def test_c10_one_other_pixel_of_any_image_is_noticed():
    known, images = image_data().fingerprint, Numbered().read()
    for number in range(TOTAL):
        images.pixels[number, -1, -1, -1] ^= 1
        with pytest.raises(DataError, match="not those that the run was trained on"):
            check_same_images(image_data(SimpleNamespace(read=lambda: images)), known)
        images.pixels[number, -1, -1, -1] ^= 1
    check_same_images(image_data(SimpleNamespace(read=lambda: images)), known)
    assert image_data(split_seed=1).fingerprint != known


# What does not fit together


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixels": torch.zeros(9, 2, 4, 3).byte()}, r"expected images of shape \(2, 3, 4\), got \(9, 2, 4, 3\)"),
        ({"pixels": torch.zeros(0, *SHAPE).byte()}, r"expected images of shape \(2, 3, 4\), got \(0, 2, 3, 4\)"),
        ({"pixels": torch.zeros(9, *SHAPE)}, r"expected images of bytes \(torch.uint8\), got torch.float32"),
        ({"labels": torch.zeros(8, 1).long()}, r"expected labels for 9 images and 1 factors, got the shape \(8, 1\)"),
        ({"num_test": 9}, "no training images: of 9, 0 are for validation and 9 for the test"),
        ({"num_test": 5, "num_val": 4}, "no training images: of 9, 4 are for validation and 5 for the test"),
    ],
)
def test_images_that_do_not_fit_together_are_refused(changes, message):
    images = Images(torch.zeros(9, *SHAPE).byte(), torch.zeros(9, 1).long(), ("number",), 0)
    source = SimpleNamespace(read=lambda: images._replace(**changes))
    with pytest.raises(DataError, match=message):
        image_data(source)


@pytest.mark.fault
def test_b11_a_process_without_images_is_refused():
    few = image_data(rank=0, world_size=9)  # 74, 8 and 21 images
    with pytest.raises(
        ValueError, match="8 images of the val split are too few for 9 processes: raise dataset.val_size"
    ):
        few.val_dataloader()
    assert len(few.test_dataloader().batch_sampler.sampler) == 3
    assert image_data(rank=0, world_size=9, val_size=0).val_dataloader().batch_sampler.sampler.order().tolist() == []
    for rank in (0, 79):
        many = image_data(rank=rank, world_size=80)
        with pytest.raises(ValueError, match="trainer.devices must be at most the 74 training images, got 80"):
            many.train_dataloader()


@pytest.mark.parametrize(("num_classes", "there"), [([102], r"labels with \[103\] classes"), ([103, 2], "labels with")])
def test_labels_are_those_which_the_config_announces(num_classes, there):
    assert image_data(num_classes=[TOTAL]).num_classes == [TOTAL]
    with pytest.raises(DataError, match=rf"dataset\.num_classes=.*, but the images have {there}"):
        image_data(num_classes=num_classes)
