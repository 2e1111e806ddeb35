"""Who may ask the explorer: the browser that has the token, and pages of no other origin."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from live_explorer import exploring
from penult.explorer.gate import kept_token


@pytest.fixture(scope="module")
def clips(demo_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: an explorer keeps the map that it makes."""
    return Path(shutil.copytree(demo_collection, tmp_path_factory.mktemp("gate") / "words.lance"))


@pytest.fixture(scope="module")
def address(clips: Path) -> Iterator[str]:
    with exploring(clips) as url:
        yield url


@pytest.fixture
def own(address: str) -> str:
    found = urlsplit(address)
    return f"{found.scheme}://{found.netloc}"


@pytest.fixture
def cookies(address: str) -> dict[str, str]:
    return dict(httpx.get(address).cookies)


def test_the_address_becomes_a_cookie_that_scripts_and_other_sites_do_not_get(address: str) -> None:
    answer = httpx.get(address)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "domain" not in cookie
    with httpx.Client(follow_redirects=True) as client:
        page = client.get(address)
        assert page.status_code == 200 and page.url.query == b""
        assert page.headers["content-type"].startswith("text/html")


CLOSED = ("/", "/main.js", "/api/state", "/media/audio", "/nothing", "/?token=", "/?token=é")


@pytest.mark.parametrize("path", CLOSED)
def test_nothing_is_answered_without_the_token(own: str, path: str) -> None:
    answer = httpx.get(own + path)
    assert answer.status_code == 401 and "penult explore" in answer.text
    wrong = httpx.get(own + path, cookies={f"penult-{urlsplit(own).port}": "x" * 43})
    assert wrong.status_code == 401


def test_the_token_opens_nothing_but_the_page(own: str, address: str) -> None:
    token = parse_qs(urlsplit(address).query)["token"][0]
    assert len(token) >= 32
    assert httpx.get(f"{own}/api/state?token={token}").status_code == 401


@pytest.mark.parametrize("other", ['a="b', "{x}=1", "a b=c", "a=b;;", "penult=x"])
def test_cookies_of_other_programs_on_this_machine_do_no_harm(
    own: str, cookies: dict[str, str], other: str
) -> None:
    (name, value), *_ = cookies.items()
    for header in (f"{other}; {name}={value}", f"{name}={value}; {other}"):
        assert httpx.get(own + "/", headers={"cookie": header}).status_code == 200
    assert httpx.get(own + "/", headers={"cookie": other}).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site"},
        {"origin": "http://127.0.0.1:1"},
        {"origin": "null"},
        {"host": "evil.example"},
    ],
    ids=str,
)
def test_pages_of_other_origins_get_nothing(
    own: str, cookies: dict[str, str], headers: dict[str, str]
) -> None:
    assert httpx.get(own + "/", cookies=cookies).status_code == 200
    assert httpx.get(own + "/", cookies=cookies, headers=headers).status_code == 403


def test_no_script_but_the_pages_own_may_run(own: str, cookies: dict[str, str]) -> None:
    for path in ("/", "/main.js", "/nothing"):
        found = httpx.get(own + path, cookies=cookies).headers
        parts = found["content-security-policy"].split("; ")
        policy = dict(part.split(" ", 1) for part in parts)
        assert policy["default-src"] == "'none'" and policy["script-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'" and policy["connect-src"] == "'self'"
        assert found["x-content-type-options"] == "nosniff"
        assert found["referrer-policy"] == "no-referrer"
    assert "<script>" not in httpx.get(own + "/", cookies=cookies).text


def test_it_listens_on_this_machine_alone(address: str) -> None:
    port = urlsplit(address).port
    others = {one[4][0] for one in socket.getaddrinfo(socket.gethostname(), None)}
    for host in others - {"127.0.0.1", "127.0.1.1", "::1"}:
        with pytest.raises(OSError):
            socket.create_connection((host, port), timeout=1)


def test_a_page_goes_on_where_the_command_is_started_again(clips: Path, tmp_path: Path) -> None:
    with exploring(clips, cache=tmp_path) as first:
        port = str(urlsplit(first).port)
        cookies = dict(httpx.get(first).cookies)
    with exploring(clips, "--port", port, cache=tmp_path) as second:
        assert second == first
        assert httpx.get(f"http://127.0.0.1:{port}/", cookies=cookies).status_code == 200


def test_the_kept_token_is_for_its_user_alone_and_each_collection_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENULT_CACHE", str(tmp_path))
    token = kept_token(tmp_path / "a.lance")
    assert token == kept_token(tmp_path / "a.lance") != kept_token(tmp_path / "b.lance")
    (tmp_path / "explorer").chmod(0o755)
    for file in (tmp_path / "explorer").iterdir():
        assert file.stat().st_mode & 0o077 == 0
        file.chmod(0o644)
    assert kept_token(tmp_path / "a.lance") != token  # others may have read it
