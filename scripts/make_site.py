"""Build the site: docs/, the tutorial and the reference as pages that open from a folder.

    python scripts/make_site.py [--work FOLDER]

Pages are written into FOLDER/site-source first (build/site-source in the checkout): those of docs/
with links that lead out of it turned to copies, the notebook as a page with its pictures beside it,
one page of the reference for each section of docs/reference.toml. Any warning is an error: a link
or a name that leads nowhere, a name without a docstring.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import make_reference
import nbformat

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SETTINGS = ROOT / "mkdocs.yml"
# Pages outside of docs/ that its pages lead to, and what they are called in the site.
OTHERS = {
    "README.md": "index.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "license.md",
    "CITATION.cff": "citation.md",
    "tests/README.md": "tests.md",
    "docs/decisions": "decisions/index.md",
    "src/penult/demo/classifier/README.md": "demo-classifier.md",
}
LINK = re.compile(r"(?P<words>\[[^]\[]*\])\((?P<aim>[^)\s#]+)(?P<anchor>#[^)]*)?\)")
FENCE = re.compile(r"(^```.*?^```$)", re.S | re.M)


def relinked(text: str, page: Path) -> str:
    """A page of the checkout with its links as they are in the site.

    Raises:
        SystemExit: a link leads nowhere.
    """
    to = target(page) or Path()

    def turned(found: re.Match[str]) -> str:
        link = found["aim"]
        if "://" in link or link.startswith("mailto:"):
            return found[0]
        aim = Path(os.path.normpath(page.parent / link))
        if not aim.exists():
            sys.exit(f"{page.relative_to(ROOT)}: {link} leads nowhere")
        if (there := target(aim)) is None:  # code, which the site has not
            return found["words"][1:-1]
        return f"{found['words']}({os.path.relpath(there, to.parent)}{found['anchor'] or ''})"

    # Code is no link: `x[a](b)` stays.
    return "".join(part if part.startswith("```") else LINK.sub(turned, part)
                   for part in FENCE.split(text))  # fmt: skip


def target(path: Path) -> Path | None:
    """Where a file of the checkout lies in the site, relative to its root; None: nowhere."""
    inside = path.relative_to(ROOT)
    if str(inside) in OTHERS:
        return Path(OTHERS[str(inside)])
    if DOCS not in path.parents:
        return None
    inside = path.relative_to(DOCS)
    return inside.with_suffix(".md") if path.suffix == ".ipynb" else inside


def notebook_page(path: Path, out: Path) -> None:
    """The notebook as it was last run as a page, with its pictures beside it."""
    parts = []
    for number, cell in enumerate(nbformat.read(path, as_version=4).cells):
        if cell.cell_type == "markdown":
            parts.append(relinked(cell.source, path))
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for place, output in enumerate(cell.outputs):
            parts.append(_output(output, out, f"{path.stem}-{number}-{place}"))
    (out / f"{path.stem}.md").write_text("\n\n".join(parts) + "\n", "utf-8")


def _output(output: Any, out: Path, name: str) -> str:
    if output.output_type == "stream":
        return f"```{{ .text .output .no-copy }}\n{output.text.rstrip()}\n```"
    data = output.data
    if "image/png" in data:
        (out / f"{name}.png").write_bytes(base64.b64decode(data["image/png"]))
        return f"![{data['text/plain']}]({name}.png)"
    sounds = re.findall(r'src="(data:audio/[^"]+)"', data.get("text/html", ""))
    assert sounds, f"an output of {name} that the site does not show: {sorted(data)}"
    return "\n".join(
        f'<audio controls preload="metadata" src="{sound}"></audio>' for sound in sounds
    )


def stage(out: Path) -> None:
    """Write what the site is made of."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for path in sorted(DOCS.rglob("*")):
        if path.is_dir() or path.suffix == ".toml":
            continue
        to = out / (target(path) or "")
        to.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            to.write_text(relinked(path.read_text("utf-8"), path), "utf-8")
        elif path.suffix == ".ipynb":
            notebook_page(path, out)
        else:
            shutil.copyfile(path, to)
    (out / "decisions" / "index.md").write_text(_decisions(), "utf-8")
    for name, page in OTHERS.items():
        if name not in (
            "README.md",
            "docs/decisions",
        ):  # docs/index.md takes the place of the first
            text = (ROOT / name).read_text("utf-8")
            text = (
                relinked(text, ROOT / name)
                if name.endswith(".md")
                else f"# {name}\n\n```text\n{text}\n```\n"
            )
            text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S)  # a model card's head
            (out / page).write_text(text, "utf-8")
    for file, text in make_reference.pages().items():
        (out / "reference").mkdir(exist_ok=True)
        (out / "reference" / file).write_text(text, "utf-8")


def _decisions() -> str:
    """The list of decisions, the newest first."""
    rows = ["# Decisions", "Why things are as they are, and what did not work.", ""]
    for path in sorted(DOCS.glob("decisions/*.md"), reverse=True):
        title = path.read_text("utf-8").partition("\n")[0].removeprefix("# ")
        rows.append(f"- [{title}]({path.name})")
    return "\n".join(rows) + "\n"


def settings() -> str:
    """The settings with the pages whose names follow from the code and the folder in the menu."""
    reference = [f"reference/{name}" for name in make_reference.pages()]
    decisions = [
        f"decisions/{path.name}" for path in sorted(DOCS.glob("decisions/*.md"), reverse=True)
    ]
    text = SETTINGS.read_text("utf-8")
    for mark, pages in (
        ("# reference", reference),
        ("# decisions", ["decisions/index.md", *decisions]),
    ):
        assert mark in text
        text = text.replace(mark, "\n".join(f"      - {page}" for page in pages), 1)
    for inside in ("src", "scripts/once_properties.py"):  # the settings are read in another folder
        text = text.replace(f"[{inside}]", f"[{ROOT / inside}]")
    return text


def build(work: Path) -> None:
    """Write pages and settings into a folder, and build the site there.

    Raises:
        SystemExit: a warning, in the builder's words.
    """
    stage(work / "site-source")
    file = work / "mkdocs.yml"
    file.write_text(settings(), "utf-8")
    done = build_strictly(file)
    if done.returncode:
        told = done.stderr.partition("Traceback")[0]
        sys.exit("\n".join(part for part in (done.stdout, told) if part.strip()))


def build_strictly(file: Path) -> subprocess.CompletedProcess[str]:
    """Run the builder; any warning is an error."""
    words = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "-f", str(file)]
    return subprocess.run(words, check=False, capture_output=True, text=True)


def main() -> None:
    """Build it, or say what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "build", help="the site is WORK/site")
    work = parser.parse_args().work.resolve()
    if missing := make_reference.missing_docstrings(make_reference.sections()):
        sys.exit(f"no docstring: {', '.join(missing)}")
    build(work)
    print(work / "site" / "index.html")


if __name__ == "__main__":
    main()
