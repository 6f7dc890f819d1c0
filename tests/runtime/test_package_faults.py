"""Saved programs under faults: files that are damaged, foreign or old, and disks that are full."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import xrt
from tests.engines.test_registry import vendor  # noqa: F401  (a fixture)
from tests.runtime.test_package import TWO, compiled, normal, same
from tests.support import model
from xrt.engines.xla import XlaEngine
from xrt.errors import (
    EngineBuildError,
    EngineUnavailableError,
    OptionError,
    ProgramFileError,
    ProgramNotFoundError,
    ProgramWriteError,
    StaleProgramWarning,
)
from xrt.runtime import archive

W = normal(8, 32)
INPUT = normal(2, 8)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XRT_CACHE_DIR", str(tmp_path / "cache"))


def program() -> xrt.Program:
    return compiled(TWO, INPUT, constants={"w": W})


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "program.xrt"
    program().save(path)
    return path


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """The bytes of a file, a place for damaged ones, and what the program gives."""
    folder = tmp_path_factory.mktemp("damaged")
    made = program()
    made.save(folder / "program.xrt")
    return (folder / "program.xrt").read_bytes(), folder / "damaged.xrt", made(INPUT)


def edited(path: Path, change: Any, *, version: int = archive.FORMAT) -> Path:
    """A file like `path` whose manifest, or members, `change` has edited; its digests are right."""
    with zipfile.ZipFile(path) as opened:
        contents = {info.filename: opened.read(info) for info in opened.infolist()}
    manifest = json.loads(contents.pop(archive.MANIFEST))
    manifest.pop("members")
    change(manifest, contents)
    before, archive.FORMAT = archive.FORMAT, version
    target = path.with_name("edited.xrt")
    try:
        members = [archive.member(name, content) for name, content in contents.items()]
        archive.write(target, members, manifest)
    finally:
        archive.FORMAT = before
    return target


def fits_or_fails(path: Path, want: Any) -> bool:
    """Whether a damaged file loads; if it does, it computes what it did."""
    try:
        loaded = xrt.load(path)
    except ProgramFileError:
        return False
    same(loaded(INPUT), want)
    return True


SLOW = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SLOW
@given(data=st.data())
def test_a_flipped_bit_is_found_or_harmless(intact, data):
    content, path, want = intact
    place = data.draw(st.integers(0, len(content) - 1))
    damaged = bytearray(content)
    damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(damaged)
    fits_or_fails(path, want)


@SLOW
@given(data=st.data())
def test_a_flipped_bit_of_the_directory_is_found_or_harmless(intact, data):
    content, path, want = intact
    place = data.draw(st.integers(content.index(b"PK\x01\x02"), len(content) - 1))
    damaged = bytearray(content)
    damaged[place] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    fits_or_fails(path, want)


@SLOW
@given(data=st.data())
def test_a_file_that_was_cut_is_refused(intact, data):
    content, path, want = intact
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    assert not fits_or_fails(path, want)


@SLOW
@given(data=st.data())
def test_a_file_with_bytes_put_in_or_taken_out_is_refused_or_harmless(intact, data):
    content, path, want = intact
    place = data.draw(st.integers(0, len(content)))
    path.write_bytes(
        content[:place]
        + data.draw(st.binary(max_size=70))
        + content[place + data.draw(st.integers(0, 70)) :]
    )
    fits_or_fails(path, want)


def test_every_byte_of_every_content_counts(intact):
    content, path, _ = intact
    places = archive.Archive(path.with_name("program.xrt"))._places
    with zipfile.ZipFile(path.with_name("program.xrt")) as opened:
        table = json.loads(opened.read(archive.MANIFEST))["members"]
    assert set(table) == set(places) - {archive.MANIFEST}
    assert {name.partition("-")[0] for name in table} == {
        "model", "specialization", "payload", "weights",
    }  # fmt: skip
    for name, entry in table.items():
        place = places[name].start
        assert place % 64 == 0
        for offset in {0, entry["size"] // 2, entry["size"] - 1}:
            damaged = bytearray(content)
            damaged[place + offset] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(ProgramFileError, match=f"content of '{name}' does not fit its dig"):
                xrt.load(path)
            if name.startswith("weights"):  # who asks for it trusts them
                assert xrt.load(path, verify=False).clusters


def test_a_foreign_file_is_named(tmp_path, saved):
    def refused(path: Path, message: str) -> None:
        with pytest.raises(ProgramFileError, match=message):
            xrt.load(path)

    with pytest.raises(ProgramNotFoundError, match=r"There is no file .*absent\.xrt"):
        xrt.load(tmp_path / "absent.xrt")
    with pytest.raises(FileNotFoundError):
        xrt.load(str(tmp_path / "absent.xrt"))
    refused(tmp_path, "is a folder")
    other = tmp_path / "other"
    other.write_bytes(b"")
    refused(other, "is empty")
    other.write_text("Hello.")
    refused(other, "no saved program: it is no zip file.*models are compiled by xrt.compile")
    onnx.save(ir.to_proto(model(TWO, w=W)), other)
    refused(other, "no saved program: it is no zip file")
    with zipfile.ZipFile(other, "w") as made:
        made.writestr("a.txt", "a")
    refused(other, "a zip file of something else")
    with zipfile.ZipFile(saved) as opened, zipfile.ZipFile(other, "w") as made:
        made.comment = opened.comment
        for info in opened.infolist():
            made.writestr(info.filename, opened.read(info), zipfile.ZIP_DEFLATED)
    refused(other, "compressed or encrypted")
    with zipfile.ZipFile(saved) as opened, zipfile.ZipFile(other, "w") as made:
        made.comment = opened.comment
        for info in opened.infolist():
            made.writestr(info.filename, opened.read(info))
    refused(other, "not aligned; was it packed anew")
    other.write_bytes(saved.read_bytes() + b"more")
    refused(other, "damaged")
    other.write_bytes(saved.read_bytes()[:-1000])
    refused(other, "it was cut short, to")


@pytest.mark.parametrize("name", ["../escape.bin", "/etc/passwd", "a\\b", "model-0.onnx/x", "x.py"])
def test_names_that_no_program_has_are_refused(tmp_path, saved, name):
    other = tmp_path / "other.xrt"
    content = saved.read_bytes()
    with zipfile.ZipFile(saved) as opened:
        comment = opened.comment
    with zipfile.ZipFile(other, "w") as made:
        made.writestr(name, b"x" * 64)
        made.comment = comment
    with pytest.raises(ProgramFileError, match="which no saved program has"):
        xrt.load(other)
    assert saved.read_bytes() == content
    assert not (tmp_path.parent / "escape.bin").exists()


def test_a_size_that_is_not_there_costs_no_memory(tmp_path, saved):
    content = bytearray(saved.read_bytes())
    place = content.index(b"PK\x01\x02")
    for offset in (20, 24):  # both sizes of the first member, in the directory
        content[place + offset : place + offset + 4] = (0xFFFFFFF0).to_bytes(4, "little")
    other = tmp_path / "other.xrt"
    other.write_bytes(content)
    with pytest.raises(ProgramFileError, match="of 4294967280 bytes does not fit into it"):
        xrt.load(other)


def test_a_graph_that_points_elsewhere_is_refused(saved):
    def point(manifest: Any, contents: dict[str, bytes]) -> None:
        proto = onnx.ModelProto.FromString(contents["model-0.onnx"])
        (entry,) = (e for e in proto.graph.initializer[0].external_data if e.key == "location")
        entry.value = "/etc/passwd"
        contents["model-0.onnx"] = proto.SerializeToString()

    with pytest.raises(ProgramFileError, match="lacks the member '/etc/passwd'"):
        xrt.load(edited(saved, point))

    def stretch(manifest: Any, contents: dict[str, bytes]) -> None:
        proto = onnx.ModelProto.FromString(contents["model-0.onnx"])
        proto.graph.initializer[0].dims[:] = [1 << 40, 1 << 20]
        contents["model-0.onnx"] = proto.SerializeToString()

    with pytest.raises(ProgramFileError, match=r"does not fit into 'weights-0\.bin'"):
        xrt.load(edited(saved, stretch))


def test_a_constant_that_names_a_file_is_refused(saved, tmp_path):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(1 << 16))

    def point(manifest: Any, contents: dict[str, bytes]) -> None:
        for name in [name for name in contents if name.endswith(".onnx")]:
            proto = onnx.ModelProto.FromString(contents[name])
            tensor = onnx.TensorProto(name="stolen", data_type=onnx.TensorProto.FLOAT, dims=[3])
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", str(secret)), ("offset", "0"), ("length", "12")):
                entry = tensor.external_data.add()
                entry.key, entry.value = key, value
            node = onnx.helper.make_node("Constant", [], ["stolen"], value=tensor)
            proto.graph.node.insert(0, node)
            contents[name] = proto.SerializeToString()

    with pytest.raises(ProgramFileError, match="names a file for its 'value'"):
        xrt.load(edited(saved, point), engine="host")


def _damage_weights(path: Path, weight: Any = W) -> None:
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as opened:
        begin = opened.getinfo("weights-0.bin").header_offset
    place = content.find(weight.tobytes()[:64], begin)
    content[place + 100 : place + 200] = b"\x41" * 100
    path.write_bytes(content)


def test_weights_are_verified_when_the_clusters_are_formed_anew(saved):
    _damage_weights(saved)
    for engine in (None, "host", "xla"):
        with pytest.raises(ProgramFileError, match="does not fit its digest"):
            xrt.load(saved, engine=engine)


def test_what_is_not_verified_does_not_reach_other_programs(tmp_path):
    weight, x = normal(64, 64), normal(4, 64)  # large enough to be shared by content
    text = (
        "g (float[4,64] x) => (float[4,64] y) <float[64,64] w> { a = MatMul (x, w) y = Relu (a) }"
    )
    made = compiled(text, x, constants={"w": weight})
    want, path = made(x), tmp_path / "large.xrt"
    made.save(path)
    del made
    gc.collect()  # nobody holds the weights any more
    _damage_weights(path, weight)
    loaded = xrt.load(path, verify=False)
    assert not np.allclose(np.asarray(loaded(x)), np.asarray(want))
    same(compiled(text, x, constants={"w": weight})(x), want)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest, _: manifest.pop("specializations"),
        lambda manifest, _: manifest.update(specializations=[]),
        lambda manifest, _: manifest.update(options={"fuel": "much"}),
        lambda manifest, _: manifest["imports"][0].update(interface={"kind": "riddle"}),
        lambda manifest, _: manifest["specializations"][0].update(clusters=[]),
        lambda manifest, _: manifest["specializations"][0].update(signature=[[1, 2]]),
        lambda manifest, _: manifest["specializations"][0].update({"import": 7}),
        lambda manifest, _: manifest["engines"].append(3),
        lambda _, contents: contents.update({"specialization-0.onnx": b"\x12"}),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(saved, change):
    with pytest.raises(ProgramFileError, match="is damaged"):
        xrt.load(edited(saved, change))


def test_another_format_is_named(saved):
    with pytest.raises(ProgramFileError, match=r"of format 2; .* reads format 1\. Update"):
        xrt.load(edited(saved, lambda *_: None, version=2))
    with pytest.raises(ProgramFileError, match=r"of format 0; .*Compile the model and"):
        xrt.load(edited(saved, lambda *_: None, version=0))
    newer = saved.read_bytes()
    with zipfile.ZipFile(saved) as opened:
        comment = opened.comment
    saved.write_bytes(newer[: -len(comment)] + b"xrt program 31 and more".ljust(len(comment)))
    with pytest.raises(ProgramFileError, match="of format 31"):
        xrt.load(saved)


def test_what_another_version_built_is_compiled_anew(saved):
    want = program()(INPUT)

    def age(manifest: Any, _: Any) -> None:
        manifest["engines"][0]["identity"]["jaxlib"] = "0.0.1"

    old = edited(saved, age)
    with pytest.warns(
        StaleProgramWarning, match=r"1 of 1 clusters compiled anew.*jaxlib was 0.0.1"
    ):
        loaded = xrt.load(old)
    assert [c.engine for c in loaded.clusters] == ["xla"]
    same(loaded(INPUT), want)
    loaded.save(saved)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(xrt.load(saved)(INPUT), want)


def test_a_payload_that_does_not_load_is_compiled_anew(saved):
    old = edited(saved, lambda _, contents: contents.update({"payload-0.bin": b"{}\nnonsense"}))
    with pytest.warns(StaleProgramWarning, match="payload is not of this device"):
        loaded = xrt.load(old)
    same(loaded(INPUT), program()(INPUT))


def test_where_an_engine_fails_now_the_next_takes_over(saved, monkeypatch):
    def refuse(*_: Any) -> Any:
        raise EngineBuildError("xla", "it is too hot")

    monkeypatch.setattr(XlaEngine, "compile", refuse)
    old = edited(saved, lambda _, contents: contents.update({"payload-0.bin": b""}))
    with (
        pytest.warns(UserWarning, match="it is too hot"),
        pytest.warns(StaleProgramWarning, match="1 of 1 clusters compiled anew"),
    ):
        loaded = xrt.load(old)
    assert loaded.clusters == []
    np.testing.assert_allclose(loaded(INPUT)[0], program_on_host()(INPUT)[0], rtol=1e-5)
    with pytest.raises(EngineBuildError, match="too hot"):
        xrt.load(old, options=xrt.CompileOptions(strict=True))


def program_on_host() -> xrt.Program:
    return compiled(TWO, INPUT, constants={"w": W}, engine="host")


def test_other_engines_can_be_asked_for(saved):
    host = xrt.load(saved, engine="host")
    assert host.clusters == []
    same(host(INPUT), program_on_host()(INPUT))
    assert len(xrt.load(saved, engine=["host", "xla"]).clusters) == 1
    with pytest.raises(OptionError, match="Engine 'tpu' is unknown"):
        xrt.load(saved, engine="tpu")
    with pytest.raises(OptionError, match="options must be"):
        xrt.load(saved, options=3)


def test_an_engine_that_is_not_here_is_named(tmp_path, vendor, monkeypatch):  # noqa: F811
    x = normal(2, 3)
    text = "g (float[2,3] x) => (float[2,3] y) { a = Mul (x, x) b = Mul (a, x) y = Exp (b) }"
    made = compiled(text, x, engine=["vendor", "xla"])
    path = tmp_path / "program.xrt"
    made.save(path)
    monkeypatch.setattr(
        sys.modules["xrt_vendor"].VendorEngine,
        "available",
        lambda self: xrt.engines.engine.Support.no("it is not plugged in", "plug it in"),
    )
    with pytest.warns(StaleProgramWarning, match="not plugged in .plug it in."):
        loaded = xrt.load(path)
    assert {c.engine for c in loaded.clusters} == {"xla"}
    np.testing.assert_allclose(loaded(x), made(x), rtol=1e-5)
    with pytest.raises(EngineUnavailableError, match="The program needs it: vendor: not available"):
        xrt.load(path, options=xrt.CompileOptions(strict=True))


def test_an_executable_that_cannot_be_saved_is_compiled_anew(tmp_path, vendor, monkeypatch):  # noqa: F811
    def refuse(self: Any) -> bytes:
        raise NotImplementedError("no way")

    text = "g (float[2,3] x) => (float[2,3] y) { a = Mul (x, x) y = Mul (a, x) }"
    x = normal(2, 3)
    made = compiled(text, x, engine="vendor")
    monkeypatch.setattr(sys.modules["xrt_vendor"].VendorExecutable, "serialize", refuse)
    made.save(tmp_path / "program.xrt")
    with pytest.warns(StaleProgramWarning, match="it could not be saved: no way"):
        same(xrt.load(tmp_path / "program.xrt")(x), made(x))


def test_a_file_can_be_replaced_while_it_is_loaded(tmp_path, saved):
    loaded = xrt.load(saved)
    want = loaded(INPUT)
    inode = saved.stat().st_ino
    other = compiled(TWO, INPUT, constants={"w": W + 1})
    other.save(saved)
    assert saved.stat().st_ino != inode
    same(loaded(INPUT), want)
    same(xrt.load(saved)(INPUT), other(INPUT))
    loaded.save(saved)  # to the file's own name
    same(xrt.load(saved)(INPUT), want)
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["program.xrt"]


def test_a_link_and_permissions_stay(tmp_path, saved):
    link = tmp_path / "link.xrt"
    link.symlink_to(saved)
    saved.chmod(0o640)
    made = program()
    made.save(link)
    assert link.is_symlink()
    assert saved.stat().st_mode & 0o777 == 0o640
    new = tmp_path / "new.xrt"
    before = os.umask(0o027)
    try:
        made.save(new)
    finally:
        os.umask(before)
    assert new.stat().st_mode & 0o777 == 0o640


FULL = """
import resource, signal, sys
import numpy as np
import onnx_ir as ir
import xrt
from tests.support import model
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
text = "g (float[2,256] x) => (float[2,256] y) <float[256,256] w> { y = MatMul (x, w) }"
program = xrt.compile(ir.to_proto(model(text, w=np.eye(256))), engine="xla")
if sys.argv[2] == "first":
    program.save(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    program.save(sys.argv[1])
except xrt.XrtError as error:
    assert isinstance(error, OSError)
    print(error)
x = np.ones((2, 256), np.float32)
assert (program(x) == x).all()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no resource limits")
@pytest.mark.parametrize("limit", [0, 1000, 100_000, 262_144 + 6000])
@pytest.mark.parametrize("there", ["first", "not"])
def test_a_full_disk_is_said_and_leaves_the_old_file(tmp_path, there, limit):
    path = tmp_path / "folder" / "program.xrt"
    path.parent.mkdir()
    env = {**os.environ, "XRT_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path), there, str(limit)],
        capture_output=True, text=True, env=env,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert f"could not be written to {path}: File too large." in done.stdout
    if there == "first":
        assert "as it was" in done.stdout
        assert [p.name for p in path.parent.iterdir()] == ["program.xrt"]
        x = np.ones((2, 256), np.float32)
        same(xrt.load(path)(x), x)
    else:
        assert "Nothing is left." in done.stdout
        assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("call", ["os.replace", "os.fsync", "os.chmod"])
def test_an_interrupt_leaves_the_old_file(saved, monkeypatch, call):
    before = hashlib.sha256(saved.read_bytes()).hexdigest()
    made = program()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"xrt.runtime.archive.{call}", interrupt)
        with pytest.raises(KeyboardInterrupt):
            made.save(saved)
    assert hashlib.sha256(saved.read_bytes()).hexdigest() == before
    assert [p.name for p in saved.parent.iterdir() if p.is_file()] == [saved.name]
    made.save(saved)
    same(xrt.load(saved)(INPUT), made(INPUT))


def test_places_that_cannot_be_written(tmp_path, saved):
    made = program()
    with pytest.raises(ProgramWriteError, match="there is no folder"):
        made.save(tmp_path / "absent" / "program.xrt")
    with pytest.raises(ProgramWriteError, match="it is a folder"):
        made.save(tmp_path)
    with pytest.raises(ProgramWriteError, match="there is no folder"):
        made.save(saved / "program.xrt")


@pytest.mark.parametrize("path", [None, 5, b"a.xrt", "a\0b"])
def test_what_is_no_path_is_named(path):
    with pytest.raises(OptionError, match=r"Program\.save: the path of a file is a str"):
        program().save(path)
    with pytest.raises(OptionError, match=r"xrt\.load: the path of a file is a str"):
        xrt.load(path)


def test_a_name_that_is_too_long_is_an_error_of_xrt(tmp_path):
    path = tmp_path / ("a" * 300 + ".xrt")
    with pytest.raises(ProgramWriteError, match="File name too long"):
        program().save(path)
    with pytest.raises(ProgramFileError, match="could not be read: File name too long"):
        xrt.load(path)


def test_what_a_killed_process_left_is_swept(tmp_path):
    folder = tmp_path / "programs"
    folder.mkdir()
    old = [".a[1].xrt-abcd_123.saving", ".a[1].xrt-efgh4567.saving"]
    others = [".a[1].xrt-young123.saving", ".b.xrt-abcd_123.saving", ".a[1].xrt-old.saving", "x"]
    for name in (*old, *others):
        (folder / name).write_bytes(b"PK")
        if "young" not in name:
            os.utime(folder / name, (0, 0))
    program().save(folder / "a[1].xrt")
    assert {path.name for path in folder.iterdir()} == {"a[1].xrt", *others}


def test_a_structure_that_cannot_be_written_down_is_named(tmp_path):
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def forward(self, x):
            return {("a", 1): x + 1}

    made = xrt.compile(Net(), (torch.ones(2),), engine="host")
    with pytest.raises(xrt.XrtError, match=r"a dict of it has the key \('a', 1"):
        made.save(tmp_path / "program.xrt")
    assert list(tmp_path.glob("*.xrt")) == []
