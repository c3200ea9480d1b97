"""Representative, debug and evaluation datasets, from whatever the user has, checked against a model's inputs.

:func:`open_dataset` takes functions, lists, arrays, ``tf.data``, files, folders, images and TensorFlow Datasets, and
gives a :class:`Dataset` of :class:`Sample`. Only numpy is needed; Pillow and TensorFlow Datasets are imported where
they are asked for, and TensorFlow itself never is.
"""

from __future__ import annotations

from tflite_qdebug.datasets.images import from_images
from tflite_qdebug.datasets.opening import Dataset, open_dataset
from tflite_qdebug.datasets.samples import InputSpec, Sample
from tflite_qdebug.datasets.saving import save_folder
from tflite_qdebug.datasets.tfds import from_tfds

__all__ = ["Dataset", "InputSpec", "Sample", "from_images", "from_tfds", "open_dataset", "save_folder"]
