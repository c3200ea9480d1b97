"""Samples through workers: forked processes of their own, or threads of this one; results in the order of the samples.

A worker holds what runs a model. Each process opens its own, so that a model which kills its process costs one sample and not
the run. Samples get there through shared memory, two at a time (small ones more), so that the next one is there when a worker
is done with the last; results come back through a pipe.
"""

from __future__ import annotations

import collections
import contextlib
import mmap
import pickle
import queue
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import (
    Any,
    Callable,
    Deque,
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    TypeVar,
    Union,
)

from tflite_qdebug.errors import DatasetError
from tflite_qdebug.isolation import TIME_LIMIT, Child, ChildEndedError, Outcome, alarm, as_error, outcome_of, wait_for

__all__ = ["MOST_LOST", "Workers", "map_samples"]

T = TypeVar("T")

#: With so many samples that ended their process a run is given up.
MOST_LOST = 3
# Samples at once with a worker: of small ones more, since to be woken for each would take longer than the work itself.
_AHEAD, _AHEAD_OF_SMALL, _SMALL = 2, 16, 65536
# What may wait in a pipe so many times without filling it.
_BRIEF = 2048
_ALIGNMENT = 64
# More than this may fill a pipe while its reader is busy.
_SHORT = 32768
# Buffers of arrays apart from the pickle came with protocol 5, in Python 3.8.
_APART = pickle.HIGHEST_PROTOCOL >= 5


class Workers:
    """How a loop over samples runs.

    Attributes:
        open_worker: Makes a worker.
        count: How many at once.
        isolated: True where they run in processes of their own.
        what: What they do with a sample.
        time_limit: Seconds for each sample.
        finish: Called with each worker at the end, or None.
        replaceable: False where the death of a worker ends the run.
        notes: What the reader of the result must know: samples that were left out.
        finished: What ``finish`` returned, for each worker, once all samples are done.
    """

    def __init__(
        self,
        open_worker: Callable[[], Any],
        count: int = 1,
        isolated: bool = False,
        what: str = "running the model",
        time_limit: float = TIME_LIMIT,
        finish: Optional[Callable[[Any], Any]] = None,
        replaceable: bool = True,
    ) -> None:
        """Keeps all that; nothing is opened before there are samples.

        Args:
            open_worker: Makes a worker; called in its process.
            count: How many at once.
            isolated: In processes of their own.
            what: What they do with a sample, for messages: "measuring layers".
            time_limit: Seconds for each sample, and for opening.
            finish: Called with each worker after the last sample; its result is brought back.
            replaceable: False where a worker gathers what its end would lose, so that its death ends the run.
        """
        self.open_worker, self.count, self.isolated, self.what = open_worker, count, isolated, what
        self.time_limit, self.finish, self.replaceable = time_limit, finish, replaceable
        self.notes: List[str] = []
        self.finished: List[Any] = []
        self._started: Optional[_Processes] = None

    def start(self, work: Callable[[Any, Any], Any], scout: Callable[[], Tuple[Any, Any]], sample: Any) -> Any:
        """Starts the first worker process ahead of `map`, and returns what it finds out.

        Args:
            work: As `map` will be given.
            scout: Runs in the process in place of ``open_worker``; returns the worker, and what to tell the caller.
            sample: One like those to come.

        Raises:
            InterpreterError: Where the process ends; its attribute ``ended`` tells how.
            Exception: Whatever ``scout`` raises.
        """
        self._started = _Processes(self, work)
        try:
            return self._started.start(scout, sample)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the processes; more than once does no harm."""
        if self._started is not None:
            self._started.close()
            self._started = None

    def map(self, work: Callable[[Any, Any], T], samples: Iterable[Any]) -> Iterator[Tuple[int, T]]:
        """Yields position and ``work(worker, sample)`` in the order of the samples.

        At most two samples per worker are held, of at most 64 KiB sixteen. A sample that ends its process, or takes too
        long, is left out, and noted, if others went well before it; another process goes on.

        Raises:
            QDebugError: Where the first sample ends its process, or too many do.
            Exception: Whatever opening, the samples, or ``work`` raises, after the results of the samples before.
        """
        if self.isolated:
            self._started = self._started or _Processes(self, work)
            try:
                yield from self._started.results(iter(samples))
            finally:
                self.close()
            return
        opened = [self.open_worker() for _ in range(self.count)]
        yield from enumerate(_in_threads(work, opened, samples))
        if self.finish is not None:
            self.finished = [self.finish(worker) for worker in opened]


def map_samples(
    work: Callable[[Any, Any], T],
    workers: Union[Workers, Sequence[Any]],
    samples: Iterable[Any],
) -> Iterator[T]:
    """Yields ``work(worker, sample)`` in the order of the samples, each worker doing one at a time.

    At most two samples per worker are held, of at most 64 KiB sixteen, so memory does not grow with their number. The first
    error ends it.

    Args:
        work: What is done with each sample.
        workers: How to run it, best in processes, as ``Backend.pool`` makes it; or opened workers, which run in threads of
            this process.
        samples: Any number of them.
    """
    if isinstance(workers, Workers):
        return (result for _, result in workers.map(work, samples))
    return _in_threads(work, workers, samples)


def _in_threads(work: Callable[[Any, Any], T], workers: Sequence[Any], samples: Iterable[Any]) -> Iterator[T]:
    idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def one(sample: Any) -> T:
        worker = idle.get()
        try:
            return work(worker, sample)
        finally:
            idle.put(worker)

    if len(workers) == 1:
        for sample in samples:
            yield work(workers[0], sample)
        return
    waiting: Deque[Future[T]] = collections.deque()
    with ThreadPoolExecutor(len(workers), thread_name_prefix="tflite_qdebug") as pool:
        try:
            for sample in samples:
                waiting.append(pool.submit(one, sample))
                if len(waiting) >= 2 * len(workers):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class _Packed(NamedTuple):
    """A sample ready to be sent: the pickle, and the buffers of its arrays where they stand apart."""

    pickled: bytes
    buffers: Sequence[Any]

    @property
    def room(self) -> int:
        """Bytes of shared memory that the buffers need."""
        return sum(_aligned(buffer.nbytes) for buffer in self.buffers)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _packed(sample: Any, position: int, apart: bool) -> _Packed:
    try:
        if not (apart and _APART):
            return _Packed(pickle.dumps(sample, pickle.HIGHEST_PROTOCOL), ())
        buffers: List[Any] = []
        pickled = pickle.dumps(sample, pickle.HIGHEST_PROTOCOL, buffer_callback=buffers.append)
        return _Packed(pickled, [buffer.raw() for buffer in buffers])
    except Exception as error:
        raise DatasetError(
            "sample {} cannot be brought to the process that runs the model ({}); give arrays and plain values, or use "
            "Backend(isolate=False)".format(position, error)
        ) from error


def ahead_of(size: int) -> int:
    """Returns how many samples of so many bytes a worker has at once."""
    return _AHEAD_OF_SMALL if 0 < size <= _SMALL else _AHEAD


class _Station:
    """One worker process, the samples that it has, and the memory through which they come."""

    def __init__(self, serve: Callable[[Child, Any], None], size: int, share: int) -> None:
        self.size = size
        self.memory = mmap.mmap(-1, ahead_of(size) * size) if size else None
        self.slots = list(range(ahead_of(size)))
        self.jobs: Deque[Tuple[int, Any, int]] = collections.deque()  # position, sample, slot
        self.opened = False
        self.since = time.monotonic()
        self.child = Child(lambda child: serve(child, self.memory), share)

    @property
    def is_busy(self) -> bool:
        """True where it has something left to say."""
        return bool(self.jobs) or not self.opened

    def send(self, position: int, sample: Any) -> bool:
        """Gives the worker a sample; False where it must first be idle to take one of that size."""
        packed = _packed(sample, position, self.memory is not None)
        if packed.room > self.size:
            packed = _packed(sample, position, False)
        if len(packed.pickled) > _SHORT and (self.jobs or not self.opened):
            return False
        if len(packed.pickled) > _BRIEF and len(self.jobs) >= _AHEAD:
            return False
        slot = self.slots.pop()
        places, start = [], slot * self.size
        for buffer in packed.buffers:
            assert self.memory is not None
            self.memory[start : start + buffer.nbytes] = buffer
            places.append((start, start + buffer.nbytes))
            start += _aligned(buffer.nbytes)
        if not self.jobs and self.opened:
            self.since = time.monotonic()
        self.jobs.append((position, sample, slot))
        self.tell((packed.pickled, places))
        return True

    def tell(self, message: Any) -> None:
        """Sends a message to the process."""
        with contextlib.suppress(OSError):  # it died; how, the next look tells
            self.child.send(message)

    def close(self) -> None:
        self.child.close()
        if self.memory is not None:
            self.memory.close()


def _serve(
    child: Child,
    memory: Any,
    open_worker: Callable[[], Tuple[Any, Any]],
    work: Callable[[Any, Any], Any],
    finish: Optional[Callable[[Any], Any]],
    time_limit: float,
) -> None:
    """What a worker process does: opens, answers each sample, and finishes when told to."""
    with alarm(time_limit):
        opened = outcome_of(open_worker)
    worker, told = opened.value or (None, None)
    child.answer(opened._replace(value=told))
    view = None if memory is None else memoryview(memory)
    while True:
        message = child.receive()
        if message is None:
            child.answer(outcome_of(finish, worker) if finish else Outcome())
            return
        pickled, places = message
        if places:
            assert view is not None
            sample = pickle.loads(pickled, buffers=[view[start:stop] for start, stop in places])
        else:
            sample = pickle.loads(pickled)
        with alarm(time_limit):
            outcome = outcome_of(work, worker, sample)
        child.answer(outcome)


class _Processes:
    """One run over samples in worker processes.

    What becomes of each sample (a result, an error, or the end of its process) is kept until its turn, so that what the
    caller sees does not depend on which worker was faster.
    """

    def __init__(self, workers: Workers, work: Callable[[Any, Any], Any]) -> None:
        self._workers, self._work = workers, work
        self._stations: List[_Station] = []
        self._size: Optional[int] = None
        self._again: List[Tuple[int, Any]] = []  # samples that a dead worker left behind, by position
        self._drawn = self._turn = 0
        self._results: Dict[int, Any] = {}
        self._errors: Dict[int, BaseException] = {}
        self._lost: Dict[int, Tuple[Any, ChildEndedError]] = {}
        self._exhausted = False

    def start(self, scout: Callable[[], Tuple[Any, Any]], sample: Any) -> Any:
        """Starts the first process; returns what the scout finds out."""
        station = self._start(scout, self._room_for(sample, 0))
        try:
            outcome: Outcome = station.child.receive(self._workers.time_limit)
        except ChildEndedError as ended:
            raise as_error(ended, "{}: opening the model".format(self._workers.what)) from None
        station.opened = True
        return outcome.result()

    def results(self, samples: Iterator[Any]) -> Iterator[Tuple[int, Any]]:
        """Yields position and result, in the order of the samples."""
        while True:
            yield from self._in_turn()
            self._hand_out(samples)  # after the results, which make room: the next sample is there before it is wanted
            if any(station.is_busy for station in self._stations):
                self._listen()
            elif self._exhausted and not self._again:  # all that was handed out is back
                yield from self._in_turn()
                break
        self._finish()

    def close(self) -> None:
        """Ends the processes."""
        for station in self._stations:
            station.close()

    @property
    def _end(self) -> float:
        """The position at which the run ends, as far as is known."""
        lost = sorted(self._lost)
        ends: List[float] = [*self._errors]
        if lost and (lost[0] == 0 or not self._workers.replaceable):
            ends.append(lost[0])
        return min(ends + [float(position) for position in lost[MOST_LOST - 1 : MOST_LOST]], default=float("inf"))

    def _in_turn(self) -> Iterator[Tuple[int, Any]]:
        while True:
            position = self._turn
            if position in self._results:
                self._turn += 1
                yield position, self._results.pop(position)
            elif position in self._errors:
                raise self._errors[position]
            elif position in self._lost:
                self._turn += 1
                self._pass_over(position)
            else:
                return

    def _pass_over(self, position: int) -> None:
        sample, ended = self._lost[position]
        name = getattr(sample, "index", position)
        what = "{}, sample {},".format(self._workers.what, name)
        if position >= self._end:
            if position and self._workers.replaceable:
                ended = ChildEndedError(ended.how, "{}. With {} such samples the run is given up".format(ended, MOST_LOST))
            raise as_error(ended, what)
        self._workers.notes.append("{} {}; this sample is left out".format(what, ended))

    def _hand_out(self, samples: Iterator[Any]) -> None:
        """Gives samples to workers that have room, and starts workers where all are busy."""
        while self._again or not self._exhausted:
            limit = ahead_of(self._size or 0) * self._workers.count
            if not self._again and (self._drawn - self._turn >= limit or self._drawn >= self._end):
                return
            position, sample = self._again.pop(0) if self._again else self._draw(samples)
            if position < 0:
                return
            if position >= self._end:
                continue
            station = self._free_station(sample)
            if station is None or not station.send(position, sample):
                self._again.insert(0, (position, sample))
                return

    def _draw(self, samples: Iterator[Any]) -> Tuple[int, Any]:
        position = self._drawn
        try:
            sample = next(samples)
        except StopIteration:
            self._exhausted = True
            return -1, None
        except BaseException as error:  # its turn comes after the results of the samples before, an interruption's too
            self._exhausted, self._errors[position] = True, error
            return -1, None
        self._drawn += 1
        return position, sample

    def _free_station(self, sample: Any) -> Optional[_Station]:
        least = min(self._stations, key=lambda station: len(station.jobs), default=None)
        if (least is None or least.jobs) and len(self._stations) < self._workers.count:
            workers = self._workers
            least = self._start(lambda: (workers.open_worker(), None), self._room_for(sample, self._drawn - 1))
        return least if least is not None and least.slots else None

    def _room_for(self, sample: Any, position: int) -> int:
        """Returns the bytes of shared memory for one sample, set by the first."""
        if self._size is None:
            self._size = _aligned(_packed(sample, position, True).room)
        return self._size

    def _start(self, open_worker: Callable[[], Tuple[Any, Any]], size: int) -> _Station:
        workers = self._workers

        def serve(child: Child, memory: Any) -> None:
            _serve(child, memory, open_worker, self._work, workers.finish, workers.time_limit)

        station = _Station(serve, size, workers.count)
        self._stations.append(station)
        return station

    def _listen(self) -> None:
        """Takes in what workers have to say, and ends those that take too long."""
        busy = [station for station in self._stations if station.is_busy]
        limit = self._workers.time_limit
        first = min(station.since for station in busy) + limit
        ready = wait_for([station.child for station in busy], first - time.monotonic())
        for station in busy:
            if station.child in ready:
                self._take(station)
            elif time.monotonic() > station.since + limit:
                self._bury(station, station.child.expired(limit))

    def _take(self, station: _Station) -> None:
        try:
            outcome: Outcome = station.child.receive(self._workers.time_limit)
        except ChildEndedError as ended:
            self._bury(station, ended)
            return
        station.since = time.monotonic()
        if not station.opened:
            station.opened = True
            outcome.result()
            return
        position, _, slot = station.jobs.popleft()
        station.slots.append(slot)
        if outcome.error is None:
            self._results[position] = outcome.value
        else:
            self._errors[position] = outcome.with_cause()

    def _bury(self, station: _Station, ended: ChildEndedError) -> None:
        """Keeps what is known of a dead worker's sample, and its other samples for the next worker."""
        self._stations.remove(station)
        station.close()
        if not station.opened:
            raise as_error(ended, "{}: opening the model".format(self._workers.what))
        position, sample, _ = station.jobs.popleft()
        self._lost[position] = (sample, ended)
        self._again = sorted(self._again + [job[:2] for job in station.jobs], key=lambda job: job[0])

    def _finish(self) -> None:
        workers = self._workers
        if workers.finish is None:
            return
        for station in self._stations:
            station.tell(None)
        for station in self._stations:
            try:
                workers.finished.append(station.child.receive(workers.time_limit).result())
            except ChildEndedError as ended:
                raise as_error(ended, "{}, after the last sample,".format(workers.what)) from None
