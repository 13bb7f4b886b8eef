"""What every stage of one run shares."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merit.base import extensions
from merit.base.errors import InputError
from merit.base.files import read_json
from merit.base.progress import SILENT, Progress
from merit.config import RunConfig, load_config
from merit.config.run import BaselineConfig, resolve_paths
from merit.config.sections import MergeConfig, ModelConfig, PrepareStage, SplitterName
from merit.data.mixture import Mixture
from merit.models.layout import FROZEN
from merit.models.source import ModelFolder, resolve_model
from merit.run.guard import refuse_foreign, refuse_links
from merit.run.layout import MAIN_METHOD, BranchDir, MethodDir, RunDir, relative

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Step:
    """A stage of the pipeline: a function from files to files inside the run directory.

    Attributes:
        run: runs the stage; returns facts for events.jsonl.
        depends: the fingerprints of what its result depends on; None: it runs at every call.
        says: what it is about to do, in a few words.
        outputs: files and folders to remove when the user asks for the stage again.
        files: results whose damage a later run must notice.
        wanted: whether this run has the stage.
    """

    name: str
    run: Callable[[RunContext], dict[str, Any]]
    depends: Callable[[RunContext], dict[str, str]] | None = None
    says: Callable[[RunContext], str] = lambda _: "working"
    outputs: Callable[[RunContext], list[Path]] = lambda _: []
    files: Callable[[RunContext], list[Path]] = lambda _: []
    wanted: Callable[[RunContext], bool] = lambda _: True


@dataclass(frozen=True)
class Method:
    """A method of the run: the main one, or a baseline.

    Attributes:
        config: of the main method the split and merge sections, in the same form; of one that merges another's
            branches that one's, with a merge of its own.
        source: the method whose branches it merges; empty: it trains its own.
    """

    name: str
    dir: MethodDir
    config: BaselineConfig
    source: str = ""
    rounds: int = 1
    round: int = 1  # which of them `dir` belongs to

    @property
    def splitter(self) -> SplitterName:
        """How the datasets of its branches were grouped."""
        if self.config.splitter is None:
            raise ValueError(f"{self.name} has neither a splitter nor that of {self.source}")
        return self.config.splitter

    @property
    def before(self) -> list[Method]:
        """The rounds before the last one, each as a method that merges once."""
        once = self.config.model_copy(update={"scales": [1.0]})
        return [replace(self, dir=self.dir.round(r), config=once, round=r) for r in range(1, self.rounds)]


@dataclass
class RunContext:
    """A run: its configuration, its directory, and θ0, found once."""

    config: RunConfig
    base: Path  # the folder that relative paths of the configuration are relative to
    run: RunDir
    progress: Progress = SILENT
    redo: frozenset[str] = frozenset()  # stages that the user asked for again
    partial: bool = False  # if a branch fails for good or the deadline passes, merge the others
    deadline: float | None = None  # Unix seconds, for training in a partial run

    @classmethod
    def open(cls, path: Path, *, output: Path | None = None, progress: Progress = SILENT) -> RunContext:
        """The run of a configuration file, or of a run directory, which holds its configuration.

        Raises:
            InputError: `path` is neither, or the configuration has mistakes.
        """
        if path.is_dir():
            run = RunDir(path)
            if not run.config.is_file():
                found = sorted(path.glob("*.y*ml"))
                hint = f"; did you mean {found[0]}?" if found else ""
                raise InputError(f"not a run directory: there is no config.yaml in it{hint}", file=path)
            refuse_links(path)
            return cls(load_config(run.config), path, run, progress)
        config = load_config(path)
        base = path.resolve().parent
        if output is None:
            output = base / (config.output or f"runs/{path.stem}")
        absolute = Path(os.path.abspath(output))  # noqa: PTH100 — `resolve` would follow the user's symlinks
        run = RunDir(absolute)
        refuse_foreign(run)
        refuse_links(absolute)
        return cls(resolve_paths(config, base), base, run, progress)

    @cached_property
    def origin(self) -> ModelFolder:
        """The model that the configuration names, found and checked, not loaded."""
        return resolve_model(self.config.model, self.base)

    @property
    def model(self) -> ModelFolder:
        """θ0: the model that the configuration names, or what preparation has made of it."""
        if self.config.prepare is None or not self.prepared_branch.done.is_file():
            return self.origin
        return self._prepared

    @cached_property
    def _prepared(self) -> ModelFolder:
        return resolve_model(self.branch_model, self.run.root)

    @property
    def branch_model(self) -> ModelConfig:
        """Where a branch job finds θ0. The path of a prepared θ0 is relative to the run, which may move."""
        if self.config.prepare is None:
            return self.config.model
        path = relative(self.prepared_branch.checkpoint, self.run.root)
        return self.config.model.model_copy(update={"path": path, "revision": None})

    @cached_property
    def preparation(self) -> list[PrepareStage]:
        """The rounds of preparation."""
        if self.config.prepare is None:
            return []
        return self.config.prepare.rounds(vision=self._takes_images)

    @property
    def _takes_images(self) -> bool:
        tower = self.config.prepare is not None and self.config.prepare.vision_tower is not None
        return tower or "vision_config" in read_json(self.origin.path / "config.json")

    def settle_freeze(self) -> None:
        """Writes the default of `model.freeze` out where θ0 has parts to freeze, so that the run's configuration says
        what is trained."""
        if self.config.model.freeze is None and self._takes_images:
            model = self.config.model.model_copy(update={"freeze": list(FROZEN)})
            self.config = self.config.model_copy(update={"model": model})

    @property
    def prepared_branch(self) -> BranchDir:
        """The last round of preparation."""
        return self.run.prepare.method().branch(len(self.preparation) - 1)

    @property
    def assembled(self) -> Path:
        """Vision tower and language model, joined."""
        return self.run.prepare.root / "init"

    @cached_property
    def vision_tower(self) -> Path:
        """The tower that preparation joins to the model."""
        tower = self.config.prepare.vision_tower if self.config.prepare else None
        if tower is None:
            raise InputError("no tower is named", field="prepare.vision_tower")
        return resolve_model(ModelConfig(path=tower), self.base).path

    @property
    def measured_model(self) -> ModelFolder:
        """The model that gradients are measured on: θ0, or its proxy."""
        return self._proxy or self.model

    @cached_property
    def _proxy(self) -> ModelFolder | None:
        proxy = self.config.calibration.proxy
        return None if proxy is None else resolve_model(proxy, self.base)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """θ0's tokenizer. Preparation does not change it, so it exists before."""
        from merit.models.loading import load_tokenizer

        template = self.config.model.chat_template
        path = Path(template) if template else None
        if self.config.prepare is None or self.config.prepare.vision_tower is None:
            return load_tokenizer(self.origin, path)
        if (self.assembled / "config.json").is_file():
            return load_tokenizer(ModelFolder(self.assembled, "", False), path)
        from merit.models.assemble import assemble

        with tempfile.TemporaryDirectory(prefix="merit-") as folder:
            assemble(self.origin.path, self.vision_tower, Path(folder), weights=False)
            return load_tokenizer(ModelFolder(Path(folder), "", False), path)

    @property
    def mixture(self) -> Mixture:
        """The mixture, as its stage left it."""
        return Mixture.load(self.run.mixture)

    @cached_property
    def methods(self) -> list[Method]:
        """The main method, its further merges, then the baselines in the order of the configuration."""
        split, others = self.config.split, self.config.others
        main = BaselineConfig(
            splitter=split.splitter, axes=split.axes, file=split.file, scales=self.config.merge.scales
        )
        found = {MAIN_METHOD: Method(MAIN_METHOD, self.run.method(), main)}
        for name, item in others.items():
            if item.branches is None:
                config = item.model_copy(update={"axes": item.axes or split.axes})
                found[name] = Method(name, self.run.method(name), config)
        for name, item in others.items():
            if item.branches is not None:
                source = found[self.config.trained_by(name)]
                own = {"branches": item.branches, "merge": item.merge, "scales": item.scales}
                folder = replace(self.run.method(name), trained=source.dir.root)
                found[name] = Method(name, folder, source.config.model_copy(update=own), source.name)
        return [self._in_rounds(found[name]) for name in (MAIN_METHOD, *others)]

    @property
    def trained(self) -> list[Method]:
        """The methods that train branches; the others merge theirs once more."""
        return [method for method in self.methods if not method.source]

    def merging(self, method: Method) -> MergeConfig:
        """How the method's branches are merged."""
        return self.config.merge.by(method.config.merge)

    def _in_rounds(self, method: Method) -> Method:
        """The method's last round. What has one group has nothing to merge in between."""
        wanted = method.config.rounds or self.config.train.rounds
        rounds = 1 if extensions.load("splitters", method.splitter).one_group else wanted
        return replace(method, rounds=rounds, round=rounds)

    def start(self, method: Method) -> ModelFolder:
        """What the branches of a round start from: θ0, or the merge of the round before.

        Raises:
            InputError: that is not merged yet.
        """
        if method.round == 1:
            return self.model
        return resolve_model(self.start_config(method), self.run.root)

    def start_config(self, method: Method) -> ModelConfig:
        """Where a branch job finds it. The path of a merge is relative to the run, which may move."""
        if method.round == 1:
            return self.branch_model
        home = MethodDir(method.dir.whole or method.dir.source)
        path = relative(home.round(method.round - 1).merged(), self.run.root)
        return self.config.model.model_copy(update={"path": path, "revision": None})

    def data_fingerprints(self) -> dict[str, str]:
        """Dataset → fingerprint of its encoded content."""
        mixture = self.mixture
        return {item.name: item.fingerprint for item in [*mixture.datasets, *mixture.unseen]}
