"""What TensorRT measured when it built, kept in a file. TensorRT-RTX measures nothing."""

from __future__ import annotations

import pytest

import xrt
from xrt.engines.tensorrt import build as B
from xrt.errors import CacheWarning, OptionError


class Timings:
    """The library's cache of timings, and the configuration of a builder that holds it."""

    def __init__(self, fits: bool = True) -> None:
        self.data, self._fits = b"", fits

    def create_timing_cache(self, data: bytes) -> Timings | None:
        self.data = data
        return None if data == b"damaged" else self

    def set_timing_cache(self, cache: Timings, ignore_mismatch: bool) -> bool:
        return self._fits

    def get_timing_cache(self) -> Timings:
        return self

    def serialize(self) -> bytes:
        return self.data + b" and more"


def test_timings_are_read_and_written_back(tmp_path):
    path = tmp_path / "new" / "timings"
    for count in (1, 2):
        config = Timings()
        B._take_timings(config, path)
        B._keep_timings(config, xrt.TensorRTOptions(timing_cache=path))
        assert path.read_bytes() == b" and more" * count
    assert list(path.parent.iterdir()) == [path]


def test_a_finished_plan_survives_timings_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    options = xrt.TensorRTOptions(timing_cache=tmp_path / "file" / "timings")
    with pytest.warns(CacheWarning, match=r"timing cache .* cannot be written: (Not|File)"):
        B._keep_timings(Timings(), options)


@pytest.mark.parametrize(("content", "fits"), [(b"damaged", True), (b"of another GPU", False)])
def test_timings_that_the_library_does_not_take_are_refused(tmp_path, content, fits):
    path = tmp_path / "timings"
    path.write_bytes(content)
    with pytest.raises(OptionError, match=r"does not take .*timings.* Name another file"):
        B._take_timings(Timings(fits), path)
    assert path.read_bytes() == content
