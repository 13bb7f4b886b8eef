"""The design, held: which package imports which, where torch is, and that nothing prints."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import merit

SOURCE = Path(__file__).parents[2] / "src" / "merit"

# Data flows one way: a package imports those of earlier rows, and its own row's.
ORDER = [
    {"base"},
    {"config"},
    {"run"},
    {"data", "models", "demo"},
    {"context"},
    {"workers"},
    {"compute"},
    {"gradients"},
    {"conflict"},
    {"split"},
    {"train"},
    {"merge", "theory"},
    {"handover"},
    {"evaluate"},
    {"diagnose", "doctor"},
    {"gate"},
    {"plan"},
    {"report", "push", "track"},
    {"pipeline"},
    {"study"},
    {"cli", "__main__"},
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
# A package's step faces the pipeline, so it knows the run's context; these look further.
LOOKS_FURTHER = {
    "data/step.py": {"context"},
    "conflict/step.py": {"split"},  # `calibration.until` stops when the partition is stable
    "diagnose/step.py": {"report"},  # `merit diagnose` draws the report again
}
# Beside the order: no ML, so that a scheduler's side can be installed and read alone.
JOBS_MAY_IMPORT = {"base", "config", "run.events", "jobs"}
JOBS_USERS = {
    "workers",
    "train",
    "conflict",
    "evaluate",
    "handover",
    "diagnose",
    "study",
    "plan",
    "pipeline",
    "cli",
    "doctor",
}
# Their code is not ours, and raises what it likes; or everything is raised again.
MAY_CATCH_ALL = {
    "models/architecture.py",  # what transformers raises at a configuration, it raises at will
    "data/image.py",
    "evaluate/exact.py",
    "jobs/engines/ray.py",
    "evaluate/answers.py",
    "jobs/ray_cluster.py",
    "merge/stream.py",
    "models/loading.py",
    "models/vision.py",
    "run/events.py",
    "track/step.py",  # a tracker that is down must not fail a run that is done
}

HEAVY = {"torch", "transformers", "trl", "datasets"}
HOLD_TENSORS = (
    "compute/",
    "demo/tiny_vlm.py",
    "diagnose/hessian.py",
    "diagnose/lanczos.py",
    "diagnose/live.py",
    "doctor/",
    "evaluate/answers.py",
    "gradients/",
    "merge/",
    "models/assemble.py",
    "models/loading.py",
    "models/vision.py",
    "study/measure.py",
    "study/warmup.py",
    "train/branch.py",
    "train/callbacks.py",
    "train/curvature.py",
    "train/rows.py",
    "train/trainer.py",
    "train/trl_arguments.py",
)

FILES = sorted(SOURCE.rglob("*.py"))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def package_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when the module is imported: no function bodies, nothing for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from at_import(child)


def imported(nodes: Iterator[ast.AST]) -> Iterator[tuple[int, str]]:
    """Line and module; `from merit.run import events` counts as `merit.run.events`."""
    packages = {"merit"} | {f"merit.{package_of(path)}" for path in FILES if path.parent != SOURCE}
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, item.name) for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            whole = node.module in packages
            for item in node.names if whole else node.names[:1]:
                yield node.lineno, f"{node.module}.{item.name}" if whole else str(node.module)


def own_imports(path: Path) -> list[tuple[int, str]]:
    """Every import of merit, in functions, too: `gradients.engine` for `merit.gradients.engine`."""
    return [
        (line, name.removeprefix("merit.")) for line, name in imported(ast.walk(parsed(path))) if name[:6] == "merit."
    ]


def test_imports_go_one_way():
    wrong = []
    for path in FILES:
        package = package_of(path)
        if package in ("jobs", "__init__"):
            continue
        assert package in RANK, f"{package} has no place in the order"
        further = LOOKS_FURTHER.get(name_of(path), set())
        for line, name in own_imports(path):
            target = name.split(".")[0]
            if target == "jobs":
                bad = package not in JOBS_USERS
            else:
                bad = RANK[target] > RANK[package] and target not in further
            wrong += [f"{name_of(path)}:{line} imports {name}"] if bad else []
    assert not wrong


def test_jobs_stand_apart():
    wrong = [
        f"{name_of(path)}:{line} imports {name}"
        for path in FILES
        if package_of(path) == "jobs"
        for line, name in own_imports(path)
        if not any(name == known or name.startswith(f"{known}.") for known in JOBS_MAY_IMPORT)
    ]
    assert not wrong


def test_no_circle():
    """Of imports at module level, file by file."""
    graph: dict[str, set[str]] = {}
    modules = {".".join(path.relative_to(SOURCE.parent).with_suffix("").parts): path for path in FILES}
    for name, path in modules.items():
        graph[name] = {
            target for _, target in imported(at_import(parsed(path))) if target in modules and target != name
        }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " → ".join((*trail, name))
        if name not in done:
            for target in graph[name]:
                visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_torch_is_where_tensors_are():
    heavy = [
        f"{name_of(path)}:{line} imports {name}"
        for path in FILES
        if not name_of(path).startswith(HOLD_TENSORS)
        for line, name in imported(at_import(parsed(path)))
        if name.split(".")[0] in HEAVY
    ]
    assert not heavy


def test_the_law_of_files():
    wrong = []
    for path in FILES:
        name, tree = name_of(path), parsed(path)
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]
        broad = [
            item for item in handlers if item.type is None or ast.unparse(item.type) in ("Exception", "BaseException")
        ]
        wrong += [] if ast.get_docstring(tree) else [f"{name}: a file says what it is for"]
        wrong += [f"{name}: a name that says nothing"] if path.stem in ("utils", "helpers", "common", "misc") else []
        wrong += [
            f"{name}:{call.lineno} prints"
            for call in calls
            if isinstance(call.func, ast.Name) and call.func.id == "print"
        ]
        # What is thrown away when Python runs with -O is no check of input.
        wrong += [f"{name}:{node.lineno} asserts" for node in ast.walk(tree) if isinstance(node, ast.Assert)]
        wrong += [f"{name}: catches everything"] if broad and name not in MAY_CATCH_ALL else []
    assert not wrong


def test_only_training_imports_trl():
    users = {
        package_of(path)
        for path in FILES
        for _, name in imported(ast.walk(parsed(path)))
        if name.split(".")[0] == "trl"
    }
    assert users == {"train"}


# More than seven parameters; to be shortened, never lengthened.
LONG_SIGNATURES = {
    "gradients/fold.py: FoldedLinear.forward",  # autograd gives every input an argument of its own
}


def signatures(node: ast.AST, scope: tuple[str, ...] = ()) -> Iterator[tuple[str, int, bool]]:
    """Qualified name, parameters beside self and cls, and whether it is a command of typer's, of every function.

    Of public functions, keyword-only parameters do not count: their names stand in every call.
    """
    for child in ast.iter_child_nodes(node):
        inner = scope
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            given = child.args
            by_name = [] if child.name in merit.__all__ else given.kwonlyargs
            names = [item.arg for item in (*given.posonlyargs, *given.args, *by_name)]
            own = names[1:] if names[:1] in (["self"], ["cls"]) else names
            annotations = [ast.unparse(item.annotation) for item in given.args if item.annotation is not None]
            command = bool(child.decorator_list) or any("typer." in text for text in annotations)
            inner = (*scope, child.name)
            yield ".".join(inner), len(own), command
        elif isinstance(child, ast.ClassDef):
            inner = (*scope, child.name)
        yield from signatures(child, inner)


def test_no_function_takes_more_than_seven_parameters():
    """What dataclasses and pydantic make has no signature in the source; typer needs an argument an option."""
    long = {
        f"{name_of(path)}: {name}"
        for path in FILES
        for name, count, command in signatures(parsed(path))
        if count > 7 and not (command and package_of(path) == "cli")
    }
    assert long == LONG_SIGNATURES


def test_no_test_skips_what_the_developers_requirements_bring():
    """A test that needs a module of the extra `dev` fails without it. Only trackers of other companies are optional."""
    tests = Path(__file__).parents[1]
    asked = re.compile(r'importorskip\("(\w+)"')
    found = {name for path in tests.rglob("test_*.py") for name in asked.findall(path.read_text(encoding="utf-8"))}
    assert found <= {"wandb", "mlflow", "trackio"}
