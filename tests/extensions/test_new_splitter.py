"""A new splitter is one new file, and everything else knows it."""

from __future__ import annotations

import json

import pytest
from extended import add, finish, python, reference, schema
from finished_run import RECIPE, write_data

SPLITTER = '''"""`spelling`: datasets in the order of their names, cut in the middle."""

from merit.split.splitter import Splitter


def partition(request):
    names = sorted(request.tokens)
    return request.partition([names[: len(names) // 2], names[len(names) // 2 :]])


SPLITTER = Splitter(label="spelling split", how="by the alphabet", partition=partition)
'''
DESCRIBE = """
from merit.config import load_config
from merit.context import RunContext
from merit.split.step import describe
from pathlib import Path
print(describe(RunContext.open(Path("runs/merit")).methods[0], 2))
"""
DEPENDS = """
from merit.context import RunContext
from merit.split.step import depends
from pathlib import Path
print(depends(RunContext.open(Path("runs/merit")))["split"])
"""


@pytest.fixture
def folder(tmp_path):
    add(tmp_path, "splitters", "spelling", SPLITTER)
    write_data(tmp_path)
    return tmp_path


def test_the_schema_and_the_reference_have_it(folder):
    assert "spelling" in json.loads(schema(folder))["$defs"]["SplitConfig"]["properties"]["splitter"]["enum"]
    page = reference(folder)
    assert "`single` or `spelling`" in page
    assert "cut in the middle" in page


def test_a_run_uses_it(folder, tiny_model):
    run = finish(folder, RECIPE.format(model=tiny_model).replace("pca", "spelling"))
    partition = json.loads((run / "split" / "partition.json").read_text())
    assert partition["splitter"] == "spelling"
    assert [group["datasets"] for group in partition["groups"]] == [["copy", "first"], ["last", "shout"]]
    assert python(folder, "-c", DESCRIBE) == "spelling split, 2 groups\n"
    report = (run / "report.html").read_text()
    assert "by the alphabet" in report
    assert "spelling, 2 groups" in report
    add(folder, "splitters", "_order", "def order(names):\n    return sorted(names)\n")
    file, helper = (folder / "merit_ext" / "splitters" / name for name in ("spelling.py", "_order.py"))
    marks = [python(folder, "-c", DEPENDS)]
    file.write_text(SPLITTER.replace("from merit", "from merit_ext.splitters._order import order\nfrom merit", 1))
    marks.append(python(folder, "-c", DEPENDS))
    helper.write_text("def order(names):\n    return sorted(names, reverse=True)\n")
    marks.append(python(folder, "-c", DEPENDS))
    file.with_name("another.py").write_text(SPLITTER)
    assert python(folder, "-c", DEPENDS) == marks[-1]
    assert len(set(marks)) == 3


def test_the_configuration_asks_it(folder, tiny_model):
    recipe = RECIPE.format(model=tiny_model).replace("pca, axes: 1", "spelling, axes: 3")
    (folder / "merit.yaml").write_text(recipe)
    said = python(folder, "-m", "merit", "split", "merit.yaml", code=2)
    assert "`split.axes`: 3 axes make 8 groups, but the mixture has 4 datasets" in said


def test_a_file_that_is_no_splitter_is_named(folder, tiny_model):
    add(folder / "more", "splitters", "broken", '"""`broken`"""\nimport there_is_no_such_module\n')
    (folder / "more" / "merit_ext" / "splitters" / "broken.py").rename(folder / "merit_ext" / "splitters" / "broken.py")
    (folder / "merit.yaml").write_text(RECIPE.format(model=tiny_model).replace("pca", "broken"))
    said = python(folder, "-m", "merit", "split", "merit.yaml", code=2)
    assert "broken.py: cannot be imported: No module named 'there_is_no_such_module'" in said
    (folder / "merit_ext" / "splitters" / "broken.py").write_text('"""`broken`"""\n')
    assert "broken.py: defines no SPLITTER" in python(folder, "-m", "merit", "split", "merit.yaml", code=2)
