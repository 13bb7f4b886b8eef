"""Stage `gate`: every branch trains on a share of its data, and the merge of these pilots decides whether to go on."""

from __future__ import annotations

import itertools
import logging
import shutil
from dataclasses import replace
from typing import Any

from merit.base.errors import StageError
from merit.base.record import Record, fingerprint
from merit.config.sections import GateConfig
from merit.context import Method, RunContext, Step
from merit.data.store import EncodedDataset
from merit.diagnose.checks.lmc import connectivity
from merit.diagnose.losses import LossSet
from merit.diagnose.models import BASE, MERGE
from merit.diagnose.records import Segment
from merit.run.layout import GATE
from merit.split.partition import Partition
from merit.split.splitter import find_splitter
from merit.train.job import branch_job
from merit.train.spec import BranchSpec
from merit.train.step import branch_results, branch_specs, check_branches, drop_surplus, prepare_branch, run_jobs

NAME = "gate"
_STEPS = 10  # a pilot takes at least this many: a single step says nothing
_log = logging.getLogger(__name__)


class GateResult(Record):
    """`gate.json`. Losses are means over held-out examples, in nats a supervised token.

    `displacement` is ‖θ̄ − θ0‖, `branch_displacement` ‖θ_k − θ0‖, after the pilot's share of the data.
    """

    fingerprint: str
    share: float
    tokens: list[int]  # supervised tokens of each pilot
    base_loss: float
    branch_losses: list[float]
    merged_loss: float
    barriers: list[Segment]  # between every two pilots
    displacement: float
    branch_displacement: list[float]
    ready: bool
    advice: list[str]  # what to change; if it is ready, what to watch

    @property
    def worst(self) -> Segment:
        """The segment with the highest barrier."""
        return max(self.barriers, key=lambda segment: segment.barrier)


def depends(context: RunContext) -> dict[str, str]:
    """What the branches depend on, and the gate's own settings."""
    config = context.config
    return {
        "gate": fingerprint(config.gate),
        "split": fingerprint(Partition.load(context.methods[0].dir.partition).mark),
        "train": fingerprint(config.train, config.model.freeze),
        "model": context.model.fingerprint,
        "mixture": fingerprint(context.data_fingerprints()),
        "seed": fingerprint(config.seed),
    }


def run(context: RunContext) -> dict[str, Any]:
    """Writes gate/: pilots, and gate.json.

    Raises:
        StageError: the answer is no, and `gate.enforce` is on; or a pilot failed.
    """
    config = context.config.gate or GateConfig()
    main = replace(context.methods[0], rounds=1, round=1)
    pilot = Method(GATE, context.run.method(GATE), main.config)
    Partition.load(main.dir.partition).save(pilot.dir.partition)
    specs = [_pilot(context, spec, config) for spec in branch_specs(context, main)]
    drop_surplus(pilot, len(specs))
    jobs = []
    for spec in specs:
        branch = pilot.dir.branch(spec.branch)
        if prepare_branch(branch, spec):
            jobs.append((branch, branch_job(context, pilot, branch, spec)))
    run_jobs(context, jobs)
    result = _measure(context, pilot, config, fingerprint(specs))
    result.save(context.run.gate_record)
    for line in result.advice:
        (_log.info if result.ready else _log.warning)("gate: %s", line)
    if not result.ready and config.enforce:
        raise StageError(
            f"the gate says no: {'; '.join(result.advice)} (figures: {context.run.gate_record}; "
            "`gate: {enforce: false}` continues anyway)"
        )
    return {"ready": result.ready, "barrier": result.worst.barrier, "merged_loss": result.merged_loss}


def _pilot(context: RunContext, spec: BranchSpec, config: GateConfig) -> BranchSpec:
    counts = {item.name: item.train.tokens for item in context.mixture.datasets}
    data = [item.model_copy(update={"weight": item.weight * config.share}) for item in spec.data]
    tokens = sum(counts[item.name] * item.weight for item in data) * spec.train.epochs
    batch_tokens = min(spec.train.batch_tokens, max(1, round(tokens / _STEPS)))
    train = spec.train.model_copy(update={"batch_tokens": batch_tokens})
    planned = max(1, round(spec.planned_tokens * config.share))
    return spec.model_copy(update={"method": GATE, "data": data, "train": train, "planned_tokens": planned})


def _measure(context: RunContext, pilot: Method, config: GateConfig, mark: str) -> GateResult:
    from merit.diagnose.live import LiveModel
    from merit.merge.average import merge_checkpoints
    from merit.models.loading import load_model, pick_precision

    done = branch_results(context, pilot)
    check_branches(context, pilot, done)
    results = list(done.values())
    tokens = [result.supervised_tokens for result in results]
    merged = pilot.dir.merged()
    shutil.rmtree(merged, ignore_errors=True)
    folders = {f"pilot {k}": pilot.dir.branch(k).checkpoint for k in range(len(results))}
    merge = merge_checkpoints(
        list(folders.values()), tokens, {1.0: merged}, base=context.model.path, progress=context.progress
    )
    model = load_model(context.model.path, trust_remote_code=context.model.trust_remote_code)
    live = LiveModel(model, {BASE: context.model.path, **folders, MERGE: merged})
    held_out = LossSet.of(
        [EncodedDataset.open(context.run.data(name)) for name in context.mixture.names],
        config.examples,
        held_out=True,
        batch_tokens=context.config.evaluate.batch_tokens,
        precision=pick_precision(context.config.train.precision),
        seed=context.config.seed,
    )
    pairs = [*itertools.combinations(folders, 2), (BASE, MERGE)]
    found = connectivity(live, pairs, {"held_out": held_out}, points=config.points, progress=context.progress).held_out
    shutil.rmtree(merged, ignore_errors=True)  # a whole model, and of no further use
    ends = {segment.a: segment.loss[0] for segment in found} | {segment.b: segment.loss[-1] for segment in found}
    result = GateResult(
        fingerprint=mark,
        share=config.share,
        tokens=tokens,
        base_loss=ends[BASE],
        branch_losses=[ends[label] for label in folders],
        merged_loss=ends[MERGE],
        barriers=found[:-1],
        displacement=merge.displacement["1"],
        branch_displacement=merge.branch_displacement,
        ready=False,
        advice=[],
    )
    ready, advice = judge(result, config.max_barrier)
    return result.model_copy(update={"ready": ready, "advice": advice})


def judge(result: GateResult, max_barrier: float) -> tuple[bool, list[str]]:
    """Whether the branches may be trained, and what to change where they may not.

    A barrier counts when its whole interval lies above the limit: a maximum over few examples is biased upward.

    Args:
        max_barrier: the limit, as a share of θ0's loss.
    """
    advice: list[str] = []
    base, merged = result.base_loss, result.merged_loss
    limit = max_barrier * base
    high = [segment for segment in result.barriers if segment.peak.low > limit]
    mean = sum(n * loss for n, loss in zip(result.tokens, result.branch_losses, strict=True)) / sum(result.tokens)
    if high:
        worst = max(high, key=lambda segment: segment.barrier)
        advice.append(
            f"a barrier of {worst.barrier:.3f} nats lies between {worst.a} and {worst.b} (at most {limit:.3f} passes): "
            "lower `train.learning_rate`, use fewer groups (`split.axes`), or prepare θ0 longer"
        )
    if merged > base and mean > base:
        advice.append(
            f"the pilots themselves are worse than θ0 on held-out examples ({mean:.3f} against {base:.3f}): "
            "lower `train.learning_rate`"
        )
    elif merged > base:
        advice.append(
            f"the merge is worse than θ0 ({merged:.3f} against {base:.3f}), but the pilots are not: "
            "use fewer groups, or prepare θ0 longer"
        )
    ready = not advice
    if ready and merged > mean:
        advice.append(
            f"averaging costs {merged - mean:.3f} nats against the pilots' mean: watch it with `merit diagnose`"
        )
    return ready, advice


def _wanted(context: RunContext) -> bool:
    """Only if the configuration has a gate and the splitter makes more than one branch."""
    return context.config.gate is not None and not find_splitter(context.config.split.splitter).one_group


def _says(context: RunContext) -> str:
    share = (context.config.gate or GateConfig()).share
    return f"testing the split: pilot branches on {share:.0%} of their data, and their merge"


STEP = Step(
    NAME,
    run,
    depends,
    says=_says,
    outputs=lambda context: [context.run.method(GATE).root],
    files=lambda context: [context.run.gate_record],
    wanted=_wanted,
)
