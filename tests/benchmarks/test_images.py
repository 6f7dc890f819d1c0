import pytest

from benchmarks.images import decode, summary
from benchmarks.photographs import WARM, write_folder
from xrt.data import ImageFolder


@pytest.mark.slow
def test_the_folder_is_the_same_every_time(tmp_path):
    sizes = [write_folder(tmp_path / name, images=6, parts=2, warm=2) for name in "ab"]
    assert sizes[0] == sizes[1]
    one, other = (ImageFolder(tmp_path / name) for name in "ab")
    assert one.classes == ("part00", "part01", WARM)
    assert one.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    contents = [[path.read_bytes() for path in folder.paths] for folder in (one, other)]
    assert contents[0] == contents[1]
    assert len(set(contents[0])) == 8


def test_files_weigh_what_photographs_weigh(tmp_path):
    size = write_folder(tmp_path, images=8, parts=1, warm=2)
    assert 40_000 < size / 10 < 120_000


def test_decoding_looks_at_every_part(tmp_path):
    write_folder(tmp_path, images=6, parts=2, warm=2)
    turn = decode(batch=2, threads=2)
    magnitudes = [turn(tmp_path / name) for name in ("part00", "part01")]
    assert magnitudes[0] != magnitudes[1]
    assert all(20 < magnitude < 235 for magnitude in magnitudes)


def test_what_the_reach_asks_for():
    rates = {"decode": 1000.0, "compute": 30.0, "xrt": 29.0, "torch": 10.0}
    found = summary({name: {"images_per_second": rate} for name, rate in rates.items()})
    assert found["least"] == 30
    assert found["of_least"] == pytest.approx(29 / 30)
    assert found["shared_cores"] == pytest.approx(30_000 / 1030)
    assert found["over_torch"] == pytest.approx(2.9)
    assert "over_openvino" not in found
