"""A built engine as plain data: what TensorRT serialized, and what xrt must know to run it.

As bytes: a line that names the format, the SHA-256 of all that follows in hexadecimal, the length
of the header, the header as JSON, and the engine. Never pickle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from xrt.engines.tensorrt.library import Library, load
from xrt.errors import EngineBuildError

MAGIC = b"xrt-tensorrt-plan 1"

Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]
"""Input name -> the least, the optimal and the greatest shape that an engine is built for."""


@dataclass(frozen=True)
class Binding:
    """An input or output of an engine.

    Attributes:
        name: Its name in the engine. A plan from the cache may have other names than the cluster:
            what is bound goes by order.
        dtype: The NumPy name of the type that the engine takes or gives.
        original: That of the type in the cluster.
        shape: Its shape; None stands for a dimension that a call decides.
    """

    name: str
    dtype: str
    original: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """A built engine.

    Attributes:
        library: The package that built it, and that alone can run it.
        data: The serialized engine.
        inputs: Its inputs, in the order of the cluster's.
        outputs: Its outputs, in the order of the cluster's.
        target: The compute capability that it was built for, as "sm_89"; None if that is the GPU
            that was present.
        profiles: The optimization profiles, in order; none if all shapes are fixed.
        report: What `explain` tells: plan bytes, workspace, build seconds, whether it came from
            the cache, layers where they are known.
    """

    library: Library
    data: bytes = field(repr=False)
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    target: str | None = None
    profiles: tuple[Profile, ...] = ()
    report: dict[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The plan as bytes that `from_bytes` takes back."""
        header = {
            "library": self.library.name,
            "version": self.library.version,
            "inputs": [asdict(binding) for binding in self.inputs],
            "outputs": [asdict(binding) for binding in self.outputs],
            "target": self.target,
            "profiles": [dict(profile) for profile in self.profiles],
            "report": self.report,
            "bytes": len(self.data),
        }
        text = json.dumps(header, sort_keys=True).encode()
        payload = b"%d\n%b%b" % (len(text), text, self.data)
        return b"%b\n%b\n%b" % (MAGIC, hashlib.sha256(payload).hexdigest().encode(), payload)

    @classmethod
    def from_bytes(cls, data: bytes) -> Plan:
        """The plan that `to_bytes` gave.

        Raises:
            EngineBuildError: If the bytes are damaged or no plan at all, or were written by another
                library or version than the one installed.
        """
        header, engine = _split(data)
        library = load(str(header.get("library")))
        if not isinstance(library, Library):
            raise EngineBuildError("tensorrt", f"the plan needs {header.get('library')}: {library}")
        if library.version != header.get("version"):
            raise EngineBuildError(
                "tensorrt",
                f"the plan was built by {library.name} {header.get('version')}, and "
                f"{library.version} is installed; plans do not cross releases. Compile it again",
            )
        try:
            return cls(
                library,
                engine,
                _bindings(header["inputs"]),
                _bindings(header["outputs"]),
                header["target"],
                tuple(_profile(each) for each in header["profiles"]),
                dict(header["report"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise _damaged("its header does not describe an engine") from None


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    magic, _, rest = data.partition(b"\n")
    if magic != MAGIC:
        raise _damaged("it does not begin as a plan does")
    digest, _, payload = rest.partition(b"\n")
    if hashlib.sha256(payload).hexdigest().encode() != digest:
        raise _damaged("its checksum does not fit")
    length, _, content = payload.partition(b"\n")
    try:
        size = int(length)
        header = json.loads(content[:size])
    except ValueError:
        raise _damaged("its header cannot be read") from None
    engine = content[size:]
    if not isinstance(header, dict) or len(engine) != header.get("bytes"):
        raise _damaged("its length does not fit its header")
    return header, engine


def _damaged(why: str) -> EngineBuildError:
    return EngineBuildError("tensorrt", f"the plan is damaged: {why}. Compile it again")


def _bindings(listed: Sequence[Mapping[str, Any]]) -> tuple[Binding, ...]:
    return tuple(
        Binding(each["name"], each["dtype"], each["original"], tuple(each["shape"]))
        for each in listed
    )


def _profile(given: Mapping[str, Any]) -> Profile:
    return {
        name: (tuple(least), tuple(best), tuple(most))
        for name, (least, best, most) in given.items()
    }
