"""Trains one branch. Only trainer.py and trl_arguments.py import trl.

`train_branch` is all that a branch job does. It can be repeated and resumed, and needs nothing but the run directory.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from merit.base.errors import InputError
from merit.base.files import atomic_dir
from merit.base.kept import files_below, keep
from merit.base.record import fingerprint
from merit.compute.abilities import check_causal, takes_padding
from merit.config.sections import LoraSection, Role
from merit.data.store import IMAGES
from merit.models.layout import FROZEN, role_of
from merit.models.loading import best_device, images_of, load_model, load_tokenizer
from merit.models.source import ModelFolder, resolve_model
from merit.models.vision import copy_image_files
from merit.run.layout import BranchDir, RunDir
from merit.train.callbacks import BranchCallback, PullCallback, RoundCallback, TrajectoryCallback
from merit.train.carry import at_end, drop_state_before, go_on
from merit.train.checkpoints import Counters, newest_checkpoint
from merit.train.rows import branch_rows, plan_batching, row_without_loss
from merit.train.spec import BranchResult, BranchSpec, trained_branch
from merit.train.trackers import tracked_branch
from merit.train.trainer import BranchTrainer
from merit.train.trl_arguments import Training, sft_config

_log = logging.getLogger(__name__)


def train_branch(run: RunDir, branch: BranchDir, *, base: Path, model: Path | None = None) -> BranchResult:
    """Trains `branch` from θ0 as its spec.json says, or returns what an earlier call finished. If measure.json asks for
    something to be measured, `measure_branch` marks the branch done; otherwise this does.

    A kill loses at most `train.checkpoint_minutes`. The resumed weights are bit-identical to those of an undisturbed
    run on the same machine with the same number of threads.

    Args:
        base: the folder that a relative model path in the spec is relative to.
        model: where θ0 is on this machine; default: where the spec says.

    Raises:
        InputError: the spec, the data or θ0 is damaged or not what the spec was made for.
        StageError: the loss became NaN or infinite.
    """
    spec = BranchSpec.load(branch.spec)
    mark = fingerprint(spec)
    done = trained_branch(branch, mark)
    if done is not None:
        return done
    place = spec.model if model is None else spec.model.model_copy(update={"path": str(model), "revision": None})
    theta0 = resolve_model(place, base)
    if theta0.fingerprint != spec.model_fingerprint:
        raise InputError("θ0 is not the model that this branch was planned with", file=theta0.path)
    data = branch_rows(run, spec)
    resumed = newest_checkpoint(branch) or go_on(run, branch, spec, theta0.path)
    counters = resumed[1] if resumed else Counters()
    with tracked_branch(run, branch, spec).variables():
        trainer = _make_trainer(_Branch(run, branch, spec, theta0, counters), data)
        if resumed and at_end(resumed[0], spec):  # it was killed after its last step
            trainer.take(resumed[0])
        else:
            if resumed:
                _log.info("branch %d resumes from %s", spec.branch, resumed[0].name)
            trainer.train(resume_from_checkpoint=str(resumed[0]) if resumed else None)
    whole = _whole_state(trainer)  # a collective: every rank must call it
    if not trainer.accelerator.is_main_process:
        return _no_result(mark)
    _save(trainer, branch, spec.train.lora, theta0.path, whole)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    result = BranchResult(
        fingerprint=mark,
        supervised_tokens=counters.supervised_tokens,
        examples=counters.examples,
        steps=trainer.state.global_step,
        seconds=round(counters.seconds, 3),
        final_loss=losses[-1] if losses else None,
        files={},
    )
    record = branch.trained if branch.measure.is_file() else branch.done
    result = keep(record, result, branch.root, files_below(branch.checkpoint))
    drop_state_before(branch, spec)
    if spec.is_last:  # otherwise the next round goes on from it
        shutil.rmtree(branch.training_state, ignore_errors=True)
    return result


@dataclass(frozen=True)
class _Branch:
    """A branch to be trained."""

    run: RunDir
    dir: BranchDir
    spec: BranchSpec
    theta0: ModelFolder
    counters: Counters


def _make_trainer(branch: _Branch, data: datasets.Dataset) -> BranchTrainer:
    spec, theta0, train = branch.spec, branch.theta0, branch.spec.train
    lengths = [len(ids) for ids in data["input_ids"]]
    if train.rounds > 1 and _is_sharded():
        raise InputError("rounds under FSDP or DeepSpeed are not supported; use DDP", field="launch.accelerate")
    if train.lora is not None and _is_sharded():
        raise InputError("LoRA under FSDP or DeepSpeed is not supported; use DDP", field="launch.accelerate")
    training = Training(branch.run, branch.dir, spec, best_device().type != "cpu", IMAGES in data.column_names)
    # This joins the processes. It comes before the model, so that of the processes that shard it only one reads it
    # (`fsdp_cpu_ram_efficient_loading`), and so that each of the others uses its own device.
    processes = sft_config(training).world_size
    # With LoRA θ0 is frozen and may keep its own type; weights that are trained are kept in fp32.
    model = load_model(
        theta0.path,
        trust_remote_code=theta0.trust_remote_code,
        dtype="auto" if train.lora is not None else torch.float32,
        freeze=spec.model.freeze,
        device=torch.device("cpu") if _is_sharded() else None,  # no device need hold all of it
    )
    template = Path(spec.model.chat_template) if spec.model.chat_template else None
    tokenizer = load_tokenizer(theta0, template)
    micro_batch_tokens = train.micro_batch_tokens if _takes_padding(model) else 1  # one example at a time
    batching = plan_batching(lengths, train.batch_tokens, micro_batch_tokens, processes)
    data = datasets.concatenate_datasets([data, row_without_loss(data)])  # fills micro-batches
    training = replace(training, micro=batching.micro, accumulation=batching.accumulation)
    return BranchTrainer(
        model=model,
        args=sft_config(training),
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=_peft_config(train.lora, model, spec.model.freeze),
        callbacks=_callbacks(branch, model),
        recipe=train,
        lengths=lengths,
        batching=batching,
        counters=branch.counters,
    )


def _takes_padding(model: PreTrainedModel) -> bool:
    """Whether examples of unlike length may share a micro-batch. All processes plan with the same answer, that of the
    main one: where weights are sharded, the others have none yet.

    Raises:
        InputError: the model is not causal.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":  # no process has weights to try
        return True
    answer = [True]
    if PartialState().is_main_process:
        check_causal(model, model.device)
        answer = [takes_padding(model, model.device)]
    return bool(broadcast_object_list(answer)[0])


def _callbacks(branch: _Branch, model: PreTrainedModel) -> list[TrainerCallback]:
    train = branch.spec.train
    found: list[TrainerCallback] = [BranchCallback(branch.dir, branch.counters, train.checkpoint_minutes)]
    if not branch.spec.is_last:
        found.insert(0, RoundCallback(branch.spec))
    if train.pull:
        found.append(PullCallback(model, train.pull))
    if train.snapshots and train.lora is None:
        found.append(TrajectoryCallback(branch.dir, train.snapshots))
    elif train.snapshots:
        _log.warning("`train.snapshots` needs full fine-tuning; with LoRA merit takes no snapshots")
    return found


def _peft_config(lora: LoraSection | None, model: PreTrainedModel, freeze: Sequence[Role] | None) -> Any:
    if lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        exclude_modules=_frozen_modules(model, FROZEN if freeze is None else freeze),
        task_type="CAUSAL_LM",
    )


def _frozen_modules(model: PreTrainedModel, freeze: Sequence[Role]) -> list[str] | None:
    """The modules that get no adapter because their role is frozen; None if there are none."""
    if images_of(model) is None or not freeze:
        return None
    return [name for name, module in model.named_modules() if name and role_of(name) in freeze] or None


def _is_sharded() -> bool:
    return any(os.environ.get(name) == "true" for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"))


def _whole_state(trainer: BranchTrainer) -> Any:
    """The trained weights, gathered from all processes if each holds a part of them; else None."""
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        return None
    return trainer.accelerator.get_state_dict(trainer.model if trainer.is_fsdp_enabled else trainer.deepspeed)


def _unsharded(model: PreTrainedModel, state: dict[str, Any]) -> PreTrainedModel:
    """An ordinary model around gathered weights. transformers leaves a tied head out of the file because it shares the
    embedding's storage; gathered tensors share none until the model ties them again."""
    kind: Any = next(base for base in type(model).__mro__ if not issubclass(base, FSDPModule))
    with torch.device("meta"):
        plain: PreTrainedModel = kind(model.config)
    plain.load_state_dict(state, assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain


def _save(trainer: BranchTrainer, branch: BranchDir, lora: LoraSection | None, theta0: Path, whole: Any) -> None:
    """Writes checkpoint/ (and adapter/ for LoRA)."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    tokenizer: PreTrainedTokenizerBase = trainer.processing_class
    if lora is not None:
        with atomic_dir(branch.root / "adapter") as part:
            model.save_pretrained(part)
        # Averaging merged weights averages the updates B·A; averaging A and B apart would not.
        model = model.to(torch.float32).merge_and_unload()
    if whole is not None:
        model = _unsharded(model, whole)
    with atomic_dir(branch.checkpoint) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        copy_image_files(theta0, part)


def _no_result(mark: str) -> BranchResult:
    """What every process but the main one returns where several train a branch."""
    return BranchResult(
        fingerprint=mark, supervised_tokens=0, examples=0, steps=0, seconds=0, final_loss=None, files={}
    )
