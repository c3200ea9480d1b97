"""A Trainer's module file: trains, exports, and makes of the model an int8 one that is debugged and held to limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf
from tfx.components.trainer.rewriting.rewriter import ModelDescription, ModelType

from tflite_qdebug import tfx_rewriter

FEATURES = {"image": tf.io.FixedLenFeature((8, 8, 1), tf.float32), "label": tf.io.FixedLenFeature((), tf.int64)}


def read(patterns: list[str]) -> tf.data.Dataset:
    def parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        features = tf.io.parse_single_example(record, FEATURES)
        return features["image"], features["label"]

    return tf.data.TFRecordDataset(tf.io.gfile.glob(patterns), compression_type="GZIP").map(parse).batch(32)


def run_fn(fn_args: Any) -> None:
    training, evaluation = read(fn_args.train_files), read(fn_args.eval_files)
    rewriter = tfx_rewriter(  # here, so that what is wrong with it is told before hours of training
        quantization_optimizations=[tf.lite.Optimize.DEFAULT],
        representative_dataset=training.take(4),
        debug_dataset=evaluation.take(4),
        evaluation_dataset=evaluation,
        max_accuracy_drop="2%",
        debug_folder=fn_args.model_run_dir,
        **fn_args.custom_config,
    )
    model = tf.keras.Sequential(
        [
            tf.keras.layers.Input((8, 8, 1)),
            tf.keras.layers.Conv2D(8, 3, activation="relu"),
            tf.keras.layers.Flatten(),
            tf.keras.layers.Dense(10),
        ]
    )
    model.compile("adam", tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(training.repeat(), steps_per_epoch=fn_args.train_steps, verbose=0)
    saved_model = str(Path(fn_args.model_run_dir) / "saved_model")
    model.export(saved_model)
    rewriter.perform_rewrite(
        ModelDescription(ModelType.SAVED_MODEL, saved_model),
        ModelDescription(ModelType.TFLITE_MODEL, fn_args.serving_model_dir),
    )
