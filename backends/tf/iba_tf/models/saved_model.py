"""SavedModel folders, of any version of TensorFlow and Keras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import tensorflow as tf
from google.protobuf import text_format
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef, SignatureDef
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from iba_core.errors import IBAError, InputError, StateError, closest
from iba_tf.framework import forgotten_if_interrupted
from iba_tf.models.origins import Origin, alone, by_number, concrete_origin, function_origin
from iba_tf.models.v1_graphs import SessionOrigin

_DEFAULT = tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY


def is_saved_model(path: Path) -> bool:
    """Whether a path is a SavedModel folder."""
    return any((path / f"saved_model.{suffix}").is_file() for suffix in ("pb", "pbtxt"))


def open_saved_model(path: Path, signature: str | None, tags: str | Sequence[str] | None) -> Origin:
    """The model in a SavedModel folder; arguments and errors as of `GraphModel.from_saved_model`."""
    if not is_saved_model(path):
        raise StateError(f"there is no SavedModel in {str(path)!r}: a folder with saved_model.pb is needed")
    meta_graph = _graph_with(_read(path), tags, path)
    signatures = {
        name: definition
        for name, definition in meta_graph.signature_def.items()
        if definition.outputs and not name.startswith("__")
    }
    of_objects = meta_graph.HasField("object_graph_def")
    name = None
    if signatures or signature is not None or not of_objects:
        name = _signature(signatures, signature, path)
    try:
        if of_objects:
            return _load_objects(meta_graph, name, path)
        return _load_session(meta_graph, signatures[name], path)
    except IBAError:
        raise
    except Exception as error:  # a damaged file may raise anything
        reason = " ".join(str(error).split())
        raise StateError(f"the SavedModel in {str(path)!r} cannot be loaded: {reason}") from error


def _read(path: Path) -> SavedModel:
    stored = SavedModel()
    try:
        if (path / "saved_model.pb").is_file():
            stored.ParseFromString((path / "saved_model.pb").read_bytes())
        else:
            text_format.Parse((path / "saved_model.pbtxt").read_text(), stored)
    except (DecodeError, text_format.ParseError, UnicodeDecodeError) as error:
        raise StateError(f"the SavedModel in {str(path)!r} is damaged: {error}") from error
    if not stored.meta_graphs:
        raise StateError(f"the SavedModel in {str(path)!r} is damaged: it holds no graph")
    return stored


def _graph_with(stored: SavedModel, tags: str | Sequence[str] | None, path: Path) -> MetaGraphDef:
    """The graph of some tags, by default the one to be served, or the only one."""
    by_tags = {frozenset(graph.meta_info_def.tags): graph for graph in stored.meta_graphs}
    if tags is None and len(by_tags) == 1:
        return next(iter(by_tags.values()))
    wanted = frozenset(
        [tf.saved_model.SERVING] if tags is None else [tags] if isinstance(tags, str) else tags
    )
    if wanted not in by_tags:
        there = " and ".join(str(sorted(known)) for known in by_tags)
        raise InputError(f"tags={tags!r}: the SavedModel in {str(path)!r} holds graphs with the tags {there}")
    return by_tags[wanted]


def _signature(signatures: Mapping[str, SignatureDef], wanted: str | None, path: Path) -> str:
    if wanted is None and _DEFAULT in signatures:
        return str(_DEFAULT)
    if wanted is None and len(signatures) == 1:
        return next(iter(signatures))
    if not signatures:
        raise InputError(f"the SavedModel in {str(path)!r} has no signature to call")
    if wanted is None:
        names = ", ".join(map(repr, sorted(signatures)))
        raise InputError(f"the SavedModel in {str(path)!r} has the signatures {names}; choose by signature=")
    if wanted not in signatures:
        raise InputError(
            f"signature={wanted!r} is none of the SavedModel in {str(path)!r}; {closest(wanted, signatures)}"
        )
    return wanted


@forgotten_if_interrupted
def _load_session(graph_def: MetaGraphDef, signature: SignatureDef, path: Path) -> Origin:
    """A model that TensorFlow 1 has written."""
    graph = tf.Graph()
    session = tf.compat.v1.Session(graph=graph)
    with graph.as_default():
        tf.compat.v1.saved_model.load(session, list(graph_def.meta_info_def.tags), str(path))
    inputs = {key: info.name for key, info in sorted(signature.inputs.items())}
    outputs = {key: info.name for key, info in sorted(signature.outputs.items())}
    try:
        return SessionOrigin(graph, session, by_number(alone(outputs)), inputs, None).without_session()
    finally:
        session.close()


@forgotten_if_interrupted
def _load_objects(graph_def: MetaGraphDef, signature: str | None, path: Path) -> Origin:
    """A model that TensorFlow 2 has written."""
    loaded = tf.saved_model.load(str(path), tags=list(graph_def.meta_info_def.tags))
    if signature is not None:
        return concrete_origin(loaded.signatures[signature], holder=loaded, is_signature=True)
    if not callable(loaded):
        raise InputError(f"the SavedModel in {str(path)!r} has no signature and no function to call")
    return function_origin(loaded, ())
