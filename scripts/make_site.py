"""Build the site: docs/, the tutorial and the reference as pages that open from a folder.

    python scripts/make_site.py [--out FOLDER]

Pages are written into build/site-source first: those of docs/ with links that lead out of it turned to
copies, the notebook as a page with its pictures beside it, one page of the reference for each section
of docs/reference.toml. Any warning is an error: a page that is in no menu, a link or a name that leads
nowhere, a name without a docstring.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import make_reference


ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SOURCE = ROOT / "build" / "site-source"
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
    """The notebook with its outputs as a page, and its pictures beside it."""
    from nbconvert import MarkdownExporter

    text, resources = MarkdownExporter().from_filename(str(path), {"output_files_dir": "tutorial"})
    # Outputs are indented by four spaces: told from code by a class of their own.
    text = re.sub(r"(?:^    .*\n|^\n(?=    ))+", _output, text, flags=re.M)
    text = text.replace("style>\n", "style>")
    (out / "tutorial.md").write_text(text, "utf-8")
    for name, content in resources["outputs"].items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)


def _output(found: re.Match[str]) -> str:
    lines = [line.removeprefix("    ") for line in found[0].strip("\n").split("\n")]
    body = "\n".join(line.rstrip() for line in lines)
    if "<audio" in body or not body.strip():
        return f"\n{_audio(body)}\n"
    return "\n```{ .text .output .no-copy }\n" + body + "\n```\n\n"


def _audio(body: str) -> str:
    sources = re.findall(r'src="(data:audio[^"]+)"', body)
    return "\n".join(f'<audio controls src="{source}"></audio>\n' for source in sources)


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
        if name not in ("README.md", "docs/decisions"):  # docs/index.md takes the place of the first
            text = (ROOT / name).read_text("utf-8")
            text = relinked(text, ROOT / name) if name.endswith(".md") else f"# {name}\n\n```text\n{text}\n```\n"
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


def settings(out: Path) -> str:
    """The settings with the pages whose names follow from the code and the folder in the menu."""
    reference = [f"      - reference/{name}" for name in make_reference.pages()]
    decisions = ["      - decisions/index.md"]
    decisions += [f"      - decisions/{path.name}" for path in sorted(DOCS.glob("decisions/*.md"), reverse=True)]
    text = SETTINGS.read_text("utf-8")
    text = text.replace("# reference pages", "\n".join(reference).lstrip("\n"))
    text = text.replace("# decisions", "\n".join(decisions))
    places = {"docs_dir": SOURCE, "site_dir": out}
    for key, place in places.items():
        text = re.sub(rf"^{key}: .*$", f"{key}: {place}", text, flags=re.M)
    return text.replace("paths: [src]", f"paths: [{ROOT / 'src'}]")


def main() -> None:
    """Build it, or say what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site")
    out = parser.parse_args().out.resolve()
    if missing := make_reference.missing_docstrings(make_reference.sections()):
        sys.exit(f"no docstring: {', '.join(missing)}")
    stage(SOURCE)
    file = ROOT / "build" / "mkdocs.yml"
    file.write_text(settings(out), "utf-8")
    _build(file)
    print(out / "index.html")


def _build(file: Path) -> Any:
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--config-file", str(file)]
    done = subprocess.run(words, env=environment, check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
