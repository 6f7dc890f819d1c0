from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import xrt
from tests.support import model
from xrt.engines.cache import DiskCache, cache_folder


def test_what_is_put_is_got(tmp_path):
    cache = DiskCache(tmp_path / "deep" / "er")
    assert cache.get("k") is None
    for payload in (b"", b"one", b"\n\n" * 5, os.urandom(1 << 16)):
        cache.put("k", payload)
        assert cache.get("k") == payload
    cache.drop("k")
    cache.drop("k")
    assert cache.get("k") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[:10],
        lambda content: content + b"x",
        lambda content: content.replace(b"payload", b"PAYLOAD"),
        lambda content: b"0" * 64 + content[64:],
        lambda content: content[65:],
    ],
)
def test_a_damaged_file_is_dropped(tmp_path, damage):
    cache = DiskCache(tmp_path)
    cache.put("k", b"payload")
    file = tmp_path / "k"
    file.write_bytes(damage(file.read_bytes()))
    assert cache.get("k") is None
    assert not file.exists()
    cache.put("k", b"again")
    assert cache.get("k") == b"again"


def test_a_folder_in_the_place_of_a_file_counts_as_nothing(tmp_path):
    (tmp_path / "k").mkdir()
    cache = DiskCache(tmp_path)
    assert cache.get("k") is None
    cache.put("k", b"payload")
    assert cache.get("k") is None
    assert [p.name for p in tmp_path.iterdir()] == ["k"]


def test_a_folder_that_cannot_be_made_only_costs_time(tmp_path):
    (tmp_path / "file").write_text("in the way")
    cache = DiskCache(tmp_path / "file" / "cache")
    cache.put("k", b"payload")
    assert cache.get("k") is None


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is read-only to root"
)
def test_a_read_only_folder_still_reads(tmp_path):
    cache = DiskCache(tmp_path)
    cache.put("old", b"payload")
    tmp_path.chmod(0o500)
    try:
        cache.put("new", b"payload")
        assert cache.get("new") is None
        assert cache.get("old") == b"payload"
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("call", ["tempfile.mkstemp", "os.replace"])
def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch, call):
    def refuse(*args, **kwargs):
        raise PermissionError("read-only file system")

    monkeypatch.setattr(f"xrt.engines.cache.{call}", refuse)
    cache = DiskCache(tmp_path)
    cache.put("k", b"payload")
    assert cache.get("k") is None
    assert list(tmp_path.iterdir()) == []


def test_the_least_recently_used_go_first(tmp_path):
    entry = 65 + 100  # the digest, a newline, the payload
    cache = DiskCache(tmp_path, limit_bytes=3 * entry)
    long_ago = time.time() - 1000
    for age, key in enumerate("abc"):
        cache.put(key, bytes(100))
        os.utime(tmp_path / key, (long_ago + age, long_ago + age))
    assert cache.get("a") == bytes(100)  # now b is the oldest
    cache.put("d", bytes(100))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "c", "d"]


def test_an_entry_larger_than_the_limit_does_not_stay(tmp_path):
    cache = DiskCache(tmp_path, limit_bytes=10)
    cache.put("k", bytes(100))
    assert list(tmp_path.iterdir()) == []


WRITER = """
import sys
from pathlib import Path
from xrt.engines.cache import DiskCache
cache = DiskCache(Path(sys.argv[1]), limit_bytes=20_000)
wrong = 0
for turn in range(200):
    key = f"k{turn % 7}"
    cache.put(key, key.encode() * 500)
    got = cache.get(key)
    wrong += got is not None and got != key.encode() * 500
print(wrong)
"""


def test_processes_share_a_folder(tmp_path):
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for writer in writers:
        out, err = writer.communicate(timeout=120)
        assert (writer.returncode, out.strip(), err) == (0, "0", "")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".writing-")]
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 20_000


def test_threads_share_a_cache(tmp_path):
    cache = DiskCache(tmp_path, limit_bytes=5_000)
    failures = []

    def work():
        try:
            for turn in range(100):
                cache.put(f"k{turn % 5}", bytes(1000))
                assert cache.get(f"k{turn % 5}") in (None, bytes(1000))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_the_folder_is_the_option_the_variable_or_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("XRT_CACHE_DIR", str(tmp_path / "variable"))
    chosen = xrt.CompileOptions(cache_dir=tmp_path / "option")
    assert cache_folder(chosen) == tmp_path / "option"
    assert cache_folder(xrt.CompileOptions()) == tmp_path / "variable"
    monkeypatch.delenv("XRT_CACHE_DIR")
    assert cache_folder(xrt.CompileOptions()).name == "xrt"


def test_a_program_is_right_from_a_cold_a_warm_and_a_damaged_cache(tmp_path):
    made = model(
        "g (float[2,3] x) => (float[2,4] y) <float[3,4] w> { a = MatMul (x, w) y = Relu (a) }",
        w=np.arange(12).reshape(3, 4) - 5,
    )
    x = np.ones((2, 3), np.float32)
    want = np.maximum(x @ (np.arange(12, dtype=np.float32).reshape(3, 4) - 5), 0)

    def run(**options):
        options = xrt.CompileOptions(cache_dir=tmp_path, **options)
        np.testing.assert_allclose(xrt.compile(made, engine="xla", options=options)(x), want)

    def files() -> list[Path]:
        return [p for p in tmp_path.rglob("*") if p.is_file()]

    run(cache=False)
    assert files() == []
    run()
    (entry,) = files()
    written = entry.read_bytes()
    run()
    assert entry.read_bytes() == written
    entry.write_bytes(written[: len(written) // 2])
    run()
    assert entry.read_bytes()[:64] != b""
    assert len(entry.read_bytes()) > len(written) // 2
