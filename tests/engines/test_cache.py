from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from filelock import FileLock, Timeout

import xrt
from tests.support import model
from xrt.engines.cache import DiskCache, cache_folder, clear, entries


def listed(folder: Path) -> list[str]:
    """The keys that `folder` has entries of; nothing else but locks may be there."""
    files = [path for path in folder.iterdir() if not path.name.startswith(".lock-")]
    assert all(path.suffix == ".xrtcache" for path in files), files
    return sorted(path.stem for path in files)


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
        lambda content: content.replace(b"created", b"CREATED"),
        lambda content: content.replace(b"xrt-cache 1", b"xrt-cache 2"),
        lambda content: content[:12] + b"0" * 64 + content[76:],
        lambda content: content[77:],
        lambda content: b"\n" * 3,
    ],
)
def test_a_damaged_file_is_dropped(tmp_path, damage):
    cache = DiskCache(tmp_path)
    cache.put("k", b"payload")
    file = cache.path("k")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(xrt.errors.CacheWarning, match="damaged"):
        assert cache.get("k") is None
    assert not file.exists()
    cache.put("k", b"again")
    assert cache.get("k") == b"again"


def test_a_folder_in_the_place_of_a_file_counts_as_nothing(tmp_path):
    cache = DiskCache(tmp_path)
    cache.path("k").mkdir()
    assert cache.get("k") is None
    with pytest.warns(xrt.errors.CacheWarning, match="cannot be written"):
        cache.put("k", b"payload")
    assert cache.get("k") is None
    assert listed(tmp_path) == ["k"]


def test_a_folder_that_cannot_be_made_only_costs_time(tmp_path):
    (tmp_path / "file").write_text("in the way")
    cache = DiskCache(tmp_path / "file" / "cache")
    with pytest.warns(xrt.errors.CacheWarning, match="Not a directory"):
        cache.put("k", b"payload")
    with cache.lock("k"):  # which it cannot have, and does without
        pass
    assert cache.get("k") is None


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is read-only to root"
)
def test_a_read_only_folder_still_reads(tmp_path):
    cache = DiskCache(tmp_path)
    cache.put("old", b"payload")
    tmp_path.chmod(0o500)
    try:
        with cache.lock("new"), pytest.warns(xrt.errors.CacheWarning, match="Permission"):
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
    with pytest.warns(xrt.errors.CacheWarning, match="read-only file system"):
        cache.put("k", b"payload")
    assert cache.get("k") is None
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("xrt.engines.cache.os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        DiskCache(tmp_path).put("k", b"payload")
    assert list(tmp_path.iterdir()) == []


def test_the_least_recently_used_go_first(tmp_path):
    DiskCache(tmp_path).put("a", bytes(100))
    entry = DiskCache(tmp_path).path("a").stat().st_size
    cache = DiskCache(tmp_path, limit_bytes=3 * entry + 20)  # the time's digits vary
    long_ago = time.time() - 1000
    for age, key in enumerate("abc"):
        cache.put(key, bytes(100))
        os.utime(cache.path(key), (long_ago + age, long_ago + age))
    assert cache.get("a") == bytes(100)  # now b is the oldest
    cache.put("d", bytes(100))
    assert listed(tmp_path) == ["a", "c", "d"]


def test_the_limit_holds_for_all_engines_together(tmp_path):
    one, other = (
        DiskCache(tmp_path / name, root=tmp_path, limit_bytes=2500) for name in ("one", "other")
    )
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "notes.txt").write_bytes(bytes(5000))  # none of the cache's business
    for number in range(3):
        one.put(f"a{number}", bytes(1000))
        os.utime(one.path(f"a{number}"), (number, number))
    other.put("b", bytes(1000))
    assert (one.get("a1"), one.get("a2"), other.get("b")) == (None, bytes(1000), bytes(1000))
    assert (tmp_path / "one" / "notes.txt").exists()


def test_an_entry_larger_than_the_limit_does_not_stay(tmp_path):
    cache = DiskCache(tmp_path, limit_bytes=10)
    cache.put("k", bytes(100))
    assert listed(tmp_path) == []


def test_entries_say_what_they_are_and_can_be_cleared(tmp_path):
    before = time.time()
    for section, key in (("xla", "a"), ("xla", "b"), ("tune", "c")):
        cache = DiskCache(tmp_path / section, root=tmp_path)
        cache.put(key, bytes(10), {"cluster": f"of {key}"})
    DiskCache(tmp_path / "xla").path("a").write_bytes(b"?")
    (tmp_path / "xla" / "mine").write_text("not the cache's")
    found = {entry.path.stem: entry for entry in entries(tmp_path)}
    assert {key: entry.section for key, entry in found.items()} == {
        "a": "xla",
        "b": "xla",
        "c": "tune",
    }
    assert found["a"].about == {}
    assert found["b"].about["cluster"] == "of b"
    assert before - 1 < found["b"].about["created"] <= time.time()
    size = sum(found[key].bytes for key in "ab")
    assert clear(tmp_path, "xla") == (2, size)
    assert [entry.path.stem for entry in entries(tmp_path)] == ["c"]
    assert clear(tmp_path) == (1, found["c"].bytes)
    assert (tmp_path / "xla" / "mine").exists()
    assert clear(tmp_path / "nowhere") == (0, 0)


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
    assert set(listed(tmp_path)) <= {f"k{number}" for number in range(7)}
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= 20_000


KILLED = """
import os, signal, sys
from pathlib import Path
from xrt.engines.cache import DiskCache
cache = DiskCache(Path(sys.argv[1]))
cache.put("k", b"whole")
replace = os.replace
os.replace = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
with cache.lock("k"):
    cache.put("k", b"never there")
"""


def test_a_writer_that_is_killed_leaves_the_old_entry_and_no_lock(tmp_path, monkeypatch):
    run = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True)
    assert run.returncode == -9
    cache = DiskCache(tmp_path)
    assert cache.get("k") == b"whole"
    (left,) = tmp_path.glob(".writing-*")
    monkeypatch.setattr("xrt.engines.cache.LOCK_SECONDS", 0.0)
    holder = FileLock(next(tmp_path.glob(".lock-*")))
    with cache.lock("k"), pytest.raises(Timeout):  # so the cache holds it
        holder.acquire(timeout=0)
    cache.put("k", b"new")
    assert left.exists()  # its writer might still be at it
    os.utime(left, (0, 0))
    cache.put("k", b"newer")
    assert listed(tmp_path) == ["k"]
    assert cache.get("k") == b"newer"


FULL = """
import resource, sys, warnings
from pathlib import Path
from xrt.engines.cache import DiskCache
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
warnings.simplefilter("error")
cache = DiskCache(Path(sys.argv[1]))
cache.put("small", bytes(1000))
try:
    cache.put("large", bytes(100_000))
except Warning as warning:
    print(warning)
print(len(cache.get("small")), cache.get("large"))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no resource limits")
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True
    )
    said, kept = run.stdout.splitlines()
    assert "cannot be written: File too large" in said
    assert (kept, run.stderr) == ("1000 None", "")
    assert listed(tmp_path) == ["small"]


COMPILER = """
import sys, time
import numpy as np
import xrt
from xrt.engines.xla import engine
build, built = engine._build, []
engine._build = lambda *args: (built.append(1), time.sleep(0.3), build(*args))[2]
while time.time() < float(sys.argv[2]):
    time.sleep(0.01)
program = xrt.compile(sys.argv[1], engine="xla", options=xrt.CompileOptions(strict=True))
x = np.arange(6, dtype=np.float32).reshape(2, 3)
print(len(built), program(x).tolist())
"""


def test_ten_processes_build_a_model_once(tmp_path):
    text = "g (float[2,3] x) => (float[2,4] y) <float[3,4] w> { a = MatMul (x, w) y = Relu (a) }"
    weights = np.arange(12, dtype=np.float32).reshape(3, 4) - 5
    onnx.save(ir.to_proto(model(text, w=weights)), tmp_path / "model.onnx")
    start = str(time.time() + 5)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", COMPILER, str(tmp_path / "model.onnx"), start],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "XRT_CACHE_DIR": str(tmp_path / "cache")},
        )
        for _ in range(10)
    ]
    want = np.maximum(np.arange(6).reshape(2, 3) @ weights, 0).tolist()
    built = 0
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert (process.returncode, err) == (0, "")
        number, _, got = out.strip().partition(" ")
        built += int(number)
        assert got == str(want)
    assert built == 1
    assert len(listed(tmp_path / "cache" / "xla")) == 1


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
        return [p for p in tmp_path.rglob("*.xrtcache") if p.is_file()]

    run(cache=False)
    assert files() == []
    run()
    (entry,) = files()
    (about,) = [each.about for each in entries(tmp_path)]
    assert about["operators"] == {"MatMul": 1, "Relu": 1}
    written = entry.read_bytes()
    run()
    assert entry.read_bytes() == written
    entry.write_bytes(written[: len(written) // 2])
    with pytest.warns(xrt.errors.CacheWarning, match="damaged"):
        run()
    assert len(entry.read_bytes()) > len(written) // 2
    run(cache_bytes=0)  # it was there: nothing is written, nothing goes
    assert files() == [entry]
