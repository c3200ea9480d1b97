"""In TFX: a rewriter for the Trainer, which converts, debugs what it has made, and holds it to limits.

TFX is imported when a rewriter is made, and nothing else of the package needs it.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tflite_qdebug import tf_private
from tflite_qdebug.errors import MissingPackageError, OptionError, did_you_mean
from tflite_qdebug.model import Model
from tflite_qdebug.pipeline import TFLiteConverter

__all__ = ["rewriter_class", "tfx_rewriter"]

_log = logging.getLogger(__name__)


def tfx_rewriter(name: str = "tflite_qdebug", **arguments: Any) -> Any:
    """Makes a rewriter for TFX: its ``TFLiteRewriter``, with `TFLiteConverter` in place of TensorFlow's converter.

    In a Trainer's module file, after the model has been exported as a SavedModel::

        rewriter = tfx_rewriter(
            quantization_optimizations=[tf.lite.Optimize.DEFAULT], representative_dataset=..., debug_dataset=...,
            min_output_sqnr_db=20, debug_folder=fn_args.model_run_dir,
        )
        rewriter.perform_rewrite(
            ModelDescription(ModelType.SAVED_MODEL, saved_model),
            ModelDescription(ModelType.TFLITE_MODEL, fn_args.serving_model_dir),
        )

    What is wrong with the arguments is told here, before the model is trained. After the rewriting, ``rewriter.converter`` is
    the `TFLiteConverter` with ``study``, ``report`` and ``checks``.

    Args:
        name: What TFX calls it in its errors.
        **arguments: Those of ``TFLiteRewriter`` (``filename``, ``copy_assets``, ``copy_assets_extra``,
            ``quantization_optimizations``, ``quantization_supported_types``, ``quantization_enable_full_integer``,
            ``signature_key``, ``representative_dataset``); all attributes of `TFLiteConverter`, ours (``debug_dataset``,
            ``evaluation_dataset``, ``max_accuracy_drop``, ``min_output_sqnr_db``, ``debug_folder``...) and TensorFlow's
            (``inference_input_type``...); and ``configure``, a function that is given the converter last of all, also once
            here, to see that it can.
            ``quantization_enable_full_integer`` does here what its name says, where TFX does nothing: an operator that cannot
            be an integer one is an error. Datasets are taken in all forms of `open_dataset`.

    Returns:
        A ``tfx.components.trainer.rewriting.rewriter.BaseRewriter``. Where the model misses a limit, ``perform_rewrite``
        raises `LimitError`, which stops the pipeline, and writes no model.

    Raises:
        MissingPackageError: TFX is not installed.
        OptionError: An argument that nobody knows, or limits that cannot be checked.
    """
    return rewriter_class()(name=name, **arguments)


@functools.cache
def rewriter_class() -> Any:
    """Returns the class of `tfx_rewriter`; from now on TFX's ``create_rewriter("QDebugRewriter", ...)`` finds it too.

    Raises:
        MissingPackageError: TFX is not installed.
    """
    try:
        from tfx.components.trainer.rewriting.rewriter import BaseRewriter
        from tfx.components.trainer.rewriting.tflite_rewriter import TFLiteRewriter
    except ImportError as error:
        raise MissingPackageError(f"the rewriter needs TFX ({error}): pip install tfx") from error

    # TFX's factory looks among the direct subclasses of BaseRewriter, so it is named as a base once more.
    class QDebugRewriter(TFLiteRewriter, BaseRewriter):  # type: ignore[misc]
        """TFX's ``TFLiteRewriter``, whose model is debugged and held to limits; see `tfx_rewriter`."""

        def __init__(self, name: str, configure: Callable[[TFLiteConverter], None] | None = None, **arguments: Any) -> None:
            own, attributes = _split(arguments, TFLiteRewriter.__init__)
            super().__init__(name, **own)
            self._attributes, self._configure = attributes, configure
            self._full_integer = bool(own.get("quantization_enable_full_integer"))
            self.converter: TFLiteConverter | None = None
            # Trained for hours, and then a word is misspelled: everything is set once on a converter of nothing.
            empty = tf_private.tensorflow().lite.TFLiteConverter([])
            self._set_up(empty, own.get("quantization_optimizations"), own.get("representative_dataset")).check()

        def _set_up(self, converter: Any, optimizations: Sequence[Any] | None, dataset: Any) -> TFLiteConverter:
            made = TFLiteConverter(converter)
            made.optimizations, made.representative_dataset = list(optimizations or ()), dataset
            if self._full_integer:
                made.target_spec.supported_ops = [tf_private.tensorflow().lite.OpsSet.TFLITE_BUILTINS_INT8]
            _set(made, self._attributes)
            if self._configure is not None:
                self._configure(made)
            _check_folder(made.debug_folder)
            return made

        def _create_tflite_converter(
            self, saved_model_path: str, quantization_optimizations: Any, *arguments: Any, **keywords: Any
        ) -> TFLiteConverter:
            converter = super()._create_tflite_converter(saved_model_path, quantization_optimizations, *arguments, **keywords)
            dataset = converter.representative_dataset
            self.converter = self._set_up(converter, quantization_optimizations, dataset)
            return self.converter

        def _rewrite(self, original_model: Any, rewritten_model: Any) -> None:
            before = _names(rewritten_model.path)
            try:
                super()._rewrite(original_model, rewritten_model)
            except BaseException:
                _remove_copies(rewritten_model.path, before)
                raise

        def _post_rewrite_validate(self, rewritten_model: Any) -> None:
            path = os.path.join(os.fsdecode(rewritten_model.path), self._filename)  # noqa: PTH118 - may be of a cloud
            with tf_private.tensorflow().io.gfile.GFile(path, "rb") as file:
                Model(file.read())

    return QDebugRewriter


def _split(arguments: Mapping[str, Any], constructor: Callable[..., None]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tells TFX's own arguments from attributes of the converter."""
    code = constructor.__code__
    known = set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    return (
        {key: value for key, value in arguments.items() if key in known},
        {key: value for key, value in arguments.items() if key not in known},
    )


def _set(converter: TFLiteConverter, attributes: Mapping[str, Any]) -> None:
    for name, value in attributes.items():
        try:
            setattr(converter, name, value)
        except AttributeError as error:
            known = [*_TFX_ARGUMENTS, *(one for one in dir(converter) if not one.startswith("_"))]
            raise OptionError(f"a TFX rewriter has no argument {name!r}.{did_you_mean(name, known)}") from error


#: What TFX's own rewriter takes, for who misspells it.
_TFX_ARGUMENTS = (
    "configure", "copy_assets", "copy_assets_extra", "filename", "quantization_enable_full_integer",
    "quantization_optimizations", "quantization_supported_types", "representative_dataset", "signature_key",
)  # fmt: skip


def _check_folder(folder: str | os.PathLike[str]) -> None:
    if "://" in os.fspath(folder):
        raise OptionError(
            f"got the debug_folder {os.fspath(folder)!r}, expected a folder of a file system: a run is measured into it piece "
            "by piece. Give a local one, and copy it afterwards with tfx.utils.io_utils.copy_dir"
        )


def _names(folder: Any) -> set[str]:
    files = tf_private.tensorflow().io.gfile
    path = os.fsdecode(folder)
    return set(files.listdir(path)) if files.isdir(path) else set()


def _remove_copies(folder: Any, before: set[str]) -> None:
    """Removes the copy of the SavedModel that TFX leaves beside the model where the conversion fails."""
    files, path = tf_private.tensorflow().io.gfile, os.fsdecode(folder)
    for name in _names(folder) - before:
        if name.startswith("tmp-rewrite-"):
            try:
                files.rmtree(os.path.join(path, name.rstrip("/")))  # noqa: PTH118 - may be of a cloud
            except Exception as error:  # what failed before is the news
                _log.warning("cannot remove %s in %s: %s", name, path, error)
