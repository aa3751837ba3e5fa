"""Sets of image files: decoding, open-set splits, augmentation, noise, and trainings on them."""

import contextlib
import gc
import io
import os
import pickle
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image, ImageOps

from data.augment import Faces
from data.formats.decode import Decoder, decodable, opened
from data.formats.encoded import UnreadableError
from data.records import ByClass, DataSet, RecordSet
from data.sets.images import images as build
from data.sets.noise import with_noise
from data.sets.split import hold_out
from data.streams import BatchLoader, IdentityStream, InstanceStream
from experiments.instantiate import instantiate
from experiments.launching.processes import Processes
from experiments.train import train
from tests.data.made_sets import SIDE, bomb, image, images, write_folder, write_lmdb, write_rec
from tests.experiments.commands import config, summary


def decoded(encoded: bytes, side: int = SIDE, channels: int = 3, fit: str = "crop") -> np.ndarray:
    pixels = np.zeros((side, side, channels), np.uint8)
    Decoder(side, side, channels, fit).into(pixels, encoded)
    return pixels


# Decoding


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_equal_those_of_pillow(kind, mode, channels):
    encoded = image(3, kind=kind, mode=mode)
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("L" if channels == 1 else "RGB"))
    difference = np.abs(decoded(encoded, channels=channels).squeeze().astype(int) - expected)
    assert difference.max() <= (4 if kind == "JPEG" else 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(("shape", "side"), [((250, 250), 140), ((250, 250), 48), ((200, 100), 56), ((100, 200), 112)])
@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_crop_keeps_the_middle_of_an_image(kind, shape, side, fit):
    """The grey border is cropped, also if the file already has the size of the model's input."""
    width, height = shape
    inner = (round(0.22 * width), round(0.22 * height), round(0.78 * width), round(0.78 * height))
    framed = Image.new("RGB", shape, (128, 128, 128))
    middle = Image.linear_gradient("L").convert("RGB").resize((inner[2] - inner[0], inner[3] - inner[1]))
    framed.paste(middle, inner[:2])
    file = io.BytesIO()
    framed.save(file, kind, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))
    pixels = np.zeros((side, side, 3), np.uint8)
    Decoder(side, side, 3, fit, 0.56).into(pixels, file.getvalue())
    if fit == "crop":
        expected = ImageOps.fit(middle, (side, side), Image.Resampling.BILINEAR)
    else:
        expected = middle.resize((side, side), Image.Resampling.BILINEAR)
    assert np.abs(pixels.astype(int) - np.asarray(expected)).max() <= (6 if kind == "JPEG" else 0)
    same = np.zeros((side, side, 3), np.uint8)
    Decoder(side, side, 3, fit).into(same, file.getvalue())
    assert not np.array_equal(same, pixels)


def test_jpeg_of_cmyk_and_progressive():
    pixels = Image.open(io.BytesIO(image(0)))
    for mode, options in (("CMYK", {}), ("RGB", {"progressive": True})):
        file = io.BytesIO()
        pixels.convert(mode).save(file, "JPEG", quality=95, **options)
        assert np.abs(decoded(file.getvalue()).astype(int) - np.asarray(pixels)).mean() < 6


def test_sixteen_bits_become_eight():
    deep = np.linspace(0, 65535, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)
    for kind in ("PNG", "TIFF"):
        file = io.BytesIO()
        Image.fromarray(deep).save(file, kind)
        assert np.array_equal(decoded(file.getvalue(), channels=1)[:, :, 0], deep >> 8)
    Image.fromarray(deep.astype(np.float32)).save(file := io.BytesIO(), "TIFF")
    with pytest.raises(UnreadableError, match="real numbers"):
        decoded(file.getvalue())


def tiff(bits: int, signed: bool = False) -> bytes:
    """Return a TIFF of four grey pixels from black to white, built from the description of the format."""
    values = [value - (signed << bits - 1) for value in (0, 2 ** (bits - 2), 2 ** (bits - 1), 2**bits - 1)]
    if bits == 12:
        data = bytes.fromhex(2 * "".join(f"{value:03x}" for value in values))
    else:
        data = 2 * b"".join(value.to_bytes(bits // 8, "little", signed=signed) for value in values)
    tags = [(256, 4), (257, 2), (258, bits), (259, 1), (262, 1), (273, 134), (277, 1), (278, 2), (279, len(data))]
    tags += [(339, 1 + signed)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0" + data


@pytest.mark.parametrize(
    ("bits", "signed", "expected"),
    [
        (8, False, [0, 64, 128, 255]),
        (12, False, [0, 64, 128, 255]),
        (16, False, [0, 64, 128, 255]),
        (16, True, "integers of 16 bits of unknown range"),
        (32, False, "integers of 32 bits of unknown range"),
        (32, True, "integers of 32 bits of unknown range"),
    ],
)
def test_tiff_of_any_depth(bits, signed, expected):
    pixels = np.zeros((2, 4, 1), np.uint8)
    if isinstance(expected, list):
        Decoder(2, 4, 1).into(pixels, tiff(bits, signed))
        assert pixels[0, :, 0].tolist() == expected == pixels[1, :, 0].tolist()
        return
    for attempt in (lambda encoded: Decoder(2, 4, 1).into(pixels, encoded), decodable):
        with pytest.raises(UnreadableError, match=expected):
            attempt(tiff(bits, signed))


def progressive(scans: int, side: int) -> bytes:
    """Return a JPEG with a declared side that repeats its last scan."""
    file = io.BytesIO()
    Image.open(io.BytesIO(image(0))).save(file, "JPEG", progressive=True)
    encoded = bytearray(file.getvalue())
    size = encoded.index(b"\xff\xc2") + 5
    encoded[size : size + 4] = struct.pack(">HH", side, side)
    last, count = encoded.rindex(b"\xff\xda"), encoded.count(b"\xff\xda")
    return bytes(encoded[:-2] + encoded[last:-2] * (scans - count) + encoded[-2:])


def test_a_jpeg_of_many_scans_is_refused():
    """Decoding 200 scans of 64 million pixels takes 11 seconds. Small images and usual files may have many scans."""
    for attempt in (decoded, decodable):
        with pytest.raises(UnreadableError, match=r"its 200 scans of 8,000 x 8,000 pixels take too long"):
            attempt(progressive(200, 8000))
    assert opened(progressive(16, 8000)).size == (8000, 8000)
    decoded(progressive(200, SIDE))
    thumbnails = progressive(16, 8000) + b"\xff\xda" * 200  # data after the end, such as a film that a phone appends
    assert opened(thumbnails).size == (8000, 8000)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize("size", [(112, 112), (120, 100), (224, 224), (300, 500), (1200, 1000), (40, 50), (1792, 896)])
def test_jpeg_and_png_of_one_picture_give_the_same_pixels(size, fit, channels):
    """The pixels also equal those of an antialiased filter over the whole picture, computed by a formula."""
    rough = np.random.default_rng(0).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    picture = Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC)
    decodings = []
    for kind, options in (("PNG", {}), ("JPEG", {"quality": 100, "subsampling": 0})):
        picture.save(file := io.BytesIO(), kind, **options)
        decodings.append(decoded(file.getvalue(), 112, channels, fit).astype(float) / 127.5 - 1)
    cosine = (decodings[0] * decodings[1]).sum() / np.linalg.norm(decodings[0]) / np.linalg.norm(decodings[1])
    assert cosine > 0.9999 and np.abs(decodings[0] - decodings[1]).max() < 6 / 127.5
    if fit == "stretch" and channels == 3:
        weights = [triangle(side, 112) for side in size]
        scaled = np.einsum("hi,wj,ijc->hwc", weights[1], weights[0], np.asarray(picture, float), optimize=True)
        expected = scaled / 127.5 - 1
        assert np.abs(decodings[0] - expected).max() < 3 / 127.5


def triangle(old: int, new: int) -> np.ndarray:
    """Weights (new, old) that fall linearly to 0 within one new pixel, or within one old pixel when enlarging."""
    reach = max(1, old / new)
    distance = np.abs((np.arange(new)[:, None] + 0.5) * old / new - np.arange(old) - 0.5) / reach
    weights = np.maximum(0, 1 - distance)
    return weights / weights.sum(1, keepdims=True)


def test_other_sizes_are_cropped_or_stretched():
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, 20:60] = 255  # a crop keeps the middle
    encoded = simplejpeg.encode_jpeg(wide, 100)
    assert decoded(encoded, 20).min() > 200
    stretched = decoded(encoded, 20, fit="stretch")
    assert stretched[:, 8:12].min() > 200 and stretched[:, :3].max() < 50 > stretched[:, -3:].max()
    assert decoded(image(0, side=16)).shape == (SIDE, SIDE, 3)  # smaller ones are scaled up


@pytest.mark.parametrize("side", [16, 500])
def test_decoding_images_of_another_size_loses_no_memory(side):
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    encoded, count = image(0, side=side), 1000
    for _ in range(50):
        decoded(encoded)
    before = resident()
    for _ in range(count):
        decoded(encoded)
    assert resident() - before < 1000 * count


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (b"", "it is empty"),
        (b"no image", "not an image in a known format"),
        (image(0)[:-200], "cannot be decoded"),
        (image(0, kind="PNG")[:-60], "cannot be decoded"),
        (image(0)[:20], "not an image in a known format"),
        (bomb(), "more than 67,108,864"),
        (bomb("PNG"), "more than 67,108,864"),
        (bomb("PNG", 9000), "more than 67,108,864"),
    ],
)
def test_undecodable_images_are_reported(encoded, message):
    for attempt in (decoded, decodable):
        with pytest.raises(UnreadableError, match=message):
            attempt(encoded)


def test_a_decompression_bomb_needs_no_memory(tmp_path):
    """The header suffices to refuse it; 400 million pixels would need 1.2 GB."""
    from experiments.benches.measure import PeakOwn, own_memory

    before = own_memory()
    with PeakOwn() as peak:
        for encoded in (bomb(), bomb("PNG")):
            with pytest.raises(UnreadableError):
                decoded(encoded)
    assert peak.peak - before < 2**25


def test_pillow_decodes_jpeg_with_warnings_of_libjpeg():
    encoded = bytearray(image(0))
    encoded[-2:-2] = b"\x00\x01\x02"  # extraneous bytes before the end, which some cameras write
    assert np.abs(decoded(bytes(encoded)).astype(int) - decoded(image(0))).max() <= 2


# Sets


@pytest.fixture
def folder(tmp_path):
    """A folder of 60 classes: one with one image, the others with 2 to 4."""
    labels = [label for label in range(60) for _ in range(1 if label == 7 else 2 + label % 3)]
    return write_folder(tmp_path / "set", images(labels))


def options(folder: Path, **more: object) -> dict[str, object]:
    return {
        "format": "folder",
        "source": str(folder),
        "size": SIDE,
        "cache_dir": str(folder.parent / "cache"),
        "augment": None,
        **more,
    }


def test_a_batch_equals_pillow_and_a_formula(folder):
    data = build(**options(folder, num_heldout=0, mean=[0.4, 0.5, 0.6], std=[0.1, 0.2, 0.3]))
    stream = InstanceStream(data, 8, seed=3)
    examples, labels, draws = stream.batch(0)
    catalog = data.train.source.encoded
    assert examples.dtype == torch.uint8 and draws.shape == (8, 0)
    for example, label in zip(data.finish(examples, draws), labels, strict=True):
        (match,) = [
            index
            for index in np.flatnonzero(np.asarray(data.train.labels) == int(label))
            if torch.allclose(example, expected(catalog.read(int(index))), atol=0.1)
        ]
        assert catalog.labels[match] == label


def expected(encoded: bytes) -> torch.Tensor:
    pixels = np.asarray(Image.open(io.BytesIO(encoded)), dtype=np.float64) / 255
    return torch.from_numpy((pixels - [0.4, 0.5, 0.6]) / [0.1, 0.2, 0.3]).permute(2, 0, 1).float()


def test_an_open_set_split_by_class(folder):
    data = build(**options(folder, num_heldout=10))
    whole = build(**options(folder, num_heldout=0))
    assert data.train.num_classes == 50 and data.heldout.num_classes == 10
    assert len(data.train) + len(data.heldout) == len(whole.train)
    names = list(data.class_names)
    assert len(names) == len(set(names)) == 50 and "class 007" in names  # a class of one image cannot be evaluated
    pixels = {tuple(p.flatten().tolist()): int(label) for p, label in everything(whole.train)}
    for p, label in everything(data.train):
        assert whole.class_names[pixels.pop(tuple(p.flatten().tolist()))] == names[int(label)]
    heldout = [(pixels.pop(tuple(p.flatten().tolist())), int(label)) for p, label in everything(data.heldout)]
    assert not pixels and len(set(heldout)) == 10 == len({label for _, label in heldout})
    by_class = data.train.by_class
    labels = data.train.labels[np.arange(len(data.train))]
    starts = by_class.starts[np.arange(51)]
    for label in range(50):
        records = by_class.order[np.arange(starts[label], starts[label + 1])]
        assert (labels[records] == label).all() and len(records) == (labels == label).sum()
    assert names[2:5] == data.class_names[2:5] and names[-1] == data.class_names[-1]
    stream = IdentityStream(data, 100)
    pairs, classes, _ = stream.batch(0)
    assert classes[:50].sort().values.tolist() == list(range(50)) and torch.equal(classes[:50], classes[50:])
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(IdentityStream(again, 100).batch(0)[0], pairs)


def everything(records: RecordSet):
    indices = np.arange(len(records))
    return zip(records.source.read(indices), records.labels[indices], strict=True)


def test_held_out_classes_depend_on_the_seed(folder):
    sets = [set(build(**options(folder, num_heldout=10, seed=seed)).class_names) for seed in (0, 0, 1)]
    assert sets[0] == sets[1] != sets[2]


def test_by_default_a_twentieth_is_held_out(folder, tmp_path):
    assert build(**options(folder)).heldout.num_classes == 3
    few = build(**options(write_folder(tmp_path / "few", images([0, 0, 1, 1]))))
    assert few.heldout is None and few.train.num_classes == 2
    single = build(**options(write_folder(tmp_path / "single", images(range(60)))))
    assert single.heldout is None
    with pytest.raises(ValueError, match=r"num_heldout=2 is too large: only 0 of the 60 classes"):
        build(**options(tmp_path / "single", num_heldout=2))


def test_a_split_does_not_depend_on_the_block_size(folder, monkeypatch):
    from data.sets import split

    whole = list(build(**options(folder, num_heldout=10)).class_names)
    monkeypatch.setattr(split, "BLOCK", 4)
    assert list(build(**options(folder, num_heldout=10)).class_names) == whole


@pytest.mark.parametrize(
    "wrong",
    [
        {"format": "zip"},
        {"source": None},
        {"size": 0},
        {"size": 11.5},
        {"size": "112x112"},
        {"size": [1, 2, 3]},
        {"num_heldout": -1},
        {"channels": 2},
        {"fit": "pad"},
        {"mean": [0.5, 0.5]},
        {"std": 0.0},
        {"crop": 0},
        {"crop": 1.5},
        {"crop": True},
        {"num_heldout": 1},
        {"num_heldout": 59},
        {"num_heldout": 2.5},
    ],
)
def test_options_out_of_range_are_refused(folder, wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"data.{name}="):
        build(**options(folder, **wrong))


@pytest.mark.parametrize("option", ["num_heldout=2.5", "channels=rgb", "shared=1", "crop=true", "seed=x"])
def test_options_of_another_type_are_refused(option, folder):
    words = ["data=folder", f"data.source={folder}", f"data.cache_dir={folder.parent / 'cache'}", f"data.{option}"]
    with pytest.raises(ValueError, match=rf"data\.{option} must be "):
        instantiate(config(*words).data)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_image_is_named(num_workers, folder):
    (folder / "class 003" / "010.jpg").write_bytes(image(10)[:300])
    data = build(**options(folder, num_heldout=0))
    loader = BatchLoader({"instance": InstanceStream(data, 16)}, 12, 16, num_workers)
    with pytest.raises(ValueError, match=r"^/.*/set: class 003/010.jpg: it (is not an image|cannot be decoded)[^\n]*$"):
        for _ in loader:
            pass


def test_workers_return_the_same_batches_and_leak_nothing(folder):
    data = build(**options(folder, augment=Faces()))
    stream = InstanceStream(data, 32)
    for number, batch in enumerate(BatchLoader({"instance": stream}, 6, 32, 2)):
        for part, expected_part in zip(batch["instance"], stream.batch(number), strict=True):
            assert torch.equal(part, expected_part)
    handles = open_handles()
    for _ in BatchLoader({"instance": stream}, 30, 32, 0):
        pass
    assert open_handles() <= handles and threading.active_count() < 20


def open_handles() -> set[tuple[str, str]]:
    """Return the open file descriptors with their targets.

    Garbage of earlier tests may close descriptors at any time, so only new ones count as a leak.
    """
    gc.collect()
    handles = set()
    for descriptor in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(FileNotFoundError):  # the descriptor of the listing itself is closed again
            handles.add((descriptor, os.readlink(f"/proc/self/fd/{descriptor}")))  # noqa: PTH115
    return handles


# Augmentation


def test_each_augmentation_has_its_effect():
    torch.manual_seed(0)
    x = torch.rand(200, 3, 8, 8) * 2 - 1
    keys = np.arange(200, dtype=np.uint64)
    draws = Faces().draws(keys)
    assert torch.equal(Faces(flip=0)(x.clone(), draws), x)
    mirrored = Faces(flip=1)(x.clone(), draws)
    assert torch.equal(mirrored, x.flip(3))
    some = (Faces(flip=0.5)(x.clone(), draws) == mirrored).flatten(1).all(1)
    assert 70 < some.sum() < 130
    grey = Faces(flip=0, grey=1)(x.clone(), draws)
    assert torch.allclose(grey[:, 0], grey[:, 2]) and torch.allclose(
        grey[:, 0], 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2], atol=1e-6
    )
    bright = Faces(flip=0, brightness=0.2)(x.clone(), draws) - x
    assert torch.allclose(bright, bright[:, :1, :1, :1].expand_as(bright), atol=1e-6) and 0.35 < bright.max() <= 0.4
    contrast = Faces(flip=0, contrast=0.5)(x.clone(), draws)
    assert torch.allclose(contrast.mean((1, 2, 3)), x.mean((1, 2, 3)), atol=1e-5)
    ratio = contrast.std((1, 2, 3)) / x.std((1, 2, 3))
    assert 0.5 <= ratio.min() < 0.6 and 1.4 < ratio.max() <= 1.5
    boxes = Faces(flip=0, erase=1)(x.clone(), draws) == 0
    share = boxes.float().mean((1, 2, 3))
    assert 0.02 < share.mean() < 0.12 and share.max() <= 0.25
    coarse = Faces(flip=0, low_resolution=1)(x.clone(), draws)
    assert coarse.std() < 0.7 * x.std()
    flat = torch.full_like(x, 0.3)
    assert torch.allclose(Faces(flip=0, crop=0.3, low_resolution=1)(flat.clone(), draws), flat, atol=1e-5)
    ramp = torch.linspace(-1, 1, 8).expand(200, 1, 8, 8)
    cropped = Faces(flip=0, crop=0.5)(ramp.clone(), draws)
    assert (cropped[..., -1] - cropped[..., 0]).min() < 1.2 and cropped[..., 0].std() > 0.1


def test_augmentation_depends_on_the_key_alone():
    full = Faces(0.5, 0.2, 0.2, 0.3, 0.3, 0.2, 0.3, 0.3)
    x = torch.rand(6, 3, 16, 16)
    keys = np.arange(6, dtype=np.uint64)
    together = full(x.clone(), full.draws(keys))
    for i in range(6):
        torch.testing.assert_close(full(x[i : i + 1].clone(), full.draws(keys[i : i + 1]))[0], together[i])
    assert full(torch.rand(2, 1, 16, 16), full.draws(keys[:2])).shape == (2, 1, 16, 16)
    with pytest.raises(ValueError, match=r"data.augment.erase=1.5"):
        Faces(erase=1.5)


# Noise


def labelled(labels: list[int], num_classes: int) -> DataSet:
    array = np.array(labels)

    class Numbers:
        def __len__(self):
            return len(array)

        def read(self, indices):
            return torch.from_numpy(np.asarray(indices))

    records = RecordSet(Numbers(), array, num_classes)
    return DataSet(records, None, (1,), lambda x: x, Faces(), [f"c{k}" for k in range(num_classes)])


def test_without_noise_nothing_changes():
    data = labelled([0, 1, 1], 2)
    assert with_noise(data) is data


def test_long_tail_follows_zipfs_law():
    data = labelled(list(range(100)) * 50, 100)
    tail = with_noise(data, tail=1.0, seed=1)
    labels = np.asarray(tail.train.labels)
    counts = np.sort(np.bincount(labels, minlength=100))[::-1]
    assert counts.tolist() == [min(50, int(200 / rank)) for rank in range(1, 101)]
    original = data.train.labels[tail.train.source.read(np.arange(len(labels))).numpy()]
    assert np.array_equal(labels, original) and tail.class_names == data.class_names
    kept = tail.train.source.read(np.arange(len(labels))).numpy()
    assert len(set(kept.tolist())) == len(kept)
    assert not np.array_equal(labels, with_noise(data, tail=1.0, seed=2).train.labels)


def test_shallow_data_have_few_images_of_each_class():
    data = labelled([0] * 9 + [1] * 2 + [2] + [3] * 30, 4)
    shallow = with_noise(data, shallow=2)
    labels = np.asarray(shallow.train.labels)
    assert np.bincount(labels).tolist() == [2, 2, 1, 2]
    kept = shallow.train.source.read(np.arange(len(labels))).numpy()
    assert len(set(kept.tolist())) == 7 and np.array_equal(labels, data.train.labels[kept])
    assert kept.tolist() != with_noise(data, shallow=2, seed=1).train.source.read(np.arange(7)).tolist()
    both = with_noise(data, tail=0.5, shallow=3)
    assert np.bincount(np.asarray(both.train.labels)).max() <= 3
    with pytest.raises(ValueError, match=r"noise\.shallow=0 must be at least 1"):
        with_noise(data, shallow=0)


def test_split_classes_are_one_identity_with_two_labels():
    data = labelled(list(range(100)) * 9 + [100], 101)
    noisy = with_noise(data, conflict=0.3)
    assert 15 < noisy.train.num_classes - 101 < 45 and len(noisy.class_names) == noisy.train.num_classes
    before, after = np.asarray(data.train.labels), np.asarray(noisy.train.labels)
    for new in range(101, noisy.train.num_classes):
        (old,) = set(before[after == new])
        assert (after == new).sum() == 4 and (after == old).sum() == 5
        assert noisy.class_names[new] == f"c{old} (2)"
    assert np.array_equal(before[after < 101], after[after < 101])


def test_flipped_labels():
    noisy = with_noise(labelled(list(range(10)) * 1000, 10), flip=0.2)
    before, after = np.tile(np.arange(10), 1000), np.asarray(noisy.train.labels)
    assert 0.19 < (before != after).mean() < 0.21
    others = np.bincount(after[(before == 3) & (before != after)], minlength=10)
    assert others[3] == 0 and (others[np.arange(10) != 3] > 5).all()
    assert (with_noise(labelled([0, 1], 2), flip=1.0).train.labels == [1, 0]).all()
    start, end = noisy.train.by_class.starts[[4, 5]]
    assert (after[noisy.train.by_class.order[start:end]] == 4).all()


@pytest.mark.parametrize("wrong", [{"tail": -1}, {"conflict": 1.1}, {"flip": -0.1}])
def test_noise_out_of_range_is_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"noise.{name}="):
        with_noise(labelled([0, 1], 2), **wrong)
    with pytest.raises(ValueError, match=r"noise.flip=0.5 needs at least two classes"):
        with_noise(labelled([0, 0], 1), flip=0.5)


def test_classes_of_one_record_cannot_be_held_out():
    records = RecordSet(labelled([0, 1], 2).train.source, np.array([0, 1]), 2, ByClass(np.arange(2), np.arange(3)))
    with pytest.raises(ValueError, match=r"num_heldout=2"):
        hold_out(records, (), 2, 0)


# Trainings


SHORT = (
    "experiment=smoke",
    "trainer.max_steps=3",
    "batch_size=8",
    "logger.wandb.mode=disabled",
    "trainer.accelerator=cpu",
    f"data.size={SIDE}",
    "backbone=mlp",
)


def trained(words: list[str], folder: Path) -> int:
    folder.mkdir()
    return train(config(*words), folder)


@pytest.mark.parametrize("head", ["pfc", "ffc"])
def test_training_and_resuming_with_noise(head, folder, tmp_path):
    words = [*SHORT, f"head={head}", "data=folder", f"data.source={folder}", "data.num_heldout=6"]
    words += ["noise.flip=0.1", "noise.conflict=0.2", "data.augment.crop=0.1", "num_workers=1"]
    words += ["queue_size=20"] if head == "ffc" else ["sample_rate=0.5"]
    assert trained(words, tmp_path / "run") == 0
    result = summary(tmp_path / "run")
    assert 54 < result["num_classes"] < 75 and result["val/rank1"] > 0


def test_training_without_held_out_classes(tmp_path):
    source = write_rec(tmp_path / "set.rec", images([k // 3 for k in range(60)]), header=True)
    words = [*SHORT, "data=rec", f"data.source={source}", "data.num_heldout=0", "sample_rate=0.9"]
    assert trained(words, tmp_path / "run") == 0
    with pytest.raises(ValueError, match=r"checkpoint.best=val/rank1 cannot be measured: no classes are held out"):
        trained([*words, "checkpoint.best=val/rank1"], tmp_path / "best")
    result = summary(tmp_path / "run")
    assert result["num_classes"] == 20 and not any(name.startswith("val/") for name in result)


def test_processes_with_different_sets_do_not_train(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Processes, "gather", lambda self, figures: [figures, (61, 180, 0)])
    with pytest.raises(ValueError, match=r"process 1 finds 180 training records of 61 classes and 0 held-out records"):
        trained([*SHORT, "data=folder", f"data.source={folder}", "data.num_heldout=0"], tmp_path / "run")


def test_class_names_are_in_the_checkpoint(folder, tmp_path, capsys):
    """Another training with some of the classes can start from their rows."""
    words = [*SHORT, "head=full", "data=folder", f"data.source={folder}"]
    assert trained([*words, "data.num_heldout=0"], tmp_path / "run") == 0
    more = write_lmdb(tmp_path / "more.lmdb", images([0, 1, 2]))
    (more / "classes.txt").write_text("class 001\nclass 007\nelsewhere\n")
    words[-1] = f"data.source={more}"
    words += ["data=lmdb", "data.num_heldout=0", "batch_size=2", f"warm_start.checkpoint={tmp_path / 'run'}"]
    assert trained(words, tmp_path / "warm") == 0
    assert "the rows of 2 classes were loaded, matched by name" in capsys.readouterr().out
