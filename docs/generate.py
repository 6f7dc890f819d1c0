"""Write the pages of docs/reference from the code: `python -m docs.generate [--check]`.

The pages are kept in the repository, so that they can be read without building anything. With
`--check` nothing is written; the pages that are stale are named, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

import xrt
from docs import measurements, published
from xrt import errors, options
from xrt.graph import OPSET

FOLDER = Path(__file__).parent / "reference"
HEADER = "<!-- Written by `python -m docs.generate`. Edit the code, not this page. -->\n\n"
DOMAINS = ("", "ai.onnx.ml", "ai.onnx.preview", "ai.onnx.preview.training")


# Operators


def operators() -> str:
    """Every operator of ONNX, and what runs it."""
    from xrt.engines.xla import ops as _ops  # noqa: F401  (registers the lowerings)
    from xrt.engines.xla.lowering import lowered_ops
    from xrt.kernels import host

    lowered = set(lowered_ops())
    sections, summary = [], []
    for domain in DOMAINS:
        rows = []
        for schema in _schemas(domain):
            native = host.is_native(ir.Node(domain, schema.name, []))
            rows.append(
                (
                    schema.name,
                    str(schema.since_version),
                    _by_xla(domain, schema.name, lowered),
                    "kernel" if native else "reference",
                )
            )
        title = domain or "ai.onnx"
        summary.append(
            (
                f"`{title}`",
                str(len(rows)),
                str(sum(row[2] == "lowering" for row in rows)),
                str(sum(row[2] == "inlined" for row in rows)),
                str(sum(row[3] == "kernel" for row in rows)),
                str(sum(row[3] == "reference" for row in rows)),
            )
        )
        heading = ("operator", "since", "xla", "host")
        sections.append(f"## {title}\n\n{_table(heading, rows)}")
    heading = (
        *("domain", "operators", "xla lowering", "inlined for xla"),
        *("host kernel", "host, by the reference"),
    )
    introduction = f"""# Operators

Operators of ONNX at opset {OPSET}, to which every model is converted, and of its other domains.
Deprecated ones are converted on import and are not listed.

- *since*: the opset that last changed the operator.
- *xla*: the XLA engine has a *lowering*; or ONNX defines the operator by others, which are
  *inlined* where XLA takes all of them; or why it does not run there. It may still refuse a node,
  for its types, for a shape that is not static, or for an input whose contents are not known;
  `Program.explain()` tells the reason.
- *host*: what runs the operator where no engine takes it: a NumPy *kernel* of xrt, or
  `onnx.reference`, which is slower."""
    parts = [introduction, _table(heading, summary, right=range(1, 6)), *sections]
    return "\n\n".join([*parts, *measurements.conformance()])


def _by_xla(domain: str, name: str, lowered: set[tuple[str, str]]) -> str:
    from xrt.engines.xla.refusals import REASONS
    from xrt.passes.inline_functions import is_function

    if (domain, name) in lowered:
        return "lowering"
    if is_function(ir.Node(domain, name, [])):
        return f"no: {REASONS[name]}" if name in REASONS else "inlined"
    if (domain, name) == ("ai.onnx.preview.training", "Gradient"):
        return "lowering"  # as xrt::Gradient, which takes its place on import
    return f"no: {REASONS[f'{domain}::{name}' if domain else name]}"


def _schemas(domain: str) -> list[Any]:
    """The newest schema of every operator of `domain` that is not deprecated."""
    schemas = [s for s in onnx.defs.get_all_schemas() if s.domain == domain]
    assert all(s.since_version <= OPSET for s in schemas if not domain), "onnx has a newer opset"
    return sorted((s for s in schemas if not s.deprecated), key=lambda s: str(s.name))


# Options


def option_page() -> str:
    """Every option: name, type, default, meaning."""
    classes = sorted(
        (c for _, c in inspect.getmembers(options, is_dataclass) if isinstance(c, type)),
        key=lambda c: (c is not options.CompileOptions, c.__name__),
    )
    parts = [
        "# Options\n\nOptions are frozen dataclasses with keyword arguments:\n\n"
        "```python\nxrt.compile(model, options=xrt.CompileOptions(strict=True))\n```\n\n"
        "On the command line: `xrt explain -O strict=true model.onnx`."
    ]
    for cls in classes:
        meanings = _attributes(cls)
        rows = [
            (f"`{f.name}`", f"`{_escape(str(f.type))}`", _default(f), meanings[f.name])
            for f in fields(cls)
        ]
        heading = ("option", "type", "default", "meaning")
        parts.append(f"## {cls.__name__}\n\n{_first_paragraph(cls)}\n\n{_table(heading, rows)}")
    return "\n\n".join(parts)


def _default(field: Any) -> str:
    if field.default is not MISSING:
        return f"`{field.default!r}`"
    if field.default_factory is not MISSING:
        made = field.default_factory()
        return f"`{type(made).__name__}()`" if is_dataclass(made) else f"`{made!r}`"
    return "required"


def _attributes(value: Any, section: str = "Attributes:") -> dict[str, str]:
    """Name -> its text in a section of the docstring of `value`."""
    _, _, text = (inspect.getdoc(value) or "").partition(f"{section}\n")
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        start = re.match(r"    (\w+): (.*)", line)
        if start:
            name, found[start[1]] = start[1], start[2]
        elif name and line.strip():
            found[name] += " " + line.strip()
        elif name:
            break
    return found


# Errors


def error_page() -> str:
    """Every exception and warning, with what it derives from."""
    classes = [
        c
        for _, c in inspect.getmembers(errors, inspect.isclass)
        if c.__module__ == errors.__name__ and issubclass(c, BaseException)
    ]
    order = sorted(classes, key=lambda c: inspect.getsourcelines(c)[1])
    rows = [
        (f"`{c.__name__}`", ", ".join(f"`{b.__name__}`" for b in c.__bases__), _first_paragraph(c))
        for c in order
    ]
    return (
        "# Errors\n\nAll are in `xrt.errors`; `xrt.XrtError` is the base of every error. Each also "
        "derives from the built-in\nexception that fits, so `except ValueError` and the like keep "
        "working.\n\n" + _table(("name", "derives from", "meaning"), rows)
    )


# Public names


def api() -> str:
    """Every public name with its signature and what it is for."""
    parts = ["# Public names\n\n`import xrt` gives these names; each is loaded at its first use."]
    for name in sorted(xrt.__all__, key=str.lower):
        if name == "__version__":
            continue
        value = getattr(xrt, name)
        if inspect.isclass(value):
            parts += _class(name, value)
        else:
            function = getattr(value, name, value)  # `xrt.engines` is a package that can be called
            if inspect.ismodule(function):
                parts.append(_entry("##", f"xrt.{name}", "", function))
                continue
            parts.append(_entry("##", f"xrt.{name}", _signature(function), function))
    return "\n\n".join(parts)


def _class(name: str, cls: type) -> list[str]:
    is_error = issubclass(cls, BaseException)
    parts = [_entry("##", f"xrt.{name}", "", cls)]
    attributes = _attributes(cls)
    if attributes and not name.endswith("Options"):
        heading = ("attribute", "meaning")
        parts.append(_table(heading, [(f"`{key}`", text) for key, text in attributes.items()]))
    if name.endswith("Options"):
        parts.append("See [options](options.md).")
    if is_error:
        parts.append("See [errors](errors.md).")
        return parts
    for member, value in vars(cls).items():
        if member.startswith("_") and member != "__call__":
            continue
        if isinstance(value, property):
            parts.append(_entry("###", f"{name}.{member}", "", value))
        elif inspect.isfunction(value):
            shown = name if member == "__call__" else f"{name}.{member}"
            parts.append(_entry("###", shown, _signature(value), value))
    return parts


def _entry(level: str, title: str, signature: str, value: Any) -> str:
    code = f"```python\n{title}{signature}\n```\n\n" if signature else ""
    arguments = _attributes(value, "Args:") if signature else {}
    listed = "".join(f"\n- `{key}`: {_escape(text)}" for key, text in arguments.items())
    return f"{level} {title}\n\n{code}{_first_paragraph(value)}\n{listed}".rstrip()


def _signature(function: Callable[..., Any]) -> str:
    """The signature as it is written in the code, on lines of its own if it is long."""
    signature = inspect.signature(function)
    kept = [p for p in signature.parameters.values() if p.name != "self"]
    parts, starred = [], False
    for parameter in kept:
        starred |= parameter.kind is parameter.VAR_POSITIONAL
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            parts.append("*")
            starred = True
        parts.append(_parameter(parameter))
    returned = signature.return_annotation
    arrow = "" if returned is signature.empty else f" -> {returned}"
    line = f"({', '.join(parts)}){arrow}"
    if len(line) <= 80:
        return line
    return "(\n" + "".join(f"    {part},\n" for part in parts) + f"){arrow}"


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    annotated = parameter.annotation is not parameter.empty
    text = f"{stars}{parameter.name}" + (f": {parameter.annotation}" if annotated else "")
    if parameter.default is parameter.empty:
        return text
    return f"{text} = {parameter.default!r}" if annotated else f"{text}={parameter.default!r}"


# Markdown


def _first_paragraph(value: Any) -> str:
    text = inspect.getdoc(value) or ""
    return _escape(" ".join(text.split("\n\n")[0].split()))


def _escape(text: str) -> str:
    return text.replace("|", r"\|")


def _table(heading: Iterable[str], rows: Iterable[Iterable[str]], right: Iterable[int] = ()) -> str:
    columns = list(heading)
    aligned = set(right)
    rule = ["---:" if index in aligned else "---" for index in range(len(columns))]
    lines = [columns, rule, *map(list, rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


PAGES: dict[str, Callable[[], str]] = {
    "operators.md": operators,
    "options.md": option_page,
    "errors.md": error_page,
    "api.md": api,
    "benchmarks.md": measurements.page,
    "networks.svg": measurements.chart,
    "published.md": published.page,
}


def render(name: str) -> str:
    """The text of a page."""
    return HEADER + PAGES[name]().rstrip() + "\n"


def stale(folder: Path = FOLDER) -> list[str]:
    """Names of the pages in `folder` that are missing or differ from the code."""
    return [
        name
        for name in PAGES
        if not (folder / name).exists() or (folder / name).read_text("utf-8") != render(name)
    ]


def main(arguments: list[str] | None = None, folder: Path = FOLDER) -> int:
    """Write the stale pages, or with `--check` name them; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m docs.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, name stale pages")
    chosen = parser.parse_args(arguments)
    names = stale(folder)
    if chosen.check:
        for name in names:
            print(f"{folder / name} is stale. Run: python -m docs.generate", file=sys.stderr)
        return 1 if names else 0
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(render(name), "utf-8")
        print(f"wrote {folder / name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
