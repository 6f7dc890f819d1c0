"""Why some operators have no lowering, and will have none."""

from __future__ import annotations

_BY_DATA = "the size of its result depends on the data, and XLA's shapes are static"
_SEQUENCES = "it works on sequences, which XLA lacks"
_OPTIONALS = "it works on optionals, which XLA lacks"
_STRINGS = "it works on strings, which XLA lacks"
_MAPS = "it works on maps, which XLA lacks"

REASONS: dict[str, str] = {
    **dict.fromkeys(("NonMaxSuppression", "NonZero", "Unique"), _BY_DATA),
    **dict.fromkeys(
        (
            *("ConcatFromSequence", "SequenceAt", "SequenceConstruct", "SequenceEmpty"),
            *("SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap"),
            "SplitToSequence",
        ),
        _SEQUENCES,
    ),
    **dict.fromkeys(("Optional", "OptionalGetElement", "OptionalHasElement"), _OPTIONALS),
    **dict.fromkeys(
        (
            *("RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit"),
            "ai.onnx.ml::CategoryMapper",
        ),
        _STRINGS,
    ),
    **dict.fromkeys(
        ("ai.onnx.ml::CastMap", "ai.onnx.ml::DictVectorizer", "ai.onnx.ml::ZipMap"), _MAPS
    ),
    "ImageDecoder": "it decodes a compressed file, which is work for the host",
    "TfIdfVectorizer": "it looks every n-gram up in a table, which a hash on the host does at once",
}
"""Operator, as `xrt.graph.op_name` names it, -> why XLA does not run it."""
