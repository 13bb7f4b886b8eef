"""Places elsewhere: what cannot be opened is one clear line that names the URL and the setting."""

from __future__ import annotations

import pytest

from merit.base.errors import InputError
from merit.base.files import is_url, open_url, url_errors, url_of


def test_a_url_that_went_through_a_path() -> None:
    assert [is_url(text) for text in ("s3://b/k", "s3:/b/k", "C:\\x", "/here", "here")] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert url_of("s3:/b/k") == url_of("s3://b/k") == "s3://b/k"
    assert url_of("file:/tmp/x") == "file:///tmp/x"


def test_a_folder_and_its_url_are_one_place(tmp_path) -> None:
    assert open_url(str(tmp_path))[1] == open_url(f"file:{tmp_path}")[1] == str(tmp_path)


def test_what_cannot_be_opened_names_url_and_setting() -> None:
    with pytest.raises(InputError) as caught:
        open_url("nosuch://x/y", field="launch.store")
    assert str(caught.value).startswith("nosuch://x/y: `launch.store`: cannot be opened: ")
    assert len(str(caught.value).splitlines()) == 1


def test_errors_of_the_http_client_count() -> None:
    import aiohttp

    assert issubclass(aiohttp.ClientConnectionError, url_errors())
    assert issubclass(ConnectionError, url_errors())
