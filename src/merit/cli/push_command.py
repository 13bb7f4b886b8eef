"""`merit push`: the merged model, its card and its story to the Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from merit.cli.options import Json, Run

if TYPE_CHECKING:
    from merit.push.contents import Contents


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(rich_help_panel="Run")(push)


def push(
    run: Run,
    repo: Annotated[str, typer.Argument(metavar="REPO", help="ORGANISATION/NAME on the Hub.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and list what would go.")] = False,
    public: Annotated[bool, typer.Option("--public", help="For everyone to see. A new repository is private.")] = False,
    model_only: Annotated[
        bool, typer.Option("--model-only", help="Without the report, configuration, groups and table.")
    ] = False,
    license: Annotated[str | None, typer.Option(help="Written into the card, e.g. apache-2.0.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to push to. Default: main.")] = None,
    pull_request: Annotated[bool, typer.Option("--pull-request", help="Open a pull request instead.")] = False,
    message: Annotated[str, typer.Option(help="The commit's message.")] = "Merged with merit",
    json: Json = False,
) -> None:
    """The merged model of a run, or any folder that merit merged, to the Hub. Checks it, its card, and for secrets."""
    from merit.cli.console import print_table, say, say_json, show_progress
    from merit.push.contents import check_contents, gather
    from merit.push.hub import check_repo, push_items

    check_repo(repo)
    with show_progress() as progress:
        contents = gather(run, model_only=model_only)
        contents, notes = check_contents(contents, license=license, progress=progress)
        if not json:
            print_table(_rows(contents))
            for note in notes:
                say(f"· {note}")
        url = None
        if not dry_run:
            url = push_items(
                contents.items,
                repo,
                message=message,
                private=not public,
                revision=revision,
                pull_request=pull_request,
            )
    if json:
        files = [{"file": item.name, "bytes": item.size} for item in contents.items]
        left = [item.model_dump() for item in contents.left_out]
        say_json({"repo": repo, "private": not public, "files": files, "left_out": left, "notes": notes, "url": url})
    else:
        say(url or f"nothing was sent; without --dry-run this goes to {repo}, {'public' if public else 'private'}")


def _rows(contents: Contents) -> list[list[str]]:
    rows = [["file", "bytes", ""], *([item.name, f"{item.size:,}", ""] for item in contents.items)]
    rows += [[item.name, "–", f"stays here: {item.reason}"] for item in contents.left_out]
    return [*rows, ["together", f"{sum(item.size for item in contents.items):,}", ""]]
