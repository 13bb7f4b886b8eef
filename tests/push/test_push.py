"""`merit push`: what goes, what stays, and what stops it, with a Hub that lives in this process."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RepositoryNotFoundError
from safetensors.torch import save_file

from merit.base.errors import InputError, StageError
from merit.cli.main import run as merit
from merit.push.contents import Item, check_contents, gather, refuse_secrets
from merit.push.hub import push_items

TOKEN = "hf_" + "abcDEF0123" * 4


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """A run directory with a real merge of two tiny checkpoints, a card and a report."""
    for k in range(2):
        folder = tmp_path / "models" / str(k)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
        (folder / "tokenizer_config.json").write_text("{}")
        save_file({"w": torch.full((4, 8), float(k))}, folder / "model.safetensors")
    root = tmp_path / "run"
    root.mkdir()
    inputs = [str(tmp_path / "models" / str(k)) for k in range(2)]
    assert merit(["merge", *inputs, "-o", str(root / "merged")]) == 0
    config = {"model": {"path": inputs[0]}, "mixture": {"gcd": {"path": "reasoning_gym:gcd"}}}
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    front = "---\nlibrary_name: transformers\nlicense: mit\nbase_model: org/base\ntags: [merit]\n---\n"
    (root / "README.md").write_text(f"{front}\n# run\n")
    (root / "report.html").write_text("<p>story</p>")
    return root


class Hub:
    """Stands for `HfApi`: what it was asked, and what it answers."""

    def __init__(self, *, public: bool | None = None, error: Exception | None = None) -> None:
        self.public, self.error = public, error
        self.created: list[tuple[str, bool]] = []
        self.commits: list[dict[str, Any]] = []

    def whoami(self) -> dict[str, str]:
        if self.error is not None:
            raise self.error
        return {"name": "me"}

    def model_info(self, repo: str) -> SimpleNamespace:
        if self.public is None:
            raise RepositoryNotFoundError("404", response=answer(404))
        return SimpleNamespace(private=not self.public)

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> None:
        self.created.append((repo, private))

    def create_commit(self, repo: str, operations: list[Any], **options: Any) -> SimpleNamespace:
        files = {item.path_in_repo: item.path_or_fileobj for item in operations}
        self.commits.append({"repo": repo, "files": files, **options})
        return SimpleNamespace(commit_url=f"https://hub/{repo}/commit/1", pr_url=None)


def answer(status: int) -> Any:
    """An HTTP response of whichever library the Hub's client uses."""
    import huggingface_hub.errors as hub

    library = __import__(hub.HTTPError.__module__.split(".")[0])
    return library.Response(status, request=library.Request("GET", "https://hub/api"))


def send(root: Path, hub: Hub, **options: Any) -> str:
    contents, _ = check_contents(gather(root))
    return push_items(contents.items, "org/name", message="m", api=hub, **options)


def test_one_commit_with_the_model_at_its_root(done: Path):
    hub = Hub()
    assert send(done, hub) == "https://hub/org/name/commit/1"
    assert hub.created == [("org/name", True)]
    (commit,) = hub.commits
    files = commit["files"]
    assert set(files) == {
        *("model.safetensors", "config.json", "tokenizer_config.json", "merit_merge.json"),
        *("README.md", "MERGE.md", "report.html", "config.yaml"),
    }
    assert Path(files["README.md"]) == done / "README.md"
    assert Path(files["MERGE.md"]) == done / "merged" / "README.md"
    assert Path(files["model.safetensors"]) == done / "merged" / "model.safetensors"


def test_nothing_of_this_machine_goes(done: Path, tmp_path: Path):
    items = {item.name: item for item in gather(done).items}
    for name in ("config.yaml", "merit_merge.json", "MERGE.md"):
        assert str(tmp_path) not in items[name].read().decode()
    config = yaml.safe_load(items["config.yaml"].read())
    assert config == {"model": {"path": "0"}, "mixture": {"gcd": {"path": "reasoning_gym:gcd"}}}
    record = json.loads(items["merit_merge.json"].read())
    assert [item["path"] for item in record["result"]["inputs"]] == ["0", "1"]


def test_the_dry_run(done: Path, capsys: pytest.CaptureFixture[str]):
    (done / "merged" / "optimizer.pt").write_bytes(b"x")
    assert merit(["push", str(done), "org/name", "--dry-run"]) == 0
    out = capsys.readouterr().out
    size = (done / "merged" / "model.safetensors").stat().st_size
    assert f"{size:,}" in next(line for line in out.splitlines() if "model.safetensors" in line)
    assert "not uploaded: not part of a model" in next(line for line in out.splitlines() if "optimizer.pt" in line)
    assert out.splitlines()[-1] == "nothing was sent; without --dry-run this goes to org/name, private"
    assert merit(["push", str(done), "org/name", "--dry-run", "--json", "--public"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["private"], found["url"], found["notes"]) == (False, None, [])
    assert {"file": "model.safetensors", "bytes": size} in found["files"]
    assert found["left_out"] == [{"name": "optimizer.pt", "reason": "not part of a model"}]


def test_a_merged_folder_by_itself_and_its_license(done: Path):
    contents, notes = check_contents(gather(done / "merged"), license="apache-2.0")
    assert {item.name for item in contents.items} >= {"README.md", "model.safetensors"}
    assert "config.yaml" not in {item.name for item in contents.items}
    assert [note.split(",")[0] for note in notes] == ["the card names no base model on the Hub: θ0 was a local one"]
    card = next(item for item in contents.items if item.name == "README.md").read().decode()
    assert yaml.safe_load(card.split("---")[1])["license"] == "apache-2.0"
    assert "# merged" in card


@pytest.mark.parametrize("place", ["merged/extra.json", "merged", "report.html"])
def test_symlinks_are_refused(done: Path, tmp_path: Path, place: str):
    path = done / place
    if path.exists():
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.symlink_to("/etc/hostname")
    with pytest.raises(InputError, match="a symlink") as caught:
        gather(done)
    assert caught.value.file == str(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("notes.txt", f"a\nkey {TOKEN}\n"),
        ("notes.txt", "a\nAKIA" + "Z" * 16),
        ("notes.txt", "a\n-----BEGIN OPENSSH PRIVATE KEY-----\n"),
        ("token", "x"),
        ("hf_token.txt", "x"),
        ("credentials.json", "{}"),
        ("server.key.json", "{}"),
    ],
)
def test_secrets_are_refused_and_not_shown(done: Path, name: str, text: str):
    (done / "merged" / name).write_text(text)
    if name in ("server.key.json", "token"):  # no secret's name; and one that is not part of a model
        check_contents(gather(done))
        return
    with pytest.raises(InputError, match="looks like") as caught:
        check_contents(gather(done))
    assert caught.value.file == str(done / "merged" / name)
    assert caught.value.line == (2 if name == "notes.txt" else None)
    assert TOKEN not in str(caught.value)


def test_ordinary_names_are_no_secrets():
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
    refuse_secrets([Item(name, b"{}") for name in names])


def test_a_damaged_model_is_not_pushed(done: Path):
    file = done / "merged" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match="their checksum differs"):
        check_contents(gather(done))


@pytest.mark.parametrize(
    ("front", "line"),
    [
        ("no metadata", "no metadata: a card begins with YAML between two `---` lines"),
        ("---\na: [\n---\n", "the metadata are not YAML: "),
        ("---\n- a\n---\n", "the metadata are not a mapping"),
        ("---\nbase_model: /home/me/model\n---\n", "`base_model`: '/home/me/model' is no Hub id"),
        ("---\ntags: [1]\n---\n", "`tags`: expected text, got 1"),
        ("---\nbase_model_relation: child\n---\n", "`base_model_relation`: 'child' is none of adapter, "),
        ("---\nmodel-index: [{name: x}]\n---\n", "`model-index`: the Hub would refuse this: "),
    ],
)
def test_a_card_that_the_hub_would_not_take(done: Path, front: str, line: str):
    (done / "README.md").write_text(front)
    with pytest.raises(InputError) as caught:
        check_contents(gather(done))
    place, _, rest = str(caught.value).partition(": ")
    assert place.split(":")[0] == str(done / "README.md")
    assert rest.startswith(line)


def test_a_public_repository_needs_a_word(done: Path):
    with pytest.raises(InputError, match="add --public"):
        send(done, hub := Hub(public=True))
    assert hub.commits == []
    send(done, hub := Hub(public=True), private=False, pull_request=True, revision="v1")
    assert hub.created == []
    assert (hub.commits[0]["create_pr"], hub.commits[0]["revision"]) == (True, "v1")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (LocalTokenNotFoundError("no"), InputError, "not logged in"),
        (HfHubHTTPError("no", response=answer(401)), InputError, "does not know this token"),
        (HfHubHTTPError("full\nlong story", response=answer(507)), StageError, "refused: full; push again"),
        (ConnectionError("away"), StageError, "cannot be reached: away; push again"),
    ],
)
def test_what_the_hub_says_is_one_line(done: Path, error: Exception, kind: type[Exception], words: str):
    with pytest.raises(kind, match=words):
        send(done, Hub(error=error))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere", "org/name"], "nowhere: no such folder"),
        (["RUN", "a/b/c"], "`REPO`: 'a/b/c' is no Hub id: ORGANISATION/NAME"),
        (["RUN", "../up"], "`REPO`: '../up' is no Hub id: ORGANISATION/NAME"),
        (["RUN", "org/name"], "nothing can be pushed while HF_HUB_OFFLINE is set; --dry-run shows what would go"),
    ],
)
def test_bad_input_is_one_line(done: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str):
    capsys.readouterr()
    assert merit(["push", *(str(done) if word == "RUN" else word for word in arguments)]) == 2
    assert capsys.readouterr().err == f"{line}\n"


def test_a_run_without_a_merge(done: Path, tmp_path: Path):
    (done / "merged").rename(tmp_path / "away")
    with pytest.raises(InputError, match="nothing is merged here yet"):
        gather(done)
