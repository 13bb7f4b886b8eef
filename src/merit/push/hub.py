"""The upload: one commit, so that the repository never holds half a model."""

from __future__ import annotations

import os
from typing import Any

from merit.base.errors import InputError, StageError
from merit.push.contents import Item

_OFF = ("1", "on", "true", "yes")


def push_items(
    items: list[Item],
    repo: str,
    *,
    message: str,
    private: bool = True,
    revision: str | None = None,
    pull_request: bool = False,
    api: Any = None,
) -> str:
    """Makes the repository if there is none, and commits all of `items` at once. Returns where they can be seen.

    Large files that an earlier, broken-off push has brought there are not sent again. Files that are in the repository
    and not among `items` stay.

    Args:
        private: of a new repository; one that is there and public is then refused.
        api: a `huggingface_hub.HfApi`; tests give one of their own.

    Raises:
        InputError: no Hub id; offline; not logged in; the repository is public and should not be.
        StageError: the Hub refused, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RepositoryNotFoundError
    from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]

    check_repo(repo)
    if api is None:
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in _OFF:
            raise InputError("nothing can be pushed while HF_HUB_OFFLINE is set; --dry-run shows what would go")
        api = HfApi()
    try:
        api.whoami()
        try:
            public = not api.model_info(repo).private
        except RepositoryNotFoundError:
            api.create_repo(repo, private=private, exist_ok=True)
        else:
            if public and private:
                raise InputError("this repository exists and is public; add --public to push to it", field="REPO")
        operations = [CommitOperationAdd(path_in_repo=item.name, path_or_fileobj=item.content) for item in items]
        done = api.create_commit(
            repo, operations, commit_message=message, revision=revision, create_pr=pull_request or None
        )
    except LocalTokenNotFoundError:
        raise InputError("not logged in to the Hub; run `hf auth login`, or set HF_TOKEN") from None
    except HfHubHTTPError as error:
        if getattr(error.response, "status_code", None) == 401:
            raise InputError("the Hub does not know this token; run `hf auth login`, or set HF_TOKEN") from None
        raise StageError(f"the Hub refused: {_line(error)}; push again to resume") from error
    except (OSError, TransportError) as error:
        raise StageError(f"the Hub cannot be reached: {_line(error)}; push again to resume") from error
    return str(getattr(done, "pr_url", None) or getattr(done, "commit_url", ""))


def check_repo(repo: str) -> None:
    """Refuses what could not be the name of a repository.

    Raises:
        InputError: `repo` is neither `NAME` nor `ORGANISATION/NAME`.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise InputError(f"{repo!r} is no Hub id: ORGANISATION/NAME", field="REPO") from None


def _line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
