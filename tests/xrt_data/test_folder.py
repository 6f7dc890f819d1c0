"""Which files a folder has, what becomes of corrupt ones, and in which order batches come."""

import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.xrt_data.images import flat, greys, photo, write
from xrt.data import Batch, ImageFolder
from xrt.errors import (
    CorruptImageError,
    CorruptImageWarning,
    DataError,
    DataNotFoundError,
    MissingDependencyError,
    OptionError,
)


def small(path, batch_size=4, **options):
    return ImageFolder(path, 8, batch_size, **{"resize": 8, "dtype": "uint8", **options})


def flattened(batches):
    """The grey of each image."""
    return [grey for batch in values(batches) for grey in batch]


def values(batches):
    """For each batch the grey of each image."""
    return [batch.images[:, 0, 0, 0].tolist() for batch in batches]


@pytest.fixture
def classes(tmp_path):
    for name, grey in (("cat", 10), ("dog", 20), ("ant", 0)):
        for number in range(3):
            write(tmp_path / name / f"{number}.png", flat(grey + number))
    return tmp_path


# --- files, classes, labels -----------------------------------------------------------------------


def test_a_folder_for_each_class(classes):
    folder = small(classes)
    assert folder.classes == ("ant", "cat", "dog")
    assert folder.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert folder.labels.dtype == np.int64
    assert folder.paths[3] == classes / "cat" / "0.png"
    batches = list(folder)
    assert len(folder) == len(batches) == 3
    assert values(batches) == [[0, 1, 2, 10], [11, 12, 20, 21], [22]]
    assert [batch.labels.tolist() for batch in batches] == [[0, 0, 0, 1], [1, 1, 2, 2], [2]]
    assert batches[0].paths == folder.paths[:4]


def test_a_batch_is_a_tuple_of_inputs(classes):
    batch = next(iter(small(classes)))
    assert isinstance(batch, tuple)
    assert isinstance(batch, Batch)
    (images,) = batch
    assert images is batch.images
    assert images.shape == (4, 3, 8, 8)
    assert repr(batch) == "<xrt.data.Batch, uint8 [4, 3, 8, 8]>"


def test_chosen_classes_have_the_order_that_was_asked_for(classes):
    folder = small(classes, classes=["dog", "ant"])
    assert folder.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert values(folder) == [[20, 21, 22, 0], [1, 2]]


def test_a_folder_without_classes(tmp_path):
    folder = small(greys(tmp_path, 6))
    assert folder.classes == ()
    assert folder.labels is None
    (first, second) = list(folder)
    assert first.labels is None
    assert values([first, second]) == [[0, 1, 2, 3], [4, 5]]


def test_other_files_are_ignored_and_listed(classes):
    for name in ("list.txt", "cat/readme.md", "cat/._0.png", "dog/.DS_Store"):
        (classes / name).write_text("no image")
    (classes / ".cache").mkdir()
    folder = small(classes)
    assert len(folder.paths) == 9
    listed = {path.relative_to(classes).as_posix() for path in folder.ignored}
    assert listed == {"list.txt", "cat/readme.md", "cat/._0.png", "dog/.DS_Store"}
    assert "9 images of 3 classes, 4 other files ignored" in repr(folder)
    assert list(folder)
    assert not folder.corrupt


def test_folders_in_a_class_and_any_spelling_of_an_extension(tmp_path):
    write(tmp_path / "a" / "deep" / "x.png", flat(1))
    flat(2).save(tmp_path / "a" / "y.JPeG", format="JPEG")
    assert [path.name for path in small(tmp_path).paths] == ["y.JPeG", "x.png"]


def test_a_missing_folder(tmp_path):
    with pytest.raises(DataNotFoundError, match="missing' does not exist"):
        small(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="is no folder"):
        small(write(tmp_path / "a.png", flat(1)))


def test_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match=r"no images in .*: no files, no folders.*\.jpg"):
        small(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match=r"1 other files, such as 'notes.txt'"):
        small(tmp_path)


def test_a_class_without_images(classes):
    (classes / "eel").mkdir()
    with pytest.raises(DataError, match=r"class 'eel' has no images: no files in .*classes="):
        small(classes)
    assert len(small(classes, classes=["ant"]).paths) == 3


def test_an_unknown_class(classes):
    with pytest.raises(DataError, match=r"class 'cow' is unknown\. The folders .*: ant, cat, dog"):
        small(classes, classes=["ant", "cow"])


def test_a_class_that_is_named_twice(classes):
    with pytest.raises(OptionError, match="classes names 'cat' more than once"):
        small(classes, classes=["cat", "ant", "cat"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "dtype 'float16' is unknown. Known: float32, uint8"),
        ({"layout": "CHWN"}, "layout"),
        ({"last": "repeat"}, "last 'repeat'"),
        ({"on_corrupt": "ignore"}, "on_corrupt"),
        ({"interpolation": "nearest"}, "interpolation"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1; got 0"),
        ({"batch_size": True}, "batch_size"),
        ({"workers": 0}, "workers"),
        ({"prefetch": -1}, "prefetch"),
        ({"seed": 1.5}, "seed"),
        ({"resize": 7}, "size=8 cannot be cut out of images that are resized to 7"),
        ({"resize": (8, 7)}, "cannot be cut"),
        ({"resize": (8, 8, 3)}, r"resize must be a number or \(height, width\)"),
        ({"resize": "8"}, r"resize must be a number or \(height, width\)"),
        ({"mean": (0.5,)}, "three numbers"),
        ({"mean": 0.5}, "three numbers, for red, green and blue; got 0.5 and"),
        ({"std": ("a", "b", "c")}, "three numbers"),
        ({"resize": np.bool_(True)}, "resize"),
        ({"std": (1, 0, 1)}, "std must be"),
    ],
)
def test_unknown_options(tmp_path, options, message):
    with pytest.raises(OptionError, match=message):
        small(greys(tmp_path, 1), **options)


def test_what_is_no_path():
    with pytest.raises(OptionError, match="path must be a string or a path; got 5 of type int"):
        ImageFolder(5)


def test_whole_numbers_of_numpy(tmp_path):
    greys(tmp_path, 3)
    two, eight = np.int64(2), np.int32(8)
    folder = ImageFolder(tmp_path, eight, two, resize=eight, workers=two, prefetch=two, seed=two)
    assert [batch.images.shape for batch in folder] == [(2, 3, 8, 8), (1, 3, 8, 8)]
    folder = ImageFolder(tmp_path, (eight, eight), two, resize=(eight, eight))
    assert len(folder) == 2


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="changes who reads")
@pytest.mark.parametrize("closed", ["", "cat", "cat/deep"])
def test_a_folder_that_cannot_be_read(closed):
    with tempfile.TemporaryDirectory() as name:  # everyone may enter the folder that it is in
        root = Path(name)
        write(root / "cat" / "deep" / "1.png", flat(1))
        for folder in (root, root / "cat", root / "cat" / "deep"):
            folder.chmod(0o755)
        user = os.geteuid()
        (root / closed).chmod(0)
        try:
            if user == 0:  # who may read everything
                os.seteuid(65534)
            with pytest.raises(DataError, match=f"{root / closed}' cannot be read: Permission"):
                small(root)
        finally:
            os.seteuid(user)
            (root / closed).chmod(0o755)


def test_without_pillow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependencyError, match=r"'pillow'.*pip install 'xrt\[image\]'"):
        small(tmp_path)


def test_needs_no_torch(tmp_path):
    greys(tmp_path, 2)
    code = (
        "import sys, xrt; assert 'xrt.data' not in sys.modules;"
        f"(images,), = xrt.data.ImageFolder({str(tmp_path)!r}); print(images.shape);"
        "print({'torch', 'jax', 'onnx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["(2, 3, 224, 224)", "set()"]


# --- order ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 13])
@pytest.mark.parametrize("prefetch", [0, 3])
def test_the_order_does_not_depend_on_threads(tmp_path, workers, prefetch):
    for number in range(40):  # big ones, which take long, among small ones
        size = 400 if number % 7 == 0 else 8
        write(tmp_path / f"{number:02}.png", flat(number, size))
    folder = small(tmp_path, batch_size=7, workers=workers, prefetch=prefetch)
    for _ in range(2):
        assert flattened(folder) == list(range(40))


def test_shuffling_is_reproducible_and_differs_by_pass(tmp_path):
    greys(tmp_path, 24)
    folder = small(tmp_path, shuffle=True, seed=3)
    first, second = (flattened(folder) for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(24))
    assert first != second
    assert first != list(range(24))
    again = small(tmp_path, shuffle=True, seed=3, workers=5)
    assert [flattened(again) for _ in range(2)] == [first, second]
    assert flattened(small(tmp_path, shuffle=True, seed=4)) != first


def test_labels_and_paths_follow_a_shuffle(classes):
    folder = small(classes, shuffle=True)
    for batch in folder:
        for image, label, path in zip(batch.images, batch.labels, batch.paths, strict=True):
            assert path.parent.name == folder.classes[label]
            assert image[0, 0, 0] == np.asarray(Image.open(path))[0, 0, 0]


def test_passes_run_beside_each_other(tmp_path):
    folder = small(greys(tmp_path, 12))
    assert [(a, b) for a, b in zip(values(folder), values(folder), strict=True)][2] == (
        [8, 9, 10, 11],
        [8, 9, 10, 11],
    )


@pytest.mark.parametrize(
    ("last", "length", "want"),
    [
        ("keep", 2, [[0, 1, 2, 3], [4, 5]]),
        ("drop", 1, [[0, 1, 2, 3]]),
        ("pad", 2, [[0, 1, 2, 3], [4, 5, 0, 0]]),
    ],
)
def test_the_last_batch(tmp_path, last, length, want):
    for number in range(6):
        write(tmp_path / "a" / f"{number}.png", flat(number))
    folder = small(tmp_path, last=last)
    assert len(folder) == length
    for _ in range(2):  # the second pass finds the memory of the first in use
        batches = list(folder)
        assert values(batches) == want
        labels = [batch.labels.tolist() for batch in batches]
        assert labels == [[0 if n < 6 else -1 for n in range(4 * i, 4 * i + len(each))]
                          for i, each in enumerate(want)]  # fmt: skip
        assert [len(batch.paths) for batch in batches] == [4, 2][:length]


def test_labels_beside_the_batches(classes):
    batches = iter(small(classes))
    pairs = list(zip(values(batches), batches.labels, batches.paths, strict=True))
    assert [labels.tolist() for _, labels, _ in pairs] == [[0, 0, 0, 1], [1, 1, 2, 2], [2]]
    assert pairs[2][2] == (classes / "dog" / "2.png",)


def test_labels_may_go_first(classes):
    batches = iter(small(classes))
    pairs = list(zip(batches.labels, batches, strict=True))
    assert [(labels.tolist(), batch.labels.tolist()) for labels, batch in pairs] == [
        ([0, 0, 0, 1],) * 2,
        ([1, 1, 2, 2],) * 2,
        ([2],) * 2,
    ]


# --- corrupt files --------------------------------------------------------------------------------


def spoil(root, number, kind):
    path = root / f"{number:04}.png"
    whole = path.read_bytes()
    contents = {"empty": b"", "text": b"no image at all", "truncated": whole[: len(whole) - 40]}
    if kind == "missing":
        path.unlink()
    elif kind == "header":
        path.write_bytes(whole[:20] + b"\xff" * 20 + whole[40:])
    else:
        path.write_bytes(contents[kind])
    return path


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "missing", "header"])
def test_a_corrupt_file_is_left_out_and_named(tmp_path, kind):
    folder = small(greys(tmp_path, 10, size=64))
    path = spoil(tmp_path, 2, kind)
    with pytest.warns(CorruptImageWarning, match=r"1 of 10 files could not be read.*0002\.png"):
        got = values(folder)
    assert got == [[0, 1, 3, 4], [5, 6, 7, 8], [9]]
    ((found, reason),) = folder.corrupt
    assert found == path
    assert reason


def test_a_truncated_jpeg(tmp_path):
    path = write(tmp_path / "a" / "x.jpg", photo(300, 200), quality=90)
    write(tmp_path / "a" / "y.jpg", photo(300, 200), quality=90)
    path.write_bytes(path.read_bytes()[:4000])
    folder = small(tmp_path, last="pad")
    with pytest.warns(CorruptImageWarning):
        (batch,) = list(folder)
    assert batch.labels.tolist() == [0, -1, -1, -1]
    assert [path.name for path in batch.paths] == ["y.jpg"]
    assert "truncated" in folder.corrupt[0].reason


@pytest.mark.parametrize("corrupt", [[0], [3], [4], [0, 1, 2, 3], [3, 4, 5], [2, 5, 8, 11, 14],
                                     [11], [*range(12)], [0, *range(4, 12), 14]])  # fmt: skip
@pytest.mark.parametrize("last", ["keep", "drop", "pad"])
def test_what_is_left_moves_up(tmp_path, corrupt, last):
    folder = small(greys(tmp_path, 15), last=last, workers=3)
    for number in corrupt:
        spoil(tmp_path, number, "text")
    good = [number for number in range(15) if number not in corrupt]
    want = [good[start : start + 4] for start in range(0, len(good), 4)]
    if last == "drop":
        want = [each for each in want if len(each) == 4]
    if last == "pad":
        want = [each + [0] * (4 - len(each)) for each in want]
    for _ in range(2):
        with pytest.warns(CorruptImageWarning):
            kept = list(folder)  # all of them, so that no memory is used twice
        assert values(kept) == want
        assert sum((len(batch.paths) for batch in kept), 0) == sum(
            len(good[4 * n : 4 * n + 4]) for n in range(len(want))
        )
    assert [path.name for path, _ in folder.corrupt] == [f"{n:04}.png" for n in corrupt]


def test_memory_stays_bounded_however_many_are_corrupt(tmp_path):
    folder = small(greys(tmp_path, 200), batch_size=2, prefetch=1)
    for number in range(200):
        if number % 5:
            spoil(tmp_path, number, "text")
    with pytest.warns(CorruptImageWarning, match="160 of 200"):
        assert flattened(folder) == [*range(0, 200, 5)]
    assert folder._pool.allocated <= 6


def test_raising_at_a_corrupt_file(tmp_path):
    folder = small(greys(tmp_path, 12), on_corrupt="raise")
    path = spoil(tmp_path, 6, "text")
    batches = iter(folder)
    assert values([next(batches)]) == [[0, 1, 2, 3]]
    with pytest.raises(
        CorruptImageError, match=r"0006\.png' cannot be read: it is none of"
    ) as info:
        next(batches)
    assert info.value.path == str(path)
    assert list(batches) == []


def test_nothing_but_corrupt_files(tmp_path):
    folder = small(greys(tmp_path, 3))
    for number in range(3):
        spoil(tmp_path, number, "empty")
    with pytest.raises(DataError, match=r"3 of 3 files could not be read.*0000\.png"):
        list(folder)


def test_a_decompression_bomb_is_corrupt(tmp_path, monkeypatch):
    folder = small(greys(tmp_path, 2))
    write(tmp_path / "0001.png", flat(1, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert values(folder) == [[0]]
    assert "pixels" in folder.corrupt[0].reason


def test_running_out_of_files_is_not_blamed_on_images(tmp_path):
    pytest.importorskip("resource")
    greys(tmp_path, 2)
    code = (
        "import resource, sys, xrt; folder = xrt.data.ImageFolder(sys.argv[1]); list(folder);"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3)); list(folder)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Too many open files" in done.stderr.splitlines()[-1]


def test_a_file_of_another_format_than_its_name_says_is_read(tmp_path):
    flat(7).save(tmp_path / "a.jpg", format="PNG")
    assert values(small(tmp_path)) == [[7]]


def test_formats_beyond_those_of_images_are_not_tried(tmp_path):
    greys(tmp_path, 1)
    flat(7).save(tmp_path / "1.png", format="ICO")
    folder = small(tmp_path)
    with pytest.warns(CorruptImageWarning):
        assert values(folder) == [[0]]


def test_numbers_without_a_range_are_refused(tmp_path):
    greys(tmp_path, 1)
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "1.tiff")
    folder = small(tmp_path)
    with pytest.warns(CorruptImageWarning):
        assert values(folder) == [[0]]
    assert "mode F" in folder.corrupt[0].reason
