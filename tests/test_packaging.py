"""What is installed: one version, types, metadata, and a lock that holds on any mirror."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import penult

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PENULT = (sys.executable, "-c", "from penult.cli.main import main; main()")
LOCK = (ROOT / "requirements.lock").read_text()


def requirements() -> list[Requirement]:
    """All that pyproject.toml asks for: dependencies, extras, what developing and building need."""
    project = PROJECT["project"]
    extras = [one for extra in project["optional-dependencies"].values() for one in extra]
    texts = [*project["dependencies"], *extras, *PROJECT["dependency-groups"]["dev"]]
    texts += PROJECT["build-system"]["requires"]
    return [one for one in map(Requirement, texts) if one.name != "penult"]


def pins() -> list[tuple[str, str, list[str]]]:
    """The lock: name, version and hashes; a package may have one version for each Python."""
    entries = re.findall(r"^([a-z0-9][^\s=]*)==(\S+)(.*(?:\n +--.*)*)", LOCK, re.M)
    return [(name, number, re.findall(r"--hash=(\S+)", rest)) for name, number, rest in entries]


def test_there_is_one_version() -> None:
    assert "version" in PROJECT["project"]["dynamic"]
    done = subprocess.run([*PENULT, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["penult", penult.__version__]
    assert version("penult") == penult.__version__


def test_the_types_are_shipped() -> None:
    assert (files("penult") / "py.typed").is_file()


def test_the_lock_has_a_hash_of_everything_and_names_no_place() -> None:
    found = pins()
    lines = [line for line in LOCK.splitlines() if not line.lstrip().startswith(("#", "--hash"))]
    assert len(found) == len(lines) > 100
    for name, _, hashes in found:
        assert hashes, f"{name} has no hash"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in hashes), name
    assert not re.search(r"://|@|--(extra-)?index|--find-links|--trusted|file:", LOCK)


@pytest.mark.parametrize("asked", requirements(), ids=str)
def test_the_lock_is_what_the_project_asks_for(asked: Requirement) -> None:
    locked = [number for name, number, _ in pins() if name == canonicalize_name(asked.name)]
    assert locked, f"{asked.name} is not in requirements.lock: make lock"
    for number in locked:
        assert asked.specifier.contains(number), f"{number} is locked: make lock"


def test_libraries_that_change_the_stored_or_the_computed_have_upper_bounds() -> None:
    bounds = {one.name: {part.operator for part in one.specifier} for one in requirements()}
    for name in ("lancedb", "pylance", "transformers"):
        assert bounds[name] == {">=", "<"}


def test_the_page_says_what_installing_brings() -> None:
    """Every package of the base with a reason, and every extra."""
    page = (ROOT / "docs" / "installing.md").read_text("utf-8")
    base = page.partition("penult` brings")[2].partition("## Extras")[0]
    for one in map(Requirement, PROJECT["project"]["dependencies"]):
        assert re.search(rf"^\| [^|]*\b{re.escape(one.name)}\b[^|]* \| .+ \|$", base, re.M), (
            one.name
        )
    for extra in PROJECT["project"]["optional-dependencies"]:
        assert f"`{extra}`" in page.partition("## Extras")[2], extra
    assert all(version in page for version in CLAIMED)


def test_the_citation_can_be_read() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "type"} <= citation.keys()
    assert citation["license"] == PROJECT["project"]["license"]
    assert citation["repository-code"] == PROJECT["project"]["urls"]["Homepage"]
    assert [one["name"] for one in citation["authors"]] == [
        one["name"] for one in PROJECT["project"]["authors"]
    ]


FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_can_be_filled_in(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    if path.stem == "config":
        assert all({"name", "url", "about"} == link.keys() for link in form["contact_links"])
        return
    assert {"name", "description", "body"} <= form.keys()
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert any(field.get("validations", {}).get("required") for field in fields)
    ids = [field["id"] for field in fields]
    assert len(set(ids)) == len(ids)
    for command in re.findall(r"`penult (\w+)", path.read_text()):
        done = subprocess.run([*PENULT, command, "--help"], stdout=subprocess.DEVNULL)
        assert done.returncode == 0, f"penult {command} is no command"


def test_hooks_fetch_nothing() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [one["repo"] for one in hooks["repos"]] == ["local"]
    assert {hook["language"] for hook in hooks["repos"][0]["hooks"]} == {"system"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_page_of_the_explorer_is_in_a_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as found:
        names = {name.rpartition("/")[2] for name in found.namelist() if "/explorer/page/" in name}
    assert names == {"index.html", "main.js", "main.css", "LICENSES.txt"}


def test_a_wheel_has_code_page_and_classifier_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as found:
        names = [name for name in found.namelist() if ".dist-info/" not in name]
    assert all(name.startswith("penult/") for name in names)
    others = {name for name in names if not name.endswith(".py") and "/explorer/page/" not in name}
    demo = {name for name in others if name.startswith("penult/demo/")}
    assert {Path(name).suffix for name in demo} == {".flac", ".csv", ".md", ".json", ".safetensors"}
    assert others - demo <= {"penult/py.typed", "penult/viz/map_page.html", "penult/viz/map.html"}
    assert wheel.stat().st_size < 8_000_000


CLAIMED = [
    line.rpartition(" ")[2]
    for line in PROJECT["project"]["classifiers"]
    if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", line)
]


@pytest.mark.parametrize("python", [CLAIMED[0], CLAIMED[-1]])
def test_the_demo_runs_in_an_empty_environment(python: str, wheel: Path, tmp_path: Path) -> None:
    """The wheel and what it asks for, at the locked versions, in the oldest and in the newest
    Python that is claimed; where one is not on this machine, that is said."""
    uv = shutil.which("uv") or str(ROOT / ".uv" / "bin" / "uv")
    interpreter = find_python(python, uv)
    if interpreter is None:
        pytest.skip(f"there is no Python {python} here")
    subprocess.run([uv, "venv", "-q", "env", "--python", interpreter], cwd=tmp_path, check=True)
    own = tmp_path / "env" / "bin"
    install = [uv, "pip", "install", "-q", "--python", str(own / "python"), str(wheel)]
    constraints = tmp_path / "constraints.txt"
    constraints.write_text(re.sub(r" \\\\?\n +--hash=\S+", "", LOCK))
    subprocess.run([*install, "-c", str(constraints)], check=True, capture_output=True)
    done = subprocess.run(
        [own / "penult", "demo", "--json"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["embed"]
    assert "pip install 'penult[map]'" in done.stderr  # the sentence that helps


def find_python(version: str, uv: str) -> str | None:
    """The interpreter of a version on this machine: the one at hand, one on the path, or one that
    lies beside others."""
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        return sys.executable
    found = subprocess.run(
        [uv, "python", "find", "--no-python-downloads", version], capture_output=True, text=True
    )
    if found.returncode == 0:
        return found.stdout.strip()
    beside = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    return str(beside[-1]) if beside else None


def test_npm_packages_have_hashes_and_name_no_place() -> None:
    lock = (ROOT / "explorer" / "package-lock.json").read_text()
    packages = json.loads(lock)["packages"]
    assert len(packages) > 5 and "resolved" not in lock and "registry" not in lock
    assert all("integrity" in one for name, one in packages.items() if name)
