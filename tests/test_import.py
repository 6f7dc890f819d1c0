"""`import xrt` loads little, and its public names are what they are whatever is imported first."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest

import xrt

MODULES = ("compile", "engines", "cli")
HEAVY = ("torch", "jax", "jaxlib", "tensorflow", "tensorrt", "onnx", "networkx", "typer", "rich")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "code",
    ["import xrt", "import xrt; dir(xrt); xrt.__version__", "import xrt; xrt.XrtError"],
)
def test_importing_loads_no_framework(code):
    assert run(f"import sys; {code}; print([m for m in {HEAVY} if m in sys.modules])") == "[]"


def test_compiling_onnx_loads_no_torch_and_the_host_alone_no_jax():
    code = """
import sys, numpy as np, onnx, xrt
proto = onnx.parser.parse_model(
    '<ir_version: 10, opset_import: ["": 20]> g (float[2] x) => (float[2] y) { y = Relu (x) }')
program = xrt.compile(proto, engine="host")
assert program(np.ones(2, np.float32)).tolist() == [1, 1]
print([m for m in ("torch", "jax", "tensorflow", "tensorrt") if m in sys.modules])
"""
    assert run(code) == "[]"


IMPORTS = [
    *("; ".join(f"import xrt.{m}" for m in order) for order in itertools.permutations(MODULES)),
    "from xrt import compile, engines",
    "from xrt.compile import compile; from xrt import engines",
    "from xrt.engines import resolve; from xrt.compile import specialize",
    "import importlib; importlib.import_module('xrt.engines.xla')",
    "import xrt; xrt.compile; xrt.engines; import xrt.compile, xrt.engines.engine",
]


def test_compile_and_engines_can_be_called_whatever_is_imported_first():
    code = f"""
import sys
for imports in {IMPORTS!r}:
    for name in [m for m in sys.modules if m.split(".")[0] == "xrt"]:
        del sys.modules[name]
    names = dict()
    exec(imports, names)
    exec("from xrt import compile, engines; import xrt", names)
    xrt = names["xrt"]
    assert names["compile"] is xrt.compile and xrt.compile.__name__ == "compile", imports
    assert [type(each).__name__ for each in names["engines"]()][0] == "EngineStatus", imports
    assert xrt.engines().__len__() >= 2, imports
print("fine")
"""
    assert run(code) == "fine"


def test_every_public_name_exists_and_is_documented():
    for name in xrt.__all__:
        value = getattr(xrt, name)
        assert name == "__version__" or value.__doc__, name
    assert set(xrt.__all__) <= set(dir(xrt))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'xrt' has no attribute 'nope'"):
        xrt.nope  # noqa: B018
    with pytest.raises(ImportError):
        from xrt import nope  # noqa: F401


def test_a_public_name_can_be_replaced_and_put_back(monkeypatch):
    original = xrt.compile
    monkeypatch.setattr(xrt, "compile", len)
    assert xrt.compile is len
    monkeypatch.undo()
    assert xrt.compile is original
