"""The store: what goes in comes out; what is damaged is named; importing it needs no torch."""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merit.base.errors import InputError, MeritError
from merit.data.example import IGNORED, Encoded
from merit.data.store import EncodedDataset, StoredExample, calibration_rows, write_store


def stored(number: int, *, held_out: bool = False, length: int = 5) -> StoredExample:
    """A row whose content hash is a scrambled `number`."""
    encoded = Encoded(list(range(length)), [IGNORED] * (length - 2) + [length - 2, length - 1], truncated=number == 3)
    return StoredExample(
        f"{number * 2654435761 % 2**32:08x}" + f"{number:024x}",
        encoded,
        held_out=held_out,
        prompt_ids=list(range(length - 2)),
        prompt_text=f"prompt {number}",
        reference=None if number % 2 else str(number),
        verifier="{}" if number % 3 == 0 else None,
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "d.arrow"


def test_rows_come_back_as_they_went_in(path):
    rows = [stored(n, held_out=n % 5 == 0, length=3 + n % 7) for n in range(600)]  # more than two batches
    write_store(path, iter(rows), depends="abc")
    data = EncodedDataset.open(path)
    assert len(data) == 600
    assert data.depends == "abc"
    assert data.summary is None
    assert list(data) == rows
    assert data[np.int64(599)] == rows[599]
    assert data.lengths.tolist() == [len(row.encoded.input_ids) for row in rows]
    assert data.supervised.tolist() == [row.encoded.supervised for row in rows] == [2] * 600
    assert data.truncated.tolist() == [row.encoded.truncated for row in rows]
    assert sorted([*data.train, *data.held_out]) == list(range(600))
    assert [rows[row].id for row in data.train] == sorted(row.id for row in rows if not row.held_out)
    assert [rows[row].id for row in data.held_out] == sorted(row.id for row in rows if row.held_out)
    assert data.table.column("labels").to_pylist() == [row.encoded.labels for row in rows]
    assert list(pickle.loads(pickle.dumps(data))) == rows
    for row in (-1, 600):
        with pytest.raises(IndexError):
            data[row]


def test_the_order_of_the_file_does_not_matter(path):
    rows = [stored(n, held_out=n % 4 == 0) for n in range(50)]
    write_store(path, rows)
    first = EncodedDataset.open(path)
    write_store(path.with_name("e.arrow"), rows[::-1])
    second = EncodedDataset.open(path.with_name("e.arrow"))
    for one, two in (
        (first.train, second.train),
        (first.held_out, second.held_out),
        (first.weighted_train(1.5, 7), second.weighted_train(1.5, 7)),
        (calibration_rows(first, 9), calibration_rows(second, 9)),
    ):
        assert [first[row].id for row in one] == [second[row].id for row in two]


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 40), weight=st.floats(0.01, 5), seed=st.integers(0, 5))
def test_a_weight_is_a_share_of_the_rows(tmp_path_factory, n, weight, seed):
    path = tmp_path_factory.mktemp("w") / "d.arrow"
    write_store(path, [stored(k) for k in range(n)])
    data = EncodedDataset.open(path)
    rows = data.weighted_train(weight, seed)
    assert len(rows) == max(1, int(weight) * n + round((weight - int(weight)) * n))
    counts = np.bincount(rows, minlength=n)[data.train]
    assert counts.max() - counts.min() <= 1
    assert (np.diff(counts) <= 0).all()  # the extra ones are the first in order of content hash
    assert sorted(rows) == sorted(data.weighted_train(weight, seed + 1))


def test_weights_by_hand(path):
    write_store(path, [stored(k) for k in range(10)])
    data = EncodedDataset.open(path)
    assert set(data.weighted_train(0.5, 0)) == set(data.train[:5])
    assert sorted(data.weighted_train(2, 0)) == sorted([*range(10)] * 2)
    assert data.weighted_train(1, 0).tolist() != data.weighted_train(1, 1).tolist()
    assert data.weighted_train(1, 0).tolist() == data.weighted_train(1, 0).tolist()


def test_calibration_rows(path):
    rows = [stored(n, held_out=n % 4 == 0) for n in range(400)]
    write_store(path, rows)
    data = EncodedDataset.open(path)
    assert sorted(calibration_rows(data, 1000)) == sorted(data.train)
    ten, fifty = calibration_rows(data, 10), calibration_rows(data, 50)
    assert fifty[:10].tolist() == ten.tolist()
    assert len(set(fifty)) == 50
    assert set(fifty) <= set(data.train)
    # Not the rows that come first in order of content hash, which a weight below 1 keeps.
    assert 8 <= len(set(fifty) & set(data.train[:150])) <= 42


def test_an_empty_store_opens(path):
    write_store(path, [])
    data = EncodedDataset.open(path)
    assert len(data) == len(data.train) == len(data.lengths) == len(data.weighted_train(1, 0)) == 0


def test_a_cut_file_is_refused_wherever_it_is_cut(path):
    write_store(path, [stored(n) for n in range(40)])
    whole = path.read_bytes()
    for size in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(InputError) as caught:
            EncodedDataset.open(path)
        assert str(caught.value).startswith(f"{path}: damaged or incomplete")
        assert "\n" not in str(caught.value)


def test_a_scribbled_file_never_escapes_as_another_error(path):
    write_store(path, [stored(n) for n in range(40)])
    whole = bytearray(path.read_bytes())
    random = np.random.default_rng(0)
    for _ in range(150):
        bad = whole.copy()
        for at in random.integers(0, len(whole), 8):
            bad[at] = random.integers(256)
        path.write_bytes(bad)
        # Either it opens (Arrow has no checksums), or it is our error.
        with contextlib.suppress(MeritError):
            data = EncodedDataset.open(path)
            _ = data.lengths, data.train, data.supervised
            for row in range(len(data)):
                with contextlib.suppress(UnicodeDecodeError):
                    _ = data[row]


def test_what_is_not_there_or_not_ours(path, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        EncodedDataset.open(path)
    import pyarrow as pa

    other = tmp_path / "other.arrow"
    with pa.OSFile(str(other), "wb") as sink, pa.ipc.new_file(sink, pa.schema([("a", pa.int8())])):
        pass
    with pytest.raises(InputError, match=r"other\.arrow"):
        EncodedDataset.open(other)


def test_nothing_is_left_of_a_failed_write(path):
    def broken():
        yield stored(1)
        raise InputError("bad row")

    with pytest.raises(InputError, match="bad row"):
        write_store(path, broken())
    assert list(path.parent.iterdir()) == []


def test_importing_it_needs_neither_torch_nor_transformers():
    code = (
        "import sys, merit.data.store, merit.data.store, merit.data.build, merit.data.check, merit.data.init; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'datasets', 'reasoning_gym')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_flipped_bit_anywhere_is_noticed(path):
    write_store(path, [stored(n) for n in range(40)])
    whole = path.read_bytes()
    assert EncodedDataset.open(path).intact()
    for byte in range(8, len(whole), 97):
        path.write_bytes(whole[:byte] + bytes([whole[byte] ^ 16]) + whole[byte + 1 :])
        with contextlib.suppress(InputError):
            data = EncodedDataset.open(path)
            assert not data.intact() or list(data) == [stored(n) for n in range(40)]
