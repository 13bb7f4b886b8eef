"""Packed rows: every supervised token once, shared prefixes run once, and nothing changed by it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import CONFIGS, examples, tiny

from merit.compute.attention import packed, packed_model, plan
from merit.compute.packing import MIN_SHARED, Segment, pack
from merit.data.example import IGNORED, Encoded
from merit.gradients.engine import GradientEngine, Shortcuts
from merit.gradients.sketch import SketchSpec

FOLD = SketchSpec(kind="fold", fold=7, least=1)
PLAIN = Shortcuts(packing=False, intercept=False)


def prompted(prefix, suffixes, quiet=None):
    """Examples with a common prefix; tokens after it are supervised."""
    return [
        Encoded(prefix + s, [IGNORED] * (quiet or len(prefix) + 1) + (prefix + s)[quiet or len(prefix) + 1 :])
        for s in suffixes
    ]


def test_tokens_after_the_last_supervised_one_are_not_run():
    example = Encoded([1, 2, 3, 4, 5, 6], [IGNORED, IGNORED, 3, 4, IGNORED, IGNORED])
    [row] = pack([example], 100)
    assert row.input_ids.tolist() == [[1, 2, 3]]
    assert row.keep.tolist() == [1, 2]
    assert row.targets.tolist() == [3, 4]
    assert row.tokens == 6


def test_a_shared_prefix_by_hand():
    prefix = [9, 8, 7, 6, 5]
    data = prompted(prefix, [[1, 2, 3], [2, 2, 2, 2]])
    [row] = pack(data, 100)
    assert row.input_ids.tolist() == [[9, 8, 7, 6, 5, 1, 2, 2, 2, 2]]
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 6, 5, 6, 7]]
    assert row.segments == (Segment(0, 5), Segment(5, 7, 0, 5), Segment(7, 10, 0, 5))
    assert row.keep.tolist() == [5, 6, 7, 8, 9]
    assert row.targets.tolist() == [2, 3, 2, 2, 2]


def test_a_prefix_that_predicts_something_supervised_is_not_shared():
    # The first supervised token follows the prefix at once, and differs: the prefix's last token has two targets.
    data = prompted([9, 8, 7, 6, 5], [[1, 2, 3], [2, 2, 2]], quiet=5)
    [row] = pack(data, 100)
    assert row.segments[0] == Segment(0, 4)
    short = prompted([9, 8, 7, 6, 5], [[1, 2, 3], [2, 2, 2]], quiet=MIN_SHARED)
    [row] = pack(short, 100)
    assert all(segment.shared == 0 for segment in row.segments)


def pictured(ids, images, quiet):
    return Encoded(ids, [IGNORED] * quiet + ids[quiet:], images=images)


def test_an_images_tokens_are_not_shared():
    # 7 stands for an image: the same tokens before the answer, but two different images.
    text, picture = [9, 8, 6, 5, 4], [7, 7, 7]
    data = [pictured(text + picture + [1, tail], [f"{tail}".encode()], 9) for tail in (3, 2)]
    [row] = pack(data, 100, image_tokens={7})
    assert row.segments == (Segment(0, 5), Segment(5, 9, 0, 5), Segment(9, 13, 0, 5))
    assert row.images == ([b"3"], [b"2"])
    assert row.targets.tolist() == [3, 2]


def test_an_image_behind_the_last_supervised_token_stays():
    example = Encoded([1, 2, 3, 7, 7], [IGNORED, IGNORED, 3, IGNORED, IGNORED], images=[b"x"])
    [row] = pack([example], 100, image_tokens={7})
    assert row.input_ids.tolist() == [[1, 2, 3, 7, 7]]
    assert (row.keep.tolist(), row.targets.tolist()) == ([1], [3])


def test_sharing_can_be_turned_off():
    data = prompted([9] * 20, [[1, 2, 3], [2, 2, 2, 2]])
    [row] = pack(data, 100, share=False)
    assert row.input_ids.shape[1] == 22 + 23


TOKENS = st.lists(st.integers(1, 2), min_size=2, max_size=14)


@given(st.lists(st.tuples(TOKENS, st.integers(1, 13)), min_size=1, max_size=12), st.integers(1, 40))
def test_every_example_is_there_with_its_context_and_targets(raw, batch_tokens):
    data = [Encoded(ids, [IGNORED] * min(q, len(ids) - 1) + ids[min(q, len(ids) - 1) :]) for ids, q in raw]
    wanted, found = [], []
    for example in data:
        for j in range(1, len(example.labels)):
            if example.labels[j] != IGNORED:
                wanted.append((tuple(example.input_ids[:j]), example.labels[j]))
    for row in pack(data, batch_tokens):
        ids, positions = row.input_ids[0].tolist(), row.position_ids[0].tolist()
        targets = dict(zip(row.keep.tolist(), row.targets.tolist(), strict=True))
        assert sorted(t for s in row.segments for t in range(s.start, s.stop)) == list(range(len(ids)))
        own = [s for s in row.segments if s.prefix_stop or not any(o.prefix_stop == s.stop for o in row.segments)]
        assert len(ids) <= batch_tokens or len(own) == 1
        for s in row.segments:
            context = ids[s.prefix : s.prefix_stop] + ids[s.start : s.stop]
            assert positions[s.start : s.stop] == list(range(s.shared, len(context)))
            for j in range(s.start, s.stop):
                if j in targets:
                    found.append((tuple(context[: s.shared + j - s.start + 1]), targets[j]))
    assert sorted(wanted) == sorted(found)


def test_plan_has_every_token_once_and_little_padding():
    segments = [Segment(0, 4), Segment(4, 10, 0, 4), Segment(10, 15, 0, 4), Segment(15, 17, 0, 4), Segment(17, 30)]
    found = plan(segments, torch.device("cpu"))
    assert torch.equal(found.spread[found.where], torch.arange(30))
    assert [(r.count, r.length) for r in found.rectangles] == [(1, 13), (1, 4), (2, 6), (1, 2)]


PACKING = [name for name in CONFIGS if name not in ("Gemma2", "GptOss")]


@pytest.mark.parametrize("architecture", PACKING)
def test_packed_logits_are_those_of_the_examples_alone(architecture):
    model = tiny(architecture).eval()
    data = prompted([3] * 9, [[1, 2, 3], list(range(20, 33)), [2, 2, 2, 2]]) + examples(4)
    [row] = pack(data, 1000)
    with packed_model(model), packed(row.segments, torch.device("cpu")), torch.no_grad():
        got = model(input_ids=row.input_ids, position_ids=row.position_ids, use_cache=False).logits[0]
    for s in row.segments:
        ids = torch.cat([row.input_ids[:, s.prefix : s.prefix_stop], row.input_ids[:, s.start : s.stop]], dim=1)
        want = model(input_ids=ids).logits[0, s.shared :]
        torch.testing.assert_close(got[s.start : s.stop], want, rtol=1e-5, atol=1e-5)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("architecture", PACKING)
def test_gradients_do_not_change(architecture):
    model = tiny(architecture)
    data = prompted([3] * 9, [[1, 2, 3], list(range(20, 33)), [2, 2, 2, 2], [4, 4, 1, 1, 2]]) + examples(4)
    want = GradientEngine(model, FOLD, batch_tokens=64, shortcuts=PLAIN).measure("a", data)
    engine = GradientEngine(model, FOLD, batch_tokens=64)
    got = engine.measure("a", data)
    assert engine._packing
    assert np.linalg.norm(got.sums - want.sums) <= 1e-5 * np.linalg.norm(want.sums)
    assert got.losses == pytest.approx(want.losses, rel=1e-5)


def test_sliding_windows():
    model = tiny("Mistral", sliding_window=5)
    data = prompted([3] * 9, [[1, 2, 3], list(range(20, 33))]) + examples(4)
    want = GradientEngine(model, FOLD, batch_tokens=64, shortcuts=PLAIN).measure("a", data)
    engine = GradientEngine(model, FOLD, batch_tokens=64)
    assert engine._packing
    got = engine.measure("a", data)
    assert np.linalg.norm(got.sums - want.sums) <= 1e-5 * np.linalg.norm(want.sums)
    wide = tiny("Mistral", sliding_window=60)
    other = GradientEngine(wide, FOLD, batch_tokens=64).measure("a", data)
    assert np.linalg.norm(got.sums - other.sums) > 1e-3 * np.linalg.norm(want.sums)


def test_models_that_cannot_pack_are_padded():
    capped = tiny("Gemma2", attn_implementation="eager")  # soft-capped
    assert not GradientEngine(capped, FOLD, batch_tokens=64)._packing
    model = tiny("Llama", attn_implementation="eager")
    assert not GradientEngine(model, FOLD, batch_tokens=64)._packing
