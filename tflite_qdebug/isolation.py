"""What can kill or hang a process runs in a forked child; a dead child becomes an error that says what it was doing.

A fork brings loaded libraries, closures and the user's data along in some milliseconds, and a user's script needs no main
guard. Only Linux forks safely with native libraries loaded; elsewhere everything runs in the caller's process. A child
writes nothing to the caller's output: its standard error goes to a file, whose last lines explain a death.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import logging
import multiprocessing.connection
import os
import pickle
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from typing import Any, Callable, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple, Type

from tflite_qdebug.errors import InterpreterError, QDebugError

__all__ = [
    "Child",
    "ChildEndedError",
    "Outcome",
    "available",
    "call",
    "call_with_samples",
    "doing",
    "is_child",
    "wait_for",
]

#: Seconds that one step may take before its child is ended.
TIME_LIMIT = 300.0
# A child of the caller's own, forked without us, may keep a pipe open beyond the death of ours: look at the process too.
_LOOK_EVERY = 1.0
# Where the caller is gone and cannot end a child that hangs, the child's own alarm does, this much later.
_ORPHAN_SECONDS = 60
_SHARE_OF_MEMORY = 0.8
# Begins the line in a child's standard error that says what it is at.
_DOING = "tflite_qdebug is at: "
_CHILD = False
# What a child sends to ask for a sample; all else is an outcome.
_NEXT = None
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available() -> bool:
    """True where children can be forked safely, which is on Linux."""
    return sys.platform.startswith("linux") and hasattr(os, "fork")


def is_child() -> bool:
    """True in a process that this module has forked."""
    return _CHILD


@contextlib.contextmanager
def doing(words: str) -> Iterator[None]:
    """Leaves word of what a child is at, for the message should it end there: ``while`` and these words."""
    if not _CHILD:
        yield
        return
    os.write(2, "\n{}{}\n".format(_DOING, words).encode("utf-8", "replace"))
    try:
        yield
    finally:
        os.write(2, "\n{}\n".format(_DOING).encode())


class ChildEndedError(Exception):
    """A child ended, or was ended, before it answered; its text goes on after the words for what was being done.

    Attributes:
        how: ``signal SIGABRT``, ``exit code 3`` or ``time limit``.
    """

    def __init__(self, how: str, text: str) -> None:
        """Keeps both."""
        super().__init__(text)
        self.how = how


class Outcome(NamedTuple):
    """What a step in a child came to.

    Attributes:
        value: What it returned.
        error: What it raised instead.
        trace: The traceback of that, as text.
    """

    value: Any = None
    error: Optional[BaseException] = None
    trace: str = ""

    def result(self) -> Any:
        """Returns the value, or raises the error with the child's traceback as its cause."""
        if self.error is not None:
            raise self.with_cause()
        return self.value

    def with_cause(self) -> BaseException:
        """Returns the error with the child's traceback as its cause."""
        assert self.error is not None
        self.error.__cause__ = _RemoteError(self.trace)
        return self.error


class _RemoteError(Exception):
    """Where an error came from in the process that raised it."""


def outcome_of(function: Callable[..., Any], *arguments: Any) -> Outcome:
    """Runs a step in the child; what it raises is kept."""
    try:
        return Outcome(function(*arguments))
    except MemoryError:
        return Outcome(error=InterpreterError("there is not enough memory for it"), trace=traceback.format_exc())
    except Exception as error:
        return Outcome(error=error, trace=traceback.format_exc())


class Child:
    """A forked process that serves one pipe and then ends; to be closed, which ends it.

    Attributes:
        connection: The caller's end of the pipe.
        pid: The process.
    """

    def __init__(self, serve: Callable[[Child], None], share: int = 1) -> None:
        """Forks.

        Args:
            serve: What the child does; it calls `send` and `receive` of the child's own view of this object.
            share: How many children share the memory.

        Raises:
            InterpreterError: Where the system has no process, file or memory left for it.
        """
        limit = _memory_limit(share)
        with _LOCK, contextlib.ExitStack() as opened:
            try:
                self._log = opened.enter_context(tempfile.TemporaryFile(prefix="tflite_qdebug_"))
                self.connection, theirs = map(opened.enter_context, multiprocessing.connection.Pipe())
                self.pid = _fork()
            except OSError as error:
                raise InterpreterError(
                    "cannot start a process of its own to run the model in ({}); free memory or processes, or use "
                    "Backend(isolate=False)".format(error)
                ) from error
            if not self.pid:
                self._be_the_child(theirs, serve, limit)
            opened.pop_all()
            theirs.close()
            _LIVE.add(self)

    def _be_the_child(self, theirs: Any, serve: Callable[[Child], None], limit: int) -> None:
        code = 1
        try:
            self.connection.close()
            _settle(self._log.fileno(), limit)
            self.connection = theirs
            serve(self)
            code = 0
        except (EOFError, BrokenPipeError, ConnectionError):
            code = 0  # the caller needs no answer any more
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)

    def send(self, message: Any) -> None:
        """Sends anything that can be pickled.

        Raises:
            OSError: Where the other side is gone.
        """
        self.connection.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))

    def answer(self, outcome: Outcome) -> None:
        """Sends an outcome from the child; one that cannot be pickled becomes an error that says so."""
        try:
            message = pickle.dumps(outcome, pickle.HIGHEST_PROTOCOL)
            if outcome.error is not None:
                pickle.loads(message)  # an exception's constructor may want more than its text
        except Exception as error:
            what = "the result" if outcome.error is None else "{}: {}".format(type(outcome.error).__name__, outcome.error)
            text = "{} cannot be brought back from its process ({})".format(what, error)
            message = pickle.dumps(Outcome(None, InterpreterError(text), outcome.trace), pickle.HIGHEST_PROTOCOL)
        self.connection.send_bytes(message)

    def receive(self, time_limit: Optional[float] = None) -> Any:
        """Returns the next message.

        Args:
            time_limit: Seconds to wait; None: for ever, as the child does for the caller.

        Raises:
            ChildEndedError: Where the child ended without it, or was ended for taking too long.
            EOFError: In the child, where the caller is gone.
        """
        if time_limit is None:
            return pickle.loads(self.connection.recv_bytes())
        deadline = time.monotonic() + time_limit
        while not wait_for([self], deadline - time.monotonic()):
            if time.monotonic() >= deadline:
                raise self.expired(time_limit)
        try:
            return pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            raise self.ended() from None

    def expired(self, time_limit: float) -> ChildEndedError:
        """Ends the child, which has taken too long, and says so."""
        self.close()
        return ChildEndedError("time limit", "took longer than {:g} s, and was ended".format(time_limit))

    def ended(self) -> ChildEndedError:
        """Says how the child, which is dead or dying, ended."""
        code = self._reap()
        words, at = self._last_words()
        self.close()
        if code is None:
            how, hint = "unknown", ""
        elif code < 0:
            how = "signal {}".format(_signal_name(-code))
            hint = ", perhaps by the system for want of memory" if -code == signal.SIGKILL else ""
        else:
            how, hint = "exit code {}".format(code), ""
        said = ". Its last words: {}".format(words) if words else ""
        place = " while {}".format(at) if at else ""
        return ChildEndedError(how, "ended its process ({}{}){}{}".format(how, hint, place, said))

    def _last_words(self) -> Tuple[str, str]:
        """Returns the last lines of the child's standard error, and what it was at."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 4000))
        lines = [line.strip() for line in self._log.read().decode("utf-8", "replace").splitlines() if line.strip()]
        marks = [line[len(_DOING) :] for line in lines if (line + " ").startswith(_DOING)]
        words = [line for line in lines if not (line + " ").startswith(_DOING)]
        return "; ".join(words[-2:])[-500:], marks[-1] if marks else ""

    def _reap(self) -> Optional[int]:
        """Waits for the process; returns its exit code, negative for a signal, or None where somebody else has waited."""
        if not self.pid:
            return None
        # Its pipe is closed, so it is dying, and of what is settled; this only makes sure that the wait ends.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        pid, self.pid = self.pid, 0
        try:
            status = os.waitpid(pid, 0)[1]
        except ChildProcessError:
            return None
        return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

    def is_dead(self) -> bool:
        """True where the process has ended, even though its pipe may still be open."""
        try:
            return bool(os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT))
        except ChildProcessError:
            return True

    def close(self) -> None:
        """Ends the process, waits for it and closes its files; more than once does no harm."""
        _LIVE.discard(self)
        self._reap()
        self.connection.close()
        self._log.close()


_LOCK = threading.RLock()
_LIVE: Set[Child] = set()


def wait_for(children: Sequence[Child], seconds: float) -> List[Child]:
    """Waits until at least one child has something to say or is dead; returns those, none after ``seconds``.

    It may return early with none, when nothing has happened for a while.
    """
    poll = select.poll()  # a tenth of the time that multiprocessing.connection.wait takes
    for child in children:
        poll.register(child.connection.fileno(), select.POLLIN)
    ready = {number for number, _ in poll.poll(1000 * max(0.0, min(seconds, _LOOK_EVERY)))}
    if ready:
        return [child for child in children if child.connection.fileno() in ready]
    dead = [child for child in children if child.is_dead()]
    for child in dead:
        if not child.connection.poll():
            child.connection.close()  # nothing more can come, and reading says so
    return dead


def _fork() -> int:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the user's stream may be of any kind, or closed
            stream.flush()
    with warnings.catch_warnings():
        # Locks that another thread may hold are not for the child to touch: it runs an interpreter and numpy, no more.
        warnings.filterwarnings("ignore", r"[\s\S]*\bfork\(\)")
        return _without_garbage()


def _without_garbage() -> int:
    """Forks; the child never looks at what the caller made.

    To look at it would copy its pages. And what is garbage there must not end in the child: a calibrator that TensorFlow has
    left in a cycle would wait for its threads, which a fork does not bring along.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        pid = os.fork()
        if not pid:
            gc.freeze()
        return pid
    finally:
        if enabled:
            gc.enable()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _settle(log: int, limit: int) -> None:
    """Parts the child from what belongs to the caller: streams, signals, other children, loggers."""
    global _CHILD
    _CHILD = True
    faulthandler.disable()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller ends its children
    for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDWR)
    for source, target in ((nothing, 0), (nothing, 1), (log, 2)):
        os.dup2(source, target)
    sys.stdin = open(os.devnull)  # noqa: SIM115
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, errors="backslashreplace")  # noqa: SIM115
    for other in _LIVE:
        other.connection.close()  # else it would not notice that the caller is gone
    _LIVE.clear()
    logging.disable(logging.CRITICAL)  # what is worth saying, the caller says, once
    _limit_memory(limit)


def _limit_memory(limit: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if limit and (hard == resource.RLIM_INFINITY or limit < hard):
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _memory_limit(share: int) -> int:
    """Returns how many bytes of addresses a child may have: what there are, and most of the memory that is free."""
    try:
        with open("/proc/self/statm") as file:
            present = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        with open("/proc/meminfo") as file:
            free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return 0
    for most, used in _CGROUPS:
        with contextlib.suppress(OSError, ValueError), open(most) as limit, open(used) as now:
            free = min(free, int(limit.read()) - int(now.read()))
    return present + max(int(free * _SHARE_OF_MEMORY) // share, 1 << 28)


@contextlib.contextmanager
def alarm(time_limit: float) -> Iterator[None]:
    """Ends the child, should the step take much longer than allowed and the caller be gone."""
    signal.alarm(int(min(time_limit, 1e8)) + _ORPHAN_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def call(
    function: Callable[..., Any],
    *arguments: Any,
    what: str,
    time_limit: float = TIME_LIMIT,
    error: Type[QDebugError] = InterpreterError,
    isolate: bool = True,
) -> Any:
    """Returns ``function(*arguments)``, computed in a child.

    Args:
        function: Anything; it is not pickled. Its result is.
        *arguments: For it.
        what: What is being done, for the message: "opening the model".
        time_limit: Seconds.
        error: The kind of error that a dead child becomes; its attribute ``ended`` is the `ChildEndedError`.
        isolate: False: in this process.

    Raises:
        QDebugError: ``error`` where the child died or took too long.
        Exception: Whatever the function raised, as it is.
    """
    if not isolate or not available():
        return function(*arguments)

    def serve(child: Child) -> None:
        with alarm(time_limit):
            child.answer(outcome_of(function, *arguments))

    child = Child(serve)
    try:
        answer: Outcome = child.receive(time_limit)
    except ChildEndedError as ended:
        raise as_error(ended, what, error) from None
    finally:
        child.close()
    return answer.result()


def as_error(ended: ChildEndedError, what: str, error: Type[QDebugError] = InterpreterError) -> QDebugError:
    """Returns the error for a child that ended while it was doing ``what``."""
    made = error("{} {}".format(what, ended))
    made.ended = ended  # type: ignore[attr-defined]
    return made


def call_with_samples(
    function: Callable[[Callable[[], Iterator[Any]]], Any],
    samples: Iterable[Any],
    *,
    what: str,
    time_limit: float = TIME_LIMIT,
    error: Type[QDebugError] = InterpreterError,
) -> Any:
    """Returns ``function(source)``, computed in a child; ``source()`` there yields what ``samples`` yields here.

    The samples are drawn in this process, one whenever the child asks for it, since what makes them may hold the user's
    state. What they raise ends the child and is passed on.

    Args:
        function: Takes a function without arguments that returns an iterator.
        samples: Anything that can be pickled.
        what: As for `call`.
        time_limit: Seconds for each sample.
        error: As for `call`.

    Raises:
        QDebugError: ``error`` where the child died or took too long.
        Exception: Whatever the function or the samples raised, as it is.
    """
    if not available():
        return function(lambda: iter(samples))
    child = Child(lambda child: child.answer(outcome_of(function, lambda: _asked_for(child, time_limit))))
    place = "before the first sample"
    try:
        for position, sample in enumerate(samples):
            answer = child.receive(time_limit)
            if answer is not _NEXT:
                return answer.result()  # it needs no more of them, or failed
            place = "on sample {}".format(position)
            with contextlib.suppress(OSError):  # it died; how, the next look tells
                child.send((True, sample))
        answer = child.receive(time_limit)
        while answer is _NEXT:
            place = "after the last sample"
            with contextlib.suppress(OSError):
                child.send((False, None))
            answer = child.receive(time_limit)
        return answer.result()
    except ChildEndedError as ended:
        raise as_error(ended, "{}, {},".format(what, place), error) from None
    finally:
        child.close()


def _asked_for(child: Child, time_limit: float) -> Iterator[Any]:
    more = True
    while more:
        signal.alarm(0)  # the caller may take its time with the next one
        child.send(_NEXT)
        more, sample = child.receive()
        signal.alarm(int(min(time_limit, 1e8)) + _ORPHAN_SECONDS)
        if more:
            yield sample
