"""Where fetched files are kept: one folder, whoever fetches them."""

from pathlib import Path

import pytest

from cit_curate.storage.cache_folder import cache_folder
from cit_curate.storage.remote_cache import copies_folder


def test_the_cache_folder_is_cit_cache_or_in_the_users_caches_or_below_home(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.delenv("CIT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path("/home/ada/.cache/cit")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches/ada")
    assert cache_folder() == Path("/caches/ada/cit")
    monkeypatch.setenv("CIT_CACHE", "~/pictures")
    assert cache_folder() == Path("/home/ada/pictures")


def test_a_variable_that_is_empty_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("CIT_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path("/home/ada/.cache/cit")


def test_copies_of_remote_files_have_a_folder_of_their_own_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CIT_CACHE", "/caches/ada")
    assert copies_folder() == Path("/caches/ada/remote")
