"""A study that runs in seconds: a fresh model of 30,000 parameters, four families, two seeds."""

from __future__ import annotations

from pathlib import Path

STUDY = """
name: tiny
warmup:
  vocabulary: 400
  hidden: 32
  layers: 2
  heads: 2
  intermediate: 64
  examples: 24
  train: {epochs: 1, learning_rate: 3e-3, batch_tokens: 600, max_length: 160, precision: fp32}
mixture:
  sums: {path: "reasoning_gym:chain_sum", max_examples: 24}
  spell: {path: "reasoning_gym:spell_backward", max_examples: 24}
  gcd: {path: "reasoning_gym:gcd", max_examples: 24}
  lcm: {path: "reasoning_gym:lcm", max_examples: 24}
unseen: {products: {path: "reasoning_gym:products", max_examples: 8}}
retention: {equations: {path: "reasoning_gym:simple_equations", max_examples: 10}}
held_out_fraction: 0.4
train: {learning_rate: 3e-3, batch_tokens: 200, max_length: 160, precision: fp32}
calibration: {examples: 8, sketch: full}
seeds: [0, 1]
budgets: {half: 0.5}
faces: {validation: 2, test: 4, drift: 4, text: 6, max_new_tokens: 6}
curvature: {examples: 8, ridge: [0.1, 1.0]}
keep: all
draws: 200
methods:
  joint: {splitter: single, scales: [0.5, 1.0], pool: joint}
  joint-fast: {splitter: single, rate: 2, pool: joint}
  joint-2ep: {splitter: single, epochs: 2}
  soup-2: {splitter: replicate, copies: 2}
  random-2: {splitter: random, axes: 1}
  merit-1d: {splitter: pca, axes: 1, scales: [1.0, 1.5]}
  merit-1d-regmean: {branches: merit-1d, merge: regmean}
  merit-1d-firm: {branches: merit-1d, merge: {rule: regmean, ridge: 1.0}}
  merit-1d-ties: {splitter: pca, axes: 1, merge: ties}
question: {seeds: 1}
"""


def write_study(folder: Path, **changes: str) -> Path:
    """study.yaml in `folder`; `changes` replaces whole lines that begin with the key."""
    lines = []
    for line in STUDY.strip().splitlines():
        key = line.split(":")[0]
        lines.append(changes.pop(key) if key in changes else line)
    assert not changes
    file = folder / "study.yaml"
    file.write_text("\n".join(lines) + "\n")
    return file
