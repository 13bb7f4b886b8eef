"""The front of the model card: what the Hub itself reads of it."""

from __future__ import annotations

import re
from typing import Any

from merit.evaluation.scores import TableRow
from merit.merge.names import hub_id
from merit.report.evidence import Evidence
from merit.report.words import plural

_TAGS = ["merit", "merge", "instruction-tuning", "conversational"]
_EMBEDDED = {"embedded:smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}
_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def metadata(evidence: Evidence, title: str, merge: TableRow | None) -> str:
    """YAML, without the lines of dashes. The license is the owner's to choose, and stays out."""
    from huggingface_hub import ModelCardData

    base = _base_model(evidence.config)
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text" if _sees(evidence) else "text-generation",
        tags=_TAGS,
        base_model=base,
        base_model_relation="merge" if base else None,
        datasets=_datasets(evidence.config) or None,
        model_name=title,
        eval_results=_results(evidence, merge) or None,
    )
    return str(data.to_yaml()).strip()


def _base_model(config: dict[str, Any]) -> str | None:
    """θ0's Hub id, if it has one: local paths are absolute in a resolved configuration."""
    model = config.get("model")
    path = str(model.get("path") or "") if isinstance(model, dict) else ""
    return _EMBEDDED.get(path) or hub_id(path) or (path if _ID.fullmatch(path) else None)


def _datasets(config: dict[str, Any]) -> list[str]:
    mixture = config.get("mixture")
    entries = mixture.values() if isinstance(mixture, dict) else ()
    paths = [str(entry.get("path") or "") for entry in entries if isinstance(entry, dict)]
    return list(dict.fromkeys(path for path in paths if _ID.fullmatch(path)))


def _sees(evidence: Evidence) -> bool:
    return evidence.mixture is not None and any(item.images for item in evidence.mixture.datasets)


def _results(evidence: Evidence, merge: TableRow | None) -> list[Any]:
    from huggingface_hub import EvalResult

    if merge is None:
        return []
    task = "image-text-to-text" if _sees(evidence) else "text-generation"
    mixture = evidence.mixture
    inside = f"held-out examples of {plural(len(mixture.datasets), 'dataset')}" if mixture else "held-out examples"
    unseen = f"{plural(len(mixture.unseen), 'unseen dataset')}" if mixture else "unseen datasets"
    figures = [
        (inside, "merit-held-out", "loss", "loss, nats a supervised token", merge.in_mixture),
        (inside, "merit-held-out", "exact_match", "exact match", merge.exact),
        (unseen, "merit-unseen", "loss", "loss, nats a supervised token", merge.unseen),
    ]
    return [
        EvalResult(
            task_type=task,
            dataset_type=kind,
            dataset_name=dataset,
            metric_type=metric,
            metric_name=words,
            metric_value=round(value, 4),
        )
        for dataset, kind, metric, words, value in figures
        if value is not None
    ]
