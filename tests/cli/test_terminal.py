"""Names and messages are shown, never obeyed; a closed or full output ends the program without a traceback."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import Command, config_text, start
from rich.console import Console

from merit.base.errors import InputError, Problems, StageError, printable
from merit.cli import console

HOSTILE = "[red]x[/red] :skull: [link=http://a]b[/link] \x1b[2J\x9b31m\x07\x7f\u202e\r\nz"
SHOWN = "[red]x[/red] :skull: [link=http://a]b[/link] \\x1b[2J\\x9b31m\\x07\\x7f\\u202e\\r\\nz"


@pytest.fixture
def merit(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


def test_printable():
    assert printable(HOSTILE) == SHOWN
    assert printable("θ0 日本 é") == "θ0 日本 é"
    assert printable("\udc80") == "\\udc80"


@pytest.mark.parametrize("error", [StageError(HOSTILE), InputError(HOSTILE), InputError("m", field=HOSTILE)])
def test_errors_are_one_harmless_line(error):
    assert SHOWN in str(error)
    assert str(error).isprintable()


def test_several_problems_are_a_line_each():
    both = Problems([InputError("a\nb", file="f"), InputError("c", line=3)])
    assert str(both) == "f: a\\nb\nline 3: c"


def test_everything_that_is_printed(capsys):
    console.say(f"one {HOSTILE.replace(chr(10), '')}")
    console.print_table([["name", HOSTILE], [HOSTILE, "1"]])
    console.complain(HOSTILE.replace("\n", ""))
    console.show_messages()
    out, err = capsys.readouterr()
    assert SHOWN.replace("\\n", "") in out
    assert out.count(SHOWN) >= 1
    assert SHOWN.replace("\\n", "") in err
    for stream in (out, err):
        assert set(stream) - set("\n") == {char for char in stream if char.isprintable()}


def test_lines_are_not_wrapped(capsys):
    console.say("word " * 100)
    console.say_json({"a": "é\x9b " * 100})
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 2
    assert out.isascii()
    assert json.loads(out.splitlines()[1]) == {"a": "é\x9b " * 100}


def test_bars(monkeypatch):
    """On a terminal, where markup would count."""
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=300, markup=False, emoji=False, highlight=False)
    monkeypatch.setattr(console, "stderr", terminal)
    progress = console.TerminalProgress()
    with progress.live(), progress.bar(HOSTILE, total=2) as bar:
        bar.update(1, note=HOSTILE)
        progress._progress.refresh()
    text = screen.getvalue()
    assert text.count(SHOWN) >= 2
    assert "\x1b[2J" not in text
    assert "\x9b" not in text


def on_a_terminal(monkeypatch, **env: str) -> io.StringIO:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    screen = io.StringIO()
    monkeypatch.setattr(console, "stderr", Console(file=screen, force_terminal=True, width=160, highlight=False))
    return screen


def test_a_bar_tells_how_fast_and_how_long(monkeypatch):
    clock = [0.0]
    screen = on_a_terminal(monkeypatch)
    progress = console.TerminalProgress(lambda: clock[0])
    with progress.live(), progress.bar("train", total=12_000, unit="tok") as bar:
        for done in (0, 1_000, 2_000):
            bar.update(done, note="gcd")
            clock[0] += 4
        progress._progress.refresh()
    assert "2,000/12,000 tok, 250 tok/s" in screen.getvalue()
    assert "0:00:40" in screen.getvalue()


def test_no_color(monkeypatch):
    for env, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        screen = on_a_terminal(monkeypatch, TERM="xterm-256color", **env)
        progress = console.TerminalProgress()
        with progress.live(), progress.bar("train", total=2, unit="step") as bar:
            bar.update(1)
        assert bool(re.search(r"\x1b\[[0-9;]*3[0-9]", screen.getvalue())) is coloured


def test_a_log_gets_a_line_now_and_then(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    with console.PlainProgress().live() as progress:
        with progress.bar("merit branch 0", total=1, unit="step") as bar:
            for done in range(400, 500):  # it resumed at step 400
                bar.update(done, total=1000, note="loss 1.2")
                clock[0] += 1
        with progress.bar("merit branch 1", total=1, unit="step") as bar:
            bar.update(0, total=1, note="Slurm: pending (Resources)")
            clock[0] += 100
            for done in range(400, 420):
                bar.update(done, total=1000)
                clock[0] += 1
        with progress.bar("data", total=4.0) as bar:
            for share in (0.0, 1.0, 2.0):
                bar.update(share)
                clock[0] += 20
    assert capsys.readouterr().err.splitlines() == [
        *(f"merit branch 0: {400 + n}/1,000 step, 1 step/s, 0:0{(600 - n) // 60}:{(600 - n) % 60:02d} left, loss 1.2"
          for n in range(15, 100, 15)),
        "merit branch 1: 401/1,000 step, 1 step/s, 0:09:59 left",
        "merit branch 1: 416/1,000 step, 1 step/s, 0:09:44 left",
        "data: 25%, 0:01:00 left",
        "data: 50%, 0:00:40 left",
    ]  # fmt: skip


def test_a_log_tells_the_time_left_by_the_speed_of_now(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    with console.PlainProgress().live() as progress, progress.bar("merit branch 0", total=100_000, unit="step") as bar:
        done = 0
        for speed, seconds in ((1, 3600), (10, 600)):  # another program has ended
            for _ in range(seconds):
                bar.update(done)
                clock[0] += 1
                done += speed
    said = capsys.readouterr().err.splitlines()
    assert "1 step/s" in said[200]
    assert "10 step/s" in said[-1]


def test_a_log_gets_no_bars_of_other_libraries(monkeypatch):
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    with console.show_progress():
        assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"
        assert os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] == "1"


def test_a_hostile_file_name_and_name_of_a_dataset(merit: Command, tiny_model, four_files):
    name = "[red]x :skull:"
    file = four_files / "merit.yaml"
    file.write_text(config_text(tiny_model, {f'"{name}"': '{path: "a\\x1b[2Jb.jsonl"}'}))
    outcome = merit("check", file)
    assert outcome.lines == [f"a\\x1b[2Jb.jsonl: `mixture.{name}.path`: no such file; did you mean `chat.jsonl`?"]
    (four_files / "a\x1b[2Jb.jsonl").write_text((four_files / "chat.jsonl").read_text().replace("say", "tell"))
    outcome = merit("check", file)
    assert outcome.code == 0
    assert name in outcome.out
    assert "\x1b" not in outcome.out
    assert merit("run", file, "--until", "split").code == 0
    inside = [path.relative_to(four_files) for path in (four_files / "runs" / "merit").rglob("*")]
    assert all("[red]" not in str(path) for path in inside)


def test_marks_stand_at_what_carries_loss(merit: Command, tiny_model, four_files):
    """The prompt repeats the answer."""
    for name in ("chat", "copy", "shout", "last"):
        lines = [json.dumps({"prompt": f"{name} {i}", "completion": f"{name} {i}"}) for i in range(40)]
        (four_files / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    file = four_files / "merit.yaml"
    file.write_text(config_text(tiny_model, {name: f"{{path: {name}.jsonl}}" for name in ("copy", "shout", "last")}))
    out = merit("check", file).out
    assert "assistant\n⟦chat " in out
    assert "user\n⟦" not in out


def through_shell(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    merit = f"{sys.executable} -m merit"
    command = ["bash", "-c", f"set -o pipefail; {script.replace('MERIT', merit)}"]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=os.environ | {"LC_ALL": "C.UTF-8"})


@pytest.mark.parametrize("command", ["MERIT schema | true", "MERIT env | true", "MERIT --help | true"])
def test_a_closed_pipe(command, tmp_path):
    done = through_shell(command, tmp_path)
    assert done.stderr == ""
    # Whether the reader was gone before the text was written is chance.
    assert done.returncode in (0, 1, 141)


def test_the_first_line_is_enough(tmp_path):
    done = through_shell("MERIT schema | head -1", tmp_path)
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_closed_streams(tmp_path):
    assert through_shell("MERIT schema >&-", tmp_path).returncode == 0
    assert through_shell("MERIT run nowhere.yaml 2>&-", tmp_path).returncode == 2


def test_a_full_output(tmp_path):
    done = through_shell("MERIT schema >/dev/full", tmp_path)
    assert done.returncode == 1
    assert done.stderr == "output: the disk is full; free some space and run again to resume\n"


def test_a_locale_without_unicode(tiny_model, four_files):
    file = four_files / "merit.yaml"
    file.write_text(config_text(tiny_model, {'"日本"': "{path: nowhere.jsonl}"}), encoding="utf-8")
    process = start("check", file, env={"PYTHONIOENCODING": "ascii"})
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err == "nowhere.jsonl: `mixture.\\u65e5\\u672c.path`: no such file; did you mean `chat.jsonl`?\n"
    assert "\\u27e6" in out  # the mark of what carries loss


def test_the_reason_is_the_last_line_of_a_log(tmp_path):
    """Libraries print to a buffered stdout; a job's log holds both, and its last line is what the driver repeats."""
    code = """
import sys
from merit.cli.main import answer
from merit.base.errors import InputError
def action():
    print("{'train_runtime': 1}")
    raise InputError("cannot write here")
sys.exit(answer(action))
"""
    log = tmp_path / "output.txt"
    with log.open("wb") as output:
        done = subprocess.run([sys.executable, "-c", code], stdout=output, stderr=output, check=False)
    assert done.returncode == 2
    assert log.read_text() == "{'train_runtime': 1}\ncannot write here\n"


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("name", ["merit branch 0", "a-baseline-with-a-name/round-1 branch 0"])
def test_a_bar_is_one_line_on_any_terminal(monkeypatch, width, name):
    clock = [0.0]
    screen = io.StringIO()
    monkeypatch.setattr(console, "stderr", Console(file=screen, width=width, highlight=False))
    progress = console.TerminalProgress(lambda: clock[0])
    with progress.bar(name, total=1_204_000, unit="tok") as bar:
        for done in (0, 1_000, 200_000):
            bar.update(done, note="loss 1.234, a long note about what is being done at the moment")
            clock[0] += 10
        console.stderr.print(progress._progress.get_renderable())
    lines = screen.getvalue().splitlines()
    assert len(lines) == 1
    assert "200,000/1,204,000 tok, 19,900 tok/s" in lines[0]
    assert "0:00:51 left" in lines[0]
    assert ("0:00:30" in lines[0]) is (width >= 100)  # what has passed


def test_a_bar_that_has_ended_makes_room(monkeypatch):
    """Forty bars one after another on a screen of 25 lines: the one that runs is always seen."""
    clock = [0.0]
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=120, height=25, highlight=False)
    monkeypatch.setattr(console, "stderr", terminal)
    progress = console.TerminalProgress(lambda: clock[0])
    with progress.live():
        for number in range(40):
            with progress.bar(f"branch {number}", total=2, unit="step") as bar:
                for done in (0, 1, 2):
                    bar.update(done)
                    clock[0] += number / 4
                assert [task.description for task in progress._progress.tasks] == [f"branch {number}"]
    told = re.findall(r"branch (\d+): 2/2 step, [\d.]+ step/s, (\d+:\d\d:\d\d)", screen.getvalue())
    assert [int(number) for number, _ in told] == [*range(2, 40)]  # the first two took a moment
    assert told[-1][1] == "0:00:20"


def test_a_bar_that_was_cut_short_claims_nothing(monkeypatch):
    clock = [0.0]
    screen = on_a_terminal(monkeypatch)
    progress = console.TerminalProgress(lambda: clock[0])
    with progress.live(), progress.bar("merit branch 0", total=50, unit="step") as bar:
        bar.update(20)
        clock[0] = 60
    assert "50/50" not in screen.getvalue()


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_a_screen(monkeypatch, stream: str, width: int, **options: bool) -> Screen:
    screen = Screen()
    monkeypatch.setattr(console, stream, Console(file=screen, width=width, highlight=False, **options))
    return screen


def test_a_terminal_breaks_lines_between_words(monkeypatch):
    path = f"/folder/{'long' * 20}/report.html"
    for stream, print_lines in (("stdout", console.say), ("stderr", console.complain)):
        screen = on_a_screen(monkeypatch, stream, 40)
        print_lines(f"  {'word ' * 12}\nreport: {path}")
        lines = screen.getvalue().splitlines()
        assert lines == ["  " + " ".join(["word"] * 7), "  " + " ".join(["word"] * 5), "report:", path]


def test_what_others_wrote_is_not_broken(monkeypatch):
    screen = on_a_screen(monkeypatch, "stdout", 40)
    console.say_as_is("word " * 20)
    assert screen.getvalue() == f"{'word ' * 20}\n"


NOTEBOOK = {"TERM": "xterm-color", "GIT_PAGER": "cat"}


@pytest.mark.parametrize(
    ("env", "moving"),
    [
        ({}, True),
        ({"JPY_PARENT_PID": "1"}, False),
        (NOTEBOOK, False),
        ({"GIT_PAGER": "cat"}, True),
        ({"TERM": "dumb"}, False),
    ],
)
def test_bars_move_on_terminals_alone(monkeypatch, env, moving):
    for name in ("JPY_PARENT_PID", "GIT_PAGER", "NO_COLOR", "FORCE_COLOR", *console._OTHERS_BARS):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in {"TERM": "xterm", **env}.items():
        monkeypatch.setenv(name, value)
    screen = on_a_screen(monkeypatch, "stderr", 80)
    with console.show_progress() as progress:
        assert isinstance(progress, console.TerminalProgress) is moving
    assert ("\x1b" in screen.getvalue()) is moving


def test_a_log_has_no_bars_even_where_colour_is_forced(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(console, "stderr", Console(stderr=True, highlight=False))
    assert console.stderr.is_terminal
    with console.show_progress() as progress, progress.bar("train", total=2) as bar:
        bar.update(1)
    assert "\x1b" not in capsys.readouterr().err


TABLE = [
    ["stage", "supervised tokens", "time", "what is moved"],
    ["train merit (2 branches)", "3,878 k", "12 s", "561 kB for all methods"],
    ["train joint", "3,878 k", "12 s", "11 MB"],
]


@pytest.mark.parametrize("width", [30, 50, 70, 200])
def test_a_table_loses_nothing_on_a_narrow_terminal(monkeypatch, width):
    screen = on_a_screen(monkeypatch, "stdout", width, force_terminal=False)
    console.print_table(TABLE)
    text = screen.getvalue()
    assert "…" not in text
    assert all(len(line) <= width for line in text.splitlines())
    flat = " ".join(text.split())
    for row in TABLE[1:]:
        for cell in row:
            assert cell in flat
    assert ("what is moved 561 kB" in flat) is (width < 70)
