"""Runs the blocks of a merge on threads: each reads, sums and writes its own blocks, while the caller's thread hashes
what is written and journals what is durable.

The arithmetic is θ̄ = Σ n_k θ_k / Σ n_k (method.md, step 4), a chunk at a time, in float64, rounded once. A block goes
through one thread, because its rows then stay in that core's cache from `pread` to `pwrite`; several threads keep disk
and cores busy at once. No file is mapped: peak memory is the buffers, whatever K and the model.
"""

from __future__ import annotations

import _thread
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn

import numpy as np
import xxhash

from merit.base.errors import InputError, StageError
from merit.base.files import XXH3, disk_errors
from merit.base.machine import usable_cores
from merit.base.progress import Bar
from merit.merge.codec import Bytes, Scratch, decode, dither, encode, sum_of_squares
from merit.merge.outer import OuterStep
from merit.merge.plan import Block, MergePlan, TensorPlan, whole_rows
from merit.merge.solver import Merged
from merit.merge.staging import Hashed, Journal
from merit.models.checkpoint import ITEM_BYTES, WHOLE, FilePool
from merit.models.writer import ShardFiles

CHUNK = 1 << 17  # elements summed at once: fewer cost more in calls, and more cost more in misses of the cache
JOURNAL_SECONDS = 1.0  # what a kill loses at most
_MAX_THREADS = 8
_BACKLOG = 64  # finished blocks that may wait to be hashed
_HASH_BYTES = 1 << 18  # read back at once; they stay in a core's second-level cache
_log = logging.getLogger(__name__)
_BEGIN_SECONDS = 10.0  # a thread that has not begun by then never will
BYTES_AN_ELEMENT = 56  # of all the buffers below
_SIDE_BY_SIDE = 1 << 22  # elements of all tensors that are solved at once: about 64 bytes each


def split_memory(memory_bytes: int) -> tuple[int, int]:
    """Threads, and elements a chunk, that fit the budget. The interpreter's own 60 MB come on top.

    Raises:
        InputError: less than one small chunk fits.
    """
    chunk_bytes = BYTES_AN_ELEMENT * CHUNK
    budget = memory_bytes - 2 * _HASH_BYTES
    if budget < BYTES_AN_ELEMENT * 1024:
        raise InputError(f"{memory_bytes} bytes are too few to merge in; give at least 4 MB", field="memory")
    threads = max(1, min(usable_cores(), _MAX_THREADS, budget // chunk_bytes))
    return threads, min(CHUNK, budget // threads // BYTES_AN_ELEMENT)


def side_by_side(plan: MergePlan, threads: int) -> bool:
    """Whether each thread solves a tensor of its own. BLAS must then take one thread.

    A tensor is read and written on one core anyway, and threads that share a small product wait for each other.
    """
    if plan.solver is None or not plan.solver.rule.on_one_core:
        return False
    largest = max((tensor.elements for tensor in plan.tensors if tensor.solved), default=0)
    return threads * largest <= _SIDE_BY_SIDE


def solve(plan: MergePlan, tensor: TensorPlan, files: FilePool) -> Merged:
    """The merged step of a tensor that is no average."""
    if plan.solver is None or plan.base is None:
        raise StageError("this merge has no rule to solve with")
    return plan.solver.solve(tensor.name, tensor.shape, plan.sources, plan.base, files)


class BlockStream:
    """One pass over the blocks that the journal does not have yet."""

    def __init__(self, plan: MergePlan, folders: Sequence[Path], journal: Journal, threads: int, elements: int) -> None:
        self._plan = plan
        self._journal = journal
        self._threads = threads
        self._elements = elements
        self._todo: Iterator[int] = iter(())
        self._hashed: tuple[int, list[Hashed]] = (0, [])  # as `Journal.add` wants it
        self._lock = threading.Lock()
        self._results: queue.Queue[tuple[int, list[float]] | BaseException | None] = queue.Queue(_BACKLOG)
        self._stop = threading.Event()
        self._files: list[ShardFiles] = []
        self._folders = folders
        # Small tensors are solved side by side, on a core each; others one at a time, on all cores.
        self._solving = nullcontext() if side_by_side(plan, threads) else threading.Lock()

    @property
    def megabytes(self) -> float:
        """What the whole merge reads."""
        return sum(map(self._megabytes, self._plan.blocks))

    def run(self, bar: Bar) -> list[dict[str, str]]:
        """Merges; returns each output's shard → checksum.

        Raises:
            InputError: a bad input, found while reading.
            StageError: the disk is full; what is journaled stays, and a rerun resumes.
        """
        with disk_errors(self._plan.outputs[0].folder):
            try:
                for folder, shards in zip(self._folders, self._plan.shards, strict=True):
                    self._files.append(ShardFiles(folder, shards))
                hashes = self._hashes()
                if not all(item.reach(then) for item, then in zip(hashes, self._journal.hashed, strict=False)):
                    _log.warning("the interrupted merge left damaged files; starting over")
                    self._journal.restart()
                    hashes = self._hashes()
                self._todo = iter([n for n in range(len(self._plan.blocks)) if n not in self._journal.done])
                self._collect(bar, hashes)
                for files in self._files:
                    files.sync()
                return [
                    {shard.name: digest for shard, digest in zip(shards.shards, item.finish(), strict=True)}
                    for item, shards in zip(hashes, self._plan.shards, strict=True)
                ]
            finally:
                for files in self._files:
                    files.close()

    def _hashes(self) -> list[_Hashes]:
        return [_Hashes(files, len(item.shards)) for files, item in zip(self._files, self._plan.shards, strict=True)]

    def _collect(self, bar: Bar, hashes: list[_Hashes]) -> None:
        threads = [Worker(self._work) for _ in range(self._threads)]
        fresh: dict[int, list[float]] = {}
        done = sum(self._megabytes(self._plan.blocks[n]) for n in self._journal.done)
        written, whole = set(self._journal.done), 0  # `whole`: all blocks before it are written
        running, saved = len(threads), time.monotonic()
        begun: list[Worker] = []
        try:
            for thread in threads:
                thread.start()
                begun.append(thread)
            while running:
                item = self._next(begun)
                if item is None:
                    running -= 1
                    continue
                if isinstance(item, BaseException):
                    raise item
                number, sums = item
                fresh[number] = sums
                written.add(number)
                done += self._megabytes(self._plan.blocks[number])
                bar.update(done)
                while whole in written:
                    whole += 1
                self._hash_before(hashes, whole)
                if time.monotonic() - saved >= JOURNAL_SECONDS:
                    self._save(fresh)
                    saved = time.monotonic()
        finally:
            self._stop.set()
            while begun := [thread for thread in begun if thread.is_alive()]:
                _drain(self._results)
                time.sleep(0.01)
        self._save(fresh)

    def _next(self, threads: Sequence[Worker]) -> tuple[int, list[float]] | BaseException | None:
        """What a thread says next. One that ran out of memory may be unable to say even that."""
        while True:
            alive = any(thread.is_alive() for thread in threads)
            try:
                return self._results.get(timeout=1.0)
            except queue.Empty:
                if not alive:
                    raise MemoryError("a thread of the merge is gone") from None

    def _save(self, fresh: dict[int, list[float]]) -> None:
        for files in self._files:
            files.sync()
        self._journal.add(fresh, *self._hashed)
        fresh.clear()

    def _hash_before(self, hashes: list[_Hashes], whole: int) -> None:
        """Hashes every shard's bytes that lie before block number `whole`, in the first output's order."""
        if whole >= len(self._plan.blocks):
            return
        block = self._plan.blocks[whole]
        tensor = self._plan.tensors[block.tensor]
        for item, shards, output in zip(hashes, self._plan.shards, self._plan.outputs, strict=True):
            shard, offset = shards.places[tensor.name]
            item.up_to(shard, offset + block.start * ITEM_BYTES[self._plan.out_dtype(tensor, output)])
        self._hashed = whole, [item.now() for item in hashes]

    def _megabytes(self, block: Block) -> float:
        inputs = len(self._plan.sources) + (self._plan.base is not None)
        return inputs * block.count * ITEM_BYTES[self._plan.tensors[block.tensor].dtype] / 1e6

    def _work(self) -> None:
        try:
            # Overflow and NaN are found in the sums and reported with their tensor; numpy's warnings add nothing.
            with FilePool() as files, np.errstate(all="ignore"):
                accumulator = Accumulator(self._plan, self._elements)
                while not self._stop.is_set():
                    with self._lock:
                        number = next(self._todo, None)
                    if number is None:
                        break
                    self._block(files, accumulator, self._plan.blocks[number])
                    self._results.put((number, accumulator.sums))
                    accumulator.reset()
        except BaseException as error:  # handed to the caller's thread, which raises it
            self._results.put(error)
        self._results.put(None)

    def _block(self, files: FilePool, accumulator: Accumulator, block: Block) -> None:
        tensor = self._plan.tensors[block.tensor]
        for source in (*self._plan.sources, *([self._plan.base] if self._plan.base else [])):
            source.expect(files, tensor.name, block.start, block.count)
        with self._solving if tensor.solved else nullcontext():
            merged = solve(self._plan, tensor, files) if tensor.solved else None
            self._write(files, accumulator, tensor, block, merged)

    def _write(
        self, files: FilePool, accumulator: Accumulator, tensor: TensorPlan, block: Block, merged: Merged | None
    ) -> None:
        step = whole_rows(tensor.row, self._elements)
        for start in range(block.start, block.start + block.count, step):
            count = min(step, block.start + block.count - start)
            for number, data in accumulator.chunk(files, tensor, start, count, merged):
                size = ITEM_BYTES[self._plan.out_dtype(tensor, self._plan.outputs[number])]
                self._files[number].write(tensor.name, start * size, data.data)


class _Hashes:
    """XXH3 of the shards of one output, fed in the order of their bytes while they are in the page cache.

    SHA-256 took as much of two cores as the sums did.
    """

    def __init__(self, files: ShardFiles, shards: int) -> None:
        self._files = files
        self._digests = [xxhash.xxh3_128() for _ in range(shards)]
        self._at = [0] * shards
        self._current = 0
        self._buffer = memoryview(bytearray(_HASH_BYTES))

    def up_to(self, shard: int, end: int) -> None:
        """Bytes before `end` of `shard`, and all earlier shards, are final."""
        while self._current < shard:
            self._feed(self._current, None)
            self._current += 1
        self._feed(shard, end)

    def now(self) -> Hashed:
        """What has been fed so far."""
        return [[at, digest.hexdigest()] for at, digest in zip(self._at, self._digests, strict=True)]

    def reach(self, then: Hashed) -> bool:
        """Feeds what was fed before a kill; False if it is not the same any more."""
        for shard, (end, _) in enumerate(then):
            self._feed(shard, end)
        return self.now() == then

    def finish(self) -> list[str]:
        """Everything is final."""
        for shard in range(len(self._digests)):
            self._feed(shard, None)
        return [XXH3 + digest.hexdigest() for digest in self._digests]

    def _feed(self, shard: int, end: int | None) -> None:
        while end is None or self._at[shard] < end:
            room = _HASH_BYTES if end is None else min(_HASH_BYTES, end - self._at[shard])
            got = self._files.read(shard, self._at[shard], self._buffer[:room])
            if not got:
                return
            self._digests[shard].update(self._buffer[:got])
            self._at[shard] += got


def _drain(results: queue.Queue[tuple[int, list[float]] | BaseException | None]) -> None:
    try:
        while True:
            results.get_nowait()
    except queue.Empty:
        pass


class Worker:
    """Calls `work`, which must not raise, in a thread that ends with the process."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._begun = self._ended = False
        self._since = 0.0

    def start(self) -> None:
        """Starts it.

        Raises:
            RuntimeError: the system gives no further thread.
        """
        self._since = time.monotonic()
        _thread.start_new_thread(self._run, ())

    def is_alive(self) -> bool:
        """Whether it works, or may still begin to."""
        return not self._ended and (self._begun or time.monotonic() - self._since < _BEGIN_SECONDS)

    def _run(self) -> None:
        self._begun = True
        try:
            self._work()
        finally:
            self._ended = True


class Accumulator:
    """Working memory of one thread, and what it has summed up.

    `sums` are Σ squares, float64: of θ_k − θ0 for each input, then of θ_out − θ0 and of the rounding error for each
    output. Those against θ0 stay 0 where there is none.
    """

    def __init__(self, plan: MergePlan, elements: int) -> None:
        self._plan = plan
        self._scratch = Scratch.make(elements)
        self._sum, self._row, self._base, self._spare = np.empty((4, elements))
        self._out: Bytes = np.empty(8 * elements, np.uint8)
        self.sums: list[float] = []
        self.reset()

    def reset(self) -> None:
        """Forgets the sums of squares."""
        self.sums = [0.0] * (len(self._plan.sources) + 2 * len(self._plan.outputs))

    def chunk(
        self, files: FilePool, tensor: TensorPlan, start: int, count: int, merged: Merged | None = None
    ) -> Iterator[tuple[int, Bytes]]:
        """Merges elements `start` to `start + count`: yields each output's number and bytes, valid until the next.

        Args:
            merged: gives the step from θ0 of a tensor that is no average.

        Raises:
            InputError: NaN or infinity in an input, or a value beyond the output type; names tensor and input.
        """
        plan = self._plan
        total, row, base, spare = (part[:count] for part in (self._sum, self._row, self._base, self._spare))
        theta0 = None
        if plan.base is not None:
            plan.base.read(files, tensor.name, start, base, None, self._scratch)
            theta0 = base
        for k, source in enumerate(plan.sources):
            value = row if k else total
            source.read(files, tensor.name, start, value, theta0, self._scratch)
            if theta0 is not None:
                np.subtract(value, theta0, out=spare)
                self.sums[k] += sum_of_squares(spare)
            if merged is not None:
                continue
            if tensor.factors[k] != 1:
                value *= tensor.factors[k]
            if k:
                total += row
        if merged is not None and theta0 is not None:
            np.add(theta0, merged(start, count), out=total)
        # A NaN or an infinity anywhere survives into the sums of squares, or into what rounding errors are taken of.
        if theta0 is not None and not np.isfinite(sum(self.sums[: len(plan.sources)])):
            self._blame(files, tensor, start, count)
        unchecked = plan.outer is not None or plan.outputs[0].scale is None
        if unchecked and not np.isfinite(total.sum()):
            self._refuse(files, tensor, start, count, "F64")
        divisor = 1.0 if merged is not None else tensor.divisor
        if plan.outer is not None:
            total /= divisor
            divisor = 1.0
            yield from self._outer_step(plan.outer, files, tensor, start, count)
        for number, output in enumerate(plan.outputs):
            if output.momentum:
                continue
            dtype = plan.out_dtype(tensor, output)
            exact = spare
            if output.scale is None or divisor == 1:
                np.copyto(exact, total)
            else:
                np.divide(total, divisor, out=exact)
            if theta0 is not None and output.scale not in (None, 1.0):
                exact -= theta0
                exact *= output.scale
                exact += theta0
            rounded = self._round(tensor, start, exact, row, theta0, number, dtype)
            if rounded is None:
                self._refuse(files, tensor, start, count, dtype)
            yield number, rounded

    def _outer_step(
        self, outer: OuterStep, files: FilePool, tensor: TensorPlan, start: int, count: int
    ) -> Iterator[tuple[int, Bytes]]:
        """Moves the merged chunk to where the outer step ends, and yields the momentum if it is kept."""
        total, row, momentum = (part[:count] for part in (self._sum, self._row, self._spare))
        if tensor.dtype in WHOLE:
            momentum[:] = 0
        else:
            outer.apply(files, tensor.name, start, (total, row, momentum), self._scratch)
        for number, output in enumerate(self._plan.outputs):
            if output.momentum:
                out = self._out[: count * ITEM_BYTES["F32"]]
                encode(momentum, "F32", out, self._scratch)
                if not np.isfinite(out.view("<f4").sum(dtype="f8")):
                    self._blame(files, tensor, start, count)
                    raise InputError(
                        "the outer momentum is too large for float32; lower `train.outer.momentum`", field=tensor.name
                    )
                yield number, out

    def _round(
        self,
        tensor: TensorPlan,
        start: int,
        exact: np.ndarray,
        written: np.ndarray,
        theta0: np.ndarray | None,
        number: int,
        dtype: str,
    ) -> Bytes | None:
        """The bytes of `exact`; None where one of its values does not fit, or is none."""
        out = self._out[: exact.size * ITEM_BYTES[dtype]]
        if self._plan.rounding == "stochastic":
            np.copyto(written, exact)
            dither(written, dtype, self._plan.seed, tensor.twin or tensor.name, start)
            encode(written, dtype, out, self._scratch)
        else:
            encode(exact, dtype, out, self._scratch)
        if self._plan.outputs[number].scale is None:
            return out
        at = len(self._plan.sources) + 2 * number
        decode(out, dtype, written, self._scratch)
        np.subtract(written, exact, out=exact)
        error = sum_of_squares(exact)
        if not np.isfinite(error):
            return None
        self.sums[at + 1] += error
        if theta0 is not None:
            written -= theta0
            self.sums[at] += sum_of_squares(written)
        return out

    def _refuse(self, files: FilePool, tensor: TensorPlan, start: int, count: int, dtype: str) -> NoReturn:
        self._blame(files, tensor, start, count)
        if not np.isfinite(self._sum[:count].sum()):
            less = "smaller weights" if self._plan.outer is None else "a smaller `train.outer.rate`"
            raise InputError(f"the weighted sum overflows float64; use {less}", field=tensor.name)
        raise InputError(f"a merged value is too large for {dtype}; choose a wider type", field=tensor.name)

    def _blame(self, files: FilePool, tensor: TensorPlan, start: int, count: int) -> None:
        """Raises where an input is to blame for what is not finite."""
        row, base = self._row[:count], self._base[:count]
        theta0 = None if self._plan.base is None else base
        suspects = [*self._plan.sources] if self._plan.base is None else [self._plan.base, *self._plan.sources]
        for source in suspects:
            source.read(files, tensor.name, start, row, theta0, self._scratch)
            bad = np.flatnonzero(~np.isfinite(row))
            if bad.size:
                where = start + int(bad[0])
                raise InputError(
                    f"{row[bad[0]]} at element {where} of {tensor.elements}: a diverged or damaged input",
                    file=source.path,
                    field=tensor.name,
                )
