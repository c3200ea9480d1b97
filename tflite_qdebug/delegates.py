"""Delegates: what they are called on this system, how they are loaded, and what to do where one fails.

A delegate is a shared library that takes operators of a model off the runtime's own kernels, such as Coral's ``libedgetpu``
for the Edge TPU. What it and the runtime say where it fails seldom tells what to do; the known failures are told here.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import sys
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from tflite_qdebug import tf_private
from tflite_qdebug.errors import InterpreterError, OptionError

__all__ = [
    "EDGETPU",
    "Delegate",
    "Delegation",
    "advice",
    "crash_advice",
    "delegates_of",
    "delegation",
    "described",
    "label",
    "library_name",
    "library_of",
    "load",
    "pairs_of",
    "untaken_advice",
]

#: Stands for the Edge TPU's library, whatever it is called on this system.
EDGETPU = "edgetpu"

_EDGETPU_LIBRARIES = {"darwin": "libedgetpu.1.dylib", "win32": "edgetpu.dll"}
_ENTRY = "tflite_plugin_create_delegate"
_DEVICES = re.compile(r"(|:\d+|usb(:\d+)?|pci(:\d+)?)")
_CUSTOM_OPERATOR = "edgetpu-custom-op"


class Delegate(NamedTuple):
    """A delegate's shared library and its options, loaded when an interpreter is opened.

    Attributes:
        library: Path or name of the library; ``edgetpu`` is the Edge TPU's, whatever it is called on this system.
        options: As the library knows them; the Edge TPU's ``device`` is empty, ``:N``, ``usb``, ``usb:N``, ``pci`` or
            ``pci:N``.
    """

    library: str
    options: Mapping[str, str] = {}


class Delegation(NamedTuple):
    """What delegates took of a model.

    Attributes:
        operators: How many the main subgraph has.
        taken: How many of them the delegates that were asked for compute.
        partitions: In how many pieces.
        left: How many of each kind were left to which kernels: ``{"builtin": {"SOFTMAX": 1}}``.
    """

    operators: int
    taken: int
    partitions: int
    left: Dict[str, Dict[str, int]]

    def words(self, name: str) -> str:
        """Returns it as a sentence about the delegate of that name."""
        if not self.taken:
            return "{} took none of {} operators: {} ran the whole model".format(name, self.operators, self._others())
        pieces = "" if self.partitions == 1 else " in {} pieces".format(self.partitions)
        words = "{} took {} of {} operators{}".format(name, self.taken, self.operators, pieces)
        left = ["{} to {}".format(_counted(found), kernels) for kernels, found in self.left.items()]
        return words + ("; it left {}".format(" and ".join(left)) if left else "")

    def _others(self) -> str:
        return "the {} kernels".format(" and ".join(self.left) or "other")


def _counted(kinds: Mapping[str, int]) -> str:
    return ", ".join(kind if count == 1 else "{} {}".format(count, kind) for kind, count in kinds.items())


def library_of(name: str) -> str:
    """Returns the library that a name stands for: the Edge TPU's on this system for ``edgetpu``, else the name itself."""
    return _EDGETPU_LIBRARIES.get(sys.platform, "libedgetpu.so.1") if name == EDGETPU else name


def library_name(delegate: Delegate) -> str:
    """Returns the name of a delegate's library, without its folder."""
    return os.path.basename(library_of(delegate.library))


def label(delegates: Sequence[Delegate]) -> str:
    """Returns the delegates by their libraries' names, for messages: ``the delegate libedgetpu.so.1``."""
    names = [library_name(delegate) for delegate in delegates]
    return "the delegate{} {}".format("s" if len(names) > 1 else "", " and ".join(names))


def delegates_of(library: Optional[str], texts: Iterable[str], option: str = "--delegate") -> Tuple[Delegate, ...]:
    """Returns the delegate that a command line's ``option`` and ``option-option`` name, or nothing.

    Raises:
        OptionError: For an option of the delegate that is not ``key=value``, or without a delegate.
    """
    pairs = pairs_of(texts, "{}-option".format(option), "KEY=VALUE")
    if pairs and not library:
        raise OptionError("got {0}-option without {0} LIBRARY".format(option))
    return (Delegate(library, pairs),) if library else ()


def pairs_of(texts: Iterable[str], option: str, form: str) -> Dict[str, str]:
    """Returns what was given as ``key=value``; ``option`` and its ``form`` are for the message.

    Raises:
        OptionError: For a text without ``=``.
    """
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise OptionError("got {} {!r}, expected {}".format(option, text, form))
        pairs[key] = value
    return pairs


def load(runtime: tf_private.Runtime, delegate: Delegate) -> Any:
    """Loads a delegate into a runtime.

    Raises:
        InterpreterError: Where its library, what that needs, or its device is absent, with what to do.
        OptionError: For an option that means nothing to the Edge TPU.
    """
    library, options = library_of(delegate.library), dict(delegate.options)
    if not library:
        raise OptionError("got an empty name of a delegate's library, expected its path, or {!r}".format(EDGETPU))
    if _is_edgetpu(delegate):
        _check_device(options)
    what = "cannot load the delegate {} with options {}".format(library, options)
    try:
        # Opened here first: where that fails, the runtimes' own Delegate also complains while it is destroyed.
        opened = ctypes.PyDLL(library)
    except OSError as error:
        raise InterpreterError("{}: {}; {}".format(what, error, _on_opening(delegate, library, str(error)))) from error
    if not hasattr(opened, _ENTRY):
        raise InterpreterError(
            "{}: it is a library, but no delegate, for it lacks {}; give the library of a delegate of TensorFlow Lite".format(
                what, _ENTRY
            )
        )
    try:
        return runtime.load_delegate(library, options)
    except (OSError, ValueError) as error:
        # "Failed to load delegate from LIBRARY", and in further lines what the delegate said.
        said = "; ".join(line.strip() for line in str(error).splitlines()[1:] if line.strip())
        reason = "it refuses to start, and says: {}".format(said) if said else "it refuses to start, and gives no reason"
        raise InterpreterError("{}: {}; {}".format(what, reason, _on_refusal(delegate, said))) from error


def _is_edgetpu(delegate: Delegate) -> bool:
    return "edgetpu" in library_name(delegate).lower()


def _check_device(options: Mapping[str, str]) -> None:
    device = options.get("device", "")
    if not _DEVICES.fullmatch(device):
        raise OptionError(
            "got device={!r} for the Edge TPU, expected nothing, ':N', 'usb', 'usb:N', 'pci' or 'pci:N', with N the number of "
            "the device from 0".format(device)
        )


def _on_opening(delegate: Delegate, library: str, said: str) -> str:
    """Returns what to do where the library cannot be opened."""
    if "libusb" in said:
        return "it needs libusb: install it, on Debian with 'apt-get install libusb-1.0-0', on macOS with 'brew install libusb'"
    if any(words in said for words in ("ELF", "not a valid Win32", "incompatible architecture", "mach-o")):
        return "it is no library for this system ({} {}): take the one built for it".format(sys.platform, platform.machine())
    if "GLIBC" in said or "CXXABI" in said:
        return "it was built for a newer system than this: take a build for this one"
    missing = re.search(r"([\w.+-]+): cannot open shared object file", said)
    if missing and missing.group(1) != os.path.basename(library):
        return "it needs {}, which is absent: install the package that holds it".format(missing.group(1))
    if delegate.library == EDGETPU or (_is_edgetpu(delegate) and os.path.dirname(library) == ""):
        return (
            "the Edge TPU's runtime is not installed here: on Debian add Coral's package source and 'apt-get install "
            "libedgetpu1-std', else see coral.ai/software; or give the library's path in place of its name"
        )
    return "check the library's path"


def _on_refusal(delegate: Delegate, said: str) -> str:
    """Returns what to do where the delegate cannot be created."""
    if not _is_edgetpu(delegate):
        return "check the options, and that the device is plugged in"
    return (
        "most often there is no Edge TPU: plug it in, see it with lsusb (1a6e:089a or 18d1:9302) or as /dev/apex_0, be in the "
        "group plugdev or apex, and let no other process hold it; an option that the library does not know does the same"
    )


def advice(said: str, delegates: Sequence[Delegate] = ()) -> str:
    """Returns what to do where a runtime refused a model or failed in it, and said so; nothing where that is not known."""
    if _CUSTOM_OPERATOR in said:
        if not delegates:
            return (
                "the model was compiled for the Edge TPU, and runs with its delegate alone: add --delegate edgetpu, or "
                "Delegate('edgetpu'), on a machine that has the device; elsewhere take the model that the compiler was given"
            )
        return "{} does not take what the Edge TPU's compiler made; the Edge TPU's own does: --delegate edgetpu".format(
            label(delegates)
        )
    newer = re.search(r"requires runtime version \((\d+)\).*this runtime version \((\d+)\)", said)
    if newer:
        return (
            "the installed libedgetpu is older than the compiled model: install one of runtime version {}, or compile the "
            "model for this one with 'edgetpu_compiler -m {}'".format(*newer.groups())
        )
    if "Didn't find op for builtin opcode" in said or "builtin_code out of range" in said:
        return (
            "this runtime is older than the model: install a newer one, or convert the model with the TensorFlow that the "
            "runtime came from"
        )
    return ""


def crash_advice(runtime: str, version: str) -> str:
    """Returns what to do where a delegate ended its process, or computes what cannot be believed."""
    return (
        "A delegate that was built for another release of TensorFlow Lite does that: take a build for {} {}, or the runtime "
        "that it was built for".format(runtime, version)
    )


def untaken_advice(delegates: Sequence[Delegate]) -> str:
    """Returns what to do where a delegate takes no operator, to be put behind that; nothing where that is not known."""
    if not any(_is_edgetpu(delegate) for delegate in delegates):
        return ""
    return ". The Edge TPU runs what its compiler made alone: compile the model with edgetpu_compiler"


def _described(delegate: Delegate) -> Dict[str, Any]:
    """Returns which delegate it is, as plain data: library, options, and where they can be had its hash and version."""
    library = library_of(delegate.library)
    about: Dict[str, Any] = {"library": library, "options": dict(delegate.options)}
    if os.path.isfile(library):
        about["sha256"] = _hash_of(library, os.stat(library).st_mtime_ns)
    version = _version_of(library) if _is_edgetpu(delegate) else None
    if version:
        about["version"] = version
    return about


@functools.lru_cache(maxsize=None)
def _hash_of(path: str, modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def _version_of(library: str) -> Optional[str]:
    """Returns what libedgetpu says of itself: its build, and its runtime version."""
    try:
        function = ctypes.PyDLL(library).edgetpu_version
    except (OSError, AttributeError):
        return None
    function.restype = ctypes.c_char_p
    text = function()
    return text.decode("utf-8", "replace") if text else None


def delegation(interpreter: Any, nodes: int, kernels: str) -> Delegation:
    """Returns what delegates took.

    Args:
        interpreter: Of a runtime, with its tensors allocated.
        nodes: How many nodes it had before that, when the delegates that were asked for had taken theirs, and XNNPACK, which
            comes last, not yet.
        kernels: Those that run the rest: ``xnnpack``, ``builtin`` or ``reference``.
    """
    operators, partitions = tf_private.partitions(interpreter)
    own = [found for node, found in partitions if node < nodes]
    taken = {number for found in own for number in found}
    others = {number for node, found in partitions if node >= nodes for number in found}
    rest = "builtin" if kernels == "xnnpack" else kernels
    left: Dict[str, Dict[str, int]] = {}
    for number, operator in enumerate(operators):
        if number not in taken:
            kinds = left.setdefault("xnnpack" if number in others else rest, {})
            kinds[operator] = kinds.get(operator, 0) + 1
    return Delegation(len(operators), len(taken), len(own), left)


def described(delegates: Sequence[Delegate]) -> List[Dict[str, Any]]:
    """Returns which delegates they are, as plain data: library, options and, where they can be had, its hash and version."""
    return [_described(delegate) for delegate in delegates]
