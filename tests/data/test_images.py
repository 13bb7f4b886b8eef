"""Images of examples: how rows name them, what can be wrong with them, and what the encoder makes of them."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from merit.base.errors import InputError
from merit.config.run import RunConfig
from merit.config.sections import DatasetConfig
from merit.data.build import build_mixture
from merit.data.check import check_mixture
from merit.data.encode import IMAGE_TOKENS, Encoder
from merit.data.example import IGNORED, Example, Message
from merit.data.image import ImageRef, decode, inspect, to_rgb
from merit.data.reading import DatasetReader
from merit.data.store import EncodedDataset
from merit.models.loading import load_tokenizer
from merit.models.source import ModelFolder
from merit.run.layout import RunDir
from pictures import noise, png, saved
from vision_models import write_tiny_vlm

QA = {"question": "what is it?", "answer": "a cat"}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MERIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = write_tiny_vlm("llava", tmp_path_factory.mktemp("vlm") / "llava")
    return load_tokenizer(ModelFolder(folder, "x", False))


def examples(folder: Path, rows: list[dict], name: str = "d.jsonl", **config) -> list:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reader = DatasetReader.open("d", DatasetConfig(path=name, **config), folder)
    return list(reader.read())


def one(folder: Path, row: dict, **config) -> Example:
    (read,) = examples(folder, [row], **config)
    assert read.value is not None, read.error
    return read.value


def data_address(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def test_every_way_of_naming_an_image_is_the_same_example(tmp_path):
    content = png(20, 10)
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "a.png").write_bytes(content)
    turns = [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a cat"}]

    def parts(image: dict) -> dict:
        user = {"role": "user", "content": [image, {"type": "text", "text": "what is it?"}]}
        return {"messages": [user, {"role": "assistant", "content": "a cat"}]}

    rows = [
        {"image": "img/a.png", "conversations": turns},
        {"image": ["img/a.png"], "conversations": turns},
        {**QA, "image": "img/a.png"},
        {**QA, "image": data_address(content)},
        parts({"type": "image", "image": "img/a.png"}),
        parts({"type": "image", "path": "img/a.png"}),
        parts({"type": "image", "base64": base64.b64encode(content).decode()}),
        parts({"type": "image_url", "image_url": {"url": data_address(content)}}),
        {**parts({"type": "image"}), "images": ["img/a.png"]},
    ]
    found = [one(tmp_path, row) for row in rows]
    assert len({example.id for example in found}) == 1
    assert found[0].prompt[0].content == "what is it?"
    assert found[0].prompt[0].images[0][0] == 0
    inside = one(tmp_path, {**QA, "image": "a.png"}, image_folder="img")
    assert inside.id == found[0].id
    mapped = one(tmp_path, {**QA, "photo": "img/a.png"}, columns={"images": "photo"})
    assert mapped.id == found[0].id
    assert one(tmp_path, QA).id != found[0].id


def test_huggingface_image_columns_of_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{**QA, "image": {"bytes": png(8, 8, seed), "path": f"{seed}.png"}} for seed in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    reads = list(DatasetReader.open("d", DatasetConfig(path="d.parquet"), tmp_path).read())
    assert [read.value.images[0].read() for read in reads] == [row["image"]["bytes"] for row in rows]


def test_places_of_several_images(tmp_path):
    for seed in range(3):
        (tmp_path / f"{seed}.png").write_bytes(png(8, 8, seed))
    row = {"question": "a <image> b <image><image>", "answer": "c", "images": ["0.png", "1.png", "2.png"]}
    turn = one(tmp_path, row).prompt[0]
    assert turn.content == "a  b "
    assert [at for at, _ in turn.images] == [2, 5, 5]
    assert [image.read() for _, image in turn.images] == [png(8, 8, seed) for seed in range(3)]


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({**QA, "image": "gone.png"}, "d.jsonl:1: `image`: the image gone.png is missing: no such file"),
        ({**QA, "image": "empty.png"}, "d.jsonl:1: `image`: the image empty.png has no bytes"),
        ({**QA, "image": "http://x.org/a.png"},
         "d.jsonl:1: `image`: the image http://x.org/a.png is on the web; download it, or set `image_urls: true`"),
        ({**QA, "image": "ftp://x/a.png"},
         "d.jsonl:1: `image`: the image ftp://x/a.png has an address of a kind that is not read"),
        ({**QA, "image": "data:image/png;base64,@@"}, "d.jsonl:1: `image`: the image in the row is not base64"),
        ({**QA, "image": 7}, "d.jsonl:1: `image`: an image must be a path, {bytes, path} or a data address, not int"),
        ({**QA, "images": ["a.png", 7]}, "d.jsonl:1: `images[1]`: an image must be a path"),
        ({"question": "<image> <image>", "answer": "a", "image": "a.png"}, "d.jsonl:1: `image`: 1 images for 2 places"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "a"}]},
         "d.jsonl:1: `messages[0].content[0]`: 0 images for 1 places"),
        ({"messages": [{"role": "user", "content": "a"},
                       {"role": "assistant", "content": [{"type": "text", "text": "b"},
                                                         {"type": "image", "path": "a.png"}]}]},
         "d.jsonl:1: `messages[1].content[1].path`: an image in an assistant turn: only text can be learned"),
    ],
)  # fmt: skip
def test_bad_rows_have_their_line(tmp_path, row, line):
    (tmp_path / "a.png").write_bytes(png(8, 8))
    (tmp_path / "empty.png").write_bytes(b"")
    (read,) = examples(tmp_path, [row])
    assert read.value is None
    assert str(read.error).startswith(line)


def test_kinds_of_pixels():
    turned = noise(30, 10)
    turned.getexif()[0x0112] = 6
    assert inspect(saved(turned, "JPEG", exif=turned.getexif()), 10**6).notes == ("turned",)
    facts = inspect(saved(turned, "JPEG", exif=turned.getexif()), 10**6)
    assert (facts.width, facts.height) == (10, 30) == decode(saved(turned, "JPEG", exif=turned.getexif())).size
    cmyk = saved(noise(8, 8).convert("CMYK"), "JPEG")
    assert inspect(cmyk, 10**6).notes == ("CMYK",)
    assert decode(cmyk).mode == "RGB"
    deep = saved(Image.fromarray((np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)))
    assert "16-bit" in inspect(deep, 10**6).notes
    grey = np.asarray(decode(deep))[..., 0].reshape(-1)
    assert np.abs(grey - np.round(np.arange(64) * 1000 / 65535 * 255)).max() <= 1
    frames = [noise(8, 8, seed) for seed in range(3)]
    film = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert "animated" in inspect(film, 10**6).notes
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert np.asarray(to_rgb(clear)).min() == 255
    assert inspect(png(9, 7), 10**6).misnamed("a.jpg")
    assert not inspect(png(9, 7), 10**6).misnamed("a.PNG")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "is not an image, or of a kind that is not read"),
        (png(40, 40)[:-700], "is damaged"),
        (saved(noise(64, 64), "JPEG")[:-900], "is damaged: image file is truncated"),
        (png(40, 40), "has 40 × 40 pixels, more than `max_pixels` 1,000"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),
    ],
    ids=["text", "cut png", "cut jpeg", "bomb", "eps"],
)
def test_what_is_no_image(content, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        inspect(content, 1000 if "max_pixels" in message else 10**6)


def run_config(**dataset) -> RunConfig:
    mixture = {"d": {"path": "d.jsonl", **dataset}}
    values = {"model": "x", "mixture": mixture, "held_out_fraction": 0.3, "split": {"splitter": "single"}}
    return RunConfig.model_validate(values)


def write_mixed(folder: Path) -> None:
    """Thirty good rows, and five whose image is bad, at lines 3, 7, 11, 15 and 19."""
    bad = {3: b"", 7: b"hello", 11: png(30, 30)[:-500], 15: None, 19: png(200, 200)}
    with (folder / "d.jsonl").open("w") as handle:
        for line in range(1, 36):
            content = bad[line] if line in bad else png(20 + line % 3, 20, line)
            if content is not None:
                (folder / f"{line}.png").write_bytes(content)
            handle.write(json.dumps({"image": f"{line}.png", "question": f"no {line}?", "answer": "yes"}) + "\n")


def test_check_names_every_bad_image_and_a_run_leaves_them_out(tmp_path, tokenizer):
    write_mixed(tmp_path)
    (tmp_path / "1.png").write_bytes(saved(noise(20, 20), "JPEG"))
    config = run_config(max_pixels=10_000)
    for _ in range(2):  # the second time from what is remembered
        report = check_mixture(config, tmp_path, tokenizer)
        assert report.ok
        left_out = [line for line in report.datasets[0].warnings if line.startswith("left out")]
        assert sorted(int(line.split("d.jsonl:")[1].split(":")[0]) for line in left_out) == [3, 7, 11, 15, 19]
        assert any("another format than their name" in line for line in report.datasets[0].warnings)
        assert report.datasets[0].summary.bad_images == 5
        assert report.datasets[0].summary.images == 30
    mixture = build_mixture(config, tmp_path, RunDir(tmp_path / "run"), tokenizer)
    assert mixture.datasets[0].train.examples + mixture.datasets[0].held_out.examples == 30
    assert mixture.datasets[0].bad_images == 5
    assert mixture.datasets[0].rendered[0].images[0].startswith("data:image/jpeg;base64,")
    refusing = run_config(max_pixels=10_000, bad_images="refuse")
    assert len(check_mixture(refusing, tmp_path, tokenizer).datasets[0].problems) == 5
    with pytest.raises(InputError, match="has no bytes"):
        build_mixture(refusing, tmp_path, RunDir(tmp_path / "other"), tokenizer)


def test_the_run_keeps_the_bytes(tmp_path, tokenizer):
    write_mixed(tmp_path)
    run = RunDir(tmp_path / "run")
    build_mixture(run_config(), tmp_path, run, tokenizer)
    stored = EncodedDataset.open(run.data("d"))
    files = {(tmp_path / f"{line}.png").read_bytes() for line in range(1, 36) if line != 15}
    assert all(row.encoded.images[0] in files and row.encoded.prompt_images == 1 for row in stored)


def example(*sizes: tuple[int, int], answer: str = "red dog") -> Example:
    images = tuple((1, ImageRef("x", "image", data=png(*size, seed))) for seed, size in enumerate(sizes))
    return Example((Message("user", "what?", images),), (Message("assistant", answer),))


def test_only_assistant_turns_carry_loss(tokenizer):
    encoded = Encoder(tokenizer, 1000).encode(example((40, 30), (9, 90)))
    token = tokenizer.convert_tokens_to_ids("<image>")
    learned = [label for label in encoded.labels if label != IGNORED]
    assert tokenizer.decode(learned) == "red dog<|im_end|>"
    assert encoded.supervised == len(learned)
    assert encoded.input_ids.count(token) == 2 * 16
    assert encoded.prompt_images == len(encoded.images) == 2


def test_truncation_never_cuts_an_image(tokenizer):
    picture = ImageRef("x", "image", data=png(9, 9))
    late = Example(
        (Message("user", "a"),),
        (Message("assistant", "b"), Message("user", "c", ((0, picture),)), Message("assistant", "d")),
    )
    whole = Encoder(tokenizer, 1000).encode(late)
    token = tokenizer.convert_tokens_to_ids("<image>")
    first, last = whole.input_ids.index(token), len(whole.input_ids) - whole.input_ids[::-1].index(token)
    for limit in range(8, len(whole.input_ids) + 2):
        cut = Encoder(tokenizer, limit).encode(late)
        kept = cut.input_ids.count(token)
        assert (kept, len(cut.images)) == ((16, 1) if limit >= last else (0, 0))
        assert len(cut.input_ids) == min(len(whole.input_ids), limit if limit <= first or limit >= last else first)
        assert cut.prompt_images == 0


def test_text_that_would_be_taken_for_an_image_is_refused(tokenizer):
    with pytest.raises(InputError, match="the text holds '<image>'"):
        Encoder(tokenizer, 100).encode(Example((Message("user", "an <image>"),), (Message("assistant", "b"),)))


def test_a_text_model_takes_no_images(tiny_model):
    plain = load_tokenizer(ModelFolder(tiny_model, "x", False))
    assert not hasattr(plain, IMAGE_TOKENS)
    with pytest.raises(InputError, match="takes no images"):
        Encoder(plain, 100).encode(example((9, 9)))
