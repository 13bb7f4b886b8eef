"""A new engine is one new file."""

from __future__ import annotations

import json
import shutil

import pytest
from own import OLD, merit, python, write_extension

PLAIN = '''"""Runs jobs as plain processes, one after another."""

import os
import subprocess

from pydantic import BaseModel, Field

from merit.base.errors import StageError
from merit.base.progress import SILENT
from merit.jobs.engine import Engine
from merit.jobs.job import JobRecord


class Settings(BaseModel, extra="forbid"):
    nice: int = Field(default=0, ge=0, le=19)


class PlainExecutor:
    def __init__(self, launch):
        self.nice = Settings(**launch.settings.get("plain", {})).nice

    def run(self, jobs, progress=SILENT):
        for job in jobs:
            job.output.parent.mkdir(parents=True, exist_ok=True)
            with job.output.open("ab") as output:
                command = ["nice", "-n", str(self.nice), *job.command]
                subprocess.run(command, stdout=output, stderr=output, env=os.environ | job.env, check=False)
            if not job.done.exists():
                raise StageError(f"{job.name} failed; see {job.output}")
            JobRecord("plain", "done", where=f"nice {self.nice}").save(job.record)


ENGINE = Engine(
    executor=lambda launch, policy, folder: PlainExecutor(launch),
    about=lambda: "as many processes as you like",
    on_this_machine=True,
    settings=Settings,
)
'''


@pytest.fixture
def folder(tmp_path):
    write_extension(tmp_path, "engines", "plain", PLAIN)
    return tmp_path


def test_it_is_in_the_schema_the_reference_and_env(folder):
    schema = json.loads(merit(folder, "schema").stdout)
    assert schema["$defs"]["LaunchConfig"]["properties"]["engine"]["enum"] == ["local", "ray", "slurm", "plain"]
    assert "`local` or `ray` or `slurm` or `plain`" in python(folder, "docs/generate_configuration.py").stdout
    assert json.loads(merit(folder, "env", "--json").stdout)["engines"]["plain"] == "as many processes as you like"
    assert "local, ray, slurm, plain" in " ".join(merit(folder, "demo", "--help").stdout.replace("│", "").split())


def test_it_trains_the_branches_of_a_run(folder):
    shutil.copytree(OLD, folder / "old")
    run = folder / "old" / "run"
    config = (run / "config.yaml").read_text()
    assert "  engine: local\n" in config
    (run / "config.yaml").write_text(
        config.replace("  engine: local\n", "  engine: plain\n  settings: {plain: {nice: 1}}\n")
    )
    # Only the branch that is gone is trained again, though θ0 lies elsewhere than when this run was made.
    shutil.rmtree(run / "branches" / "01")
    done = merit(folder, "train", run)
    assert done.returncode == 0, done.stderr
    branches = json.loads(merit(folder, "status", run, "--json").stdout)
    assert {item["state"] for item in branches} == {"done"}
    engines = {(item["method"], item["branch"]): (item["engine"], item["where"]) for item in branches}
    assert engines.pop(("merit", 1)) == ("plain", "nice 1")
    assert {engine for engine, _ in engines.values()} == {"local"}


@pytest.mark.parametrize(
    ("launch", "expected"),
    [
        ("engine: plane", ":4: `launch.engine`: Input should be 'local', 'ray', 'slurm' or 'plain', not 'plane'; "
         "did you mean `plain`?"),
        ("settings: {plain: {nice: 20}}", ":4: `launch.settings.plain.nice`: Input should be less than or equal to 19"),
        ("settings: {plain: {nasty: 1}}", ":4: `launch.settings.plain.nasty`: Extra inputs are not permitted"),
        ("settings: {local: {nice: 1}}", ":4: `launch.settings.local`: this engine takes no settings here"),
        ("settings: {plane: {nice: 1}}", ":4: `launch.settings.plane`: no engine 'plane'; there are local, ray, slurm, "
         "plain"),
    ],
)  # fmt: skip
def test_a_mistake_in_its_settings_has_its_line(launch, expected, folder):
    file = folder / "merit.yaml"
    file.write_text(f"model: m\nmixture: {{a: {{path: a.jsonl}}}}\nsplit: {{splitter: single}}\nlaunch: {{{launch}}}\n")
    done = merit(folder, "run", file)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip() == f"{file}{expected}"


def test_a_file_that_is_no_engine(tmp_path):
    file = write_extension(tmp_path, "engines", "empty", '"""Nothing."""\n')
    done = merit(tmp_path, "env")
    assert (done.returncode, done.stderr) == (2, f"{file}: defines no ENGINE\n")


def test_a_name_that_is_taken(tmp_path):
    file = write_extension(tmp_path, "engines", "local", PLAIN)
    done = merit(tmp_path, "schema")
    assert done.returncode == 2
    assert done.stderr.startswith(f"{file}: there is another extension of this name: ")
