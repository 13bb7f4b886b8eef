"""Runs the blocks of a merge on threads: each reads, sums and writes its own blocks, while the caller's thread hashes
what is written and journals what is durable.

A block goes through one thread, because its rows then stay in that core's cache from `pread` to `pwrite`; several
threads keep disk and cores busy at once. No file is mapped: peak memory is the buffers, whatever K and the model.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from merit.base.errors import InputError
from merit.base.files import disk_errors
from merit.base.machine import usable_cores
from merit.base.progress import Bar
from merit.merge.accumulate import BYTES_AN_ELEMENT, Accumulator
from merit.merge.journal import Hashed, Journal
from merit.merge.plan import Block, MergePlan, whole_rows
from merit.merge.worker import Worker
from merit.models.checkpoint import ITEM_BYTES, FilePool
from merit.models.writer import ShardFiles

CHUNK = 1 << 16  # elements summed at once: their float64 buffers stay in a core's second-level cache
JOURNAL_SECONDS = 1.0  # what a kill loses at most
_MAX_THREADS = 8
_BACKLOG = 64  # finished blocks that may wait to be hashed
_HASH_BYTES = 1 << 20
_log = logging.getLogger(__name__)


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

    @property
    def megabytes(self) -> float:
        """What the whole merge reads."""
        return sum(map(self._megabytes, self._plan.blocks))

    def run(self, bar: Bar) -> list[dict[str, str]]:
        """Merges; returns each output's shard → SHA-256.

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
                    _log.warning("what the interrupted merge had written is damaged; it begins anew")
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
        step = whole_rows(tensor.row, self._elements)
        for start in range(block.start, block.start + block.count, step):
            count = min(step, block.start + block.count - start)
            for number, data in accumulator.chunk(files, tensor, start, count):
                size = ITEM_BYTES[self._plan.out_dtype(tensor, self._plan.outputs[number])]
                self._files[number].write(tensor.name, start * size, data.data)


class _Hashes:
    """SHA-256 of the shards of one output, fed in the order of their bytes while they are in the page cache."""

    def __init__(self, files: ShardFiles, shards: int) -> None:
        self._files = files
        self._digests = [hashlib.sha256() for _ in range(shards)]
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
        return [digest.hexdigest() for digest in self._digests]

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
