"""Repositories on the Hugging Face hub: what is prepared goes up as one commit, and collections
come down.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penult.collection import manifest as collections
from penult.collection.collection import Collection
from penult.collection.writer import writing
from penult.data.files import folder_aside, user_path
from penult.errors import CollectionError, PenultError, StoreError, UsageError, cause
from penult.models.hub import CLASSES, HUB_ID, is_offline
from penult.models.specs import EMBEDDER as EMBEDDER_FILE
from penult.publishing.cards import card_of
from penult.publishing.preparation import COLLECTION, KINDS, Kind, prepare

CARD = "README.md"
_OURS = frozenset({EMBEDDER_FILE, CLASSES, collections.MANIFEST})
_HUBS_OWN = frozenset({CARD, ".gitattributes", "LICENSE", "LICENSE.md"})
_LOGIN = ". hf auth login, or HF_TOKEN, says who you are"
_ADVICE = {401: _LOGIN, 403: _LOGIN, 412: ". Somebody else has pushed meanwhile: push again"}
_REPO = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True, slots=True)
class Publication:
    """What was pushed, or would be. files: sizes in bytes by name. notes: what differs from what is
    here. revision, url: of the commit; empty where nothing was pushed."""

    repo: str
    repo_type: str
    kind: Kind
    files: dict[str, int]
    card: str
    notes: list[str] = field(default_factory=list)
    revision: str = ""
    url: str = ""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())

    def to_dict(self) -> dict[str, Any]:
        """For JSON, as `penult push --json` prints it."""
        return {
            "repo": self.repo,
            "repo_type": self.repo_type,
            "kind": self.kind,
            "files": [{"name": name, "bytes": size} for name, size in self.files.items()],
            "bytes": self.size,
            "notes": self.notes,
            "revision": self.revision or None,
            "url": self.url or None,
        }


def push(
    path: str | os.PathLike[str],
    repo: str,
    *,
    private: bool = False,
    kind: Kind | None = None,
    license: str | None = None,
    dry_run: bool = False,
    message: str | None = None,
    tell: Callable[[Publication], object] | None = None,
) -> Publication:
    """Push a saved embedder, a class space (.npz) or a collection to a repository of the Hugging
    Face hub, which is made if it is not there; with a card.

    Embedders and class spaces go to repositories of models, collections to those of datasets.
    Absolute paths of this machine, recorded graphs and indexes stay here. The token is that of
    `hf auth login`, or HF_TOKEN.
    repo: `owner/name`. private: where the repository is made. kind: what `path` has to be. license:
    for the card, as `apache-2.0`. dry_run: prepare all, and ask the hub for nothing. message: of
    the commit. tell: is given what will be pushed, before the hub is asked.

    Raises:
        UsageError: nothing that can be pushed, a repository that holds something else, or
            --offline. StoreError: the hub cannot be reached, or refuses.
    """
    if not _REPO.fullmatch(repo):
        raise UsageError(f"{repo!r} is no repository: name it as owner/name")
    if kind is not None and kind not in KINDS:
        raise UsageError(f"kind {kind!r} is not known; {', '.join(KINDS)} work")
    if not dry_run:
        _refuse_offline(f"push to {repo}")
    with tempfile.TemporaryDirectory(prefix="penult-push-") as name:
        prepared = prepare(path, Path(name), kind)
        card = card_of(prepared, repo, license)
        (prepared.folder / CARD).write_text(card, "utf-8")
        place = "dataset" if prepared.kind == COLLECTION else "model"
        told = Publication(repo, place, prepared.kind, prepared.files, card, prepared.notes)
        if tell is not None:
            tell(told)
        return told if dry_run else _uploaded(told, prepared.folder, private, message)


def _uploaded(told: Publication, folder: Path, private: bool, message: str | None) -> Publication:
    from huggingface_hub import HfApi

    api = HfApi(library_name="penult")
    with _refusals(told.repo):
        api.create_repo(told.repo, repo_type=told.repo_type, private=private, exist_ok=True)
        there: Any = api.repo_info(told.repo, repo_type=told.repo_type)
        names = {one.rfilename for one in there.siblings or ()}
        if names - _HUBS_OWN and not names & _OURS:
            raise UsageError(
                f"{told.repo} on the hub holds something else ({sorted(names - _HUBS_OWN)[0]}), "
                "which a push would replace: give another name"
            )
        commit = api.upload_folder(
            repo_id=told.repo,
            repo_type=told.repo_type,
            folder_path=folder,
            commit_message=message or f"Push of penult: {told.kind}",
            delete_patterns="*",  # what an earlier push left; never .gitattributes
            parent_commit=there.sha,
        )
    return Publication(
        *(told.repo, told.repo_type, told.kind, told.files, told.card, told.notes),
        revision=str(commit.oid),
        url=str(commit.commit_url),
    )


def pull(spec: str, path: str | os.PathLike[str]) -> Collection:
    """Fetch a collection from the hub into a new folder, and open it; its runs record the
    repository and the commit that it is from.

    spec: `owner/name[@revision]`, of a dataset that `push` made.

    Raises:
        CollectionError: the repository holds no collection, or there is something at `path`.
        StoreError: the hub cannot be reached, or refuses. UsageError: --offline.
    """
    repo, _, revision = spec.partition("@")
    if not HUB_ID.fullmatch(spec) or not _REPO.fullmatch(repo):
        raise UsageError(f"{spec!r} is no repository: name it as owner/name[@revision]")
    target = user_path(path).absolute()
    if target.exists():
        raise CollectionError(f"{target} exists; a collection is pulled into a new folder")
    _refuse_offline(f"pull {spec}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with folder_aside(target) as aside:
        commit = _downloaded(repo, revision, aside)
        if not (aside / collections.MANIFEST).is_file():
            raise CollectionError(f"the dataset {repo} on the hub is no collection of penult push")
        found = collections.read_manifest(aside)
        with writing(aside, found, None, {"command": f"penult pull {repo}@{commit}"}) as writer:
            writer.finish("done")
    return Collection.open(target, must_exist=True)


def _downloaded(repo: str, revision: str, folder: Path) -> str:
    """Bring all files of a dataset into a folder; gives the commit."""
    from huggingface_hub import HfApi, snapshot_download

    with _refusals(repo):
        info: Any = HfApi(library_name="penult").repo_info(
            repo, repo_type="dataset", revision=revision or None
        )
        commit = str(info.sha)
        if collections.MANIFEST not in {one.rfilename for one in info.siblings or ()}:
            raise CollectionError(f"the dataset {repo} on the hub is no collection of penult push")
        snapshot_download(repo, repo_type="dataset", revision=commit, local_dir=folder)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    (folder / ".gitattributes").unlink(missing_ok=True)
    return commit


def _refuse_offline(what: str) -> None:
    if is_offline():
        raise UsageError(f"--offline keeps Penult from asking the network: leave it out to {what}")


@contextlib.contextmanager
def _refusals(repo: str) -> Iterator[None]:
    """What the hub refuses, in words, without the token."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except PenultError:
        raise
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason, token = getattr(error, "server_message", None) or cause(error), get_token()
        if token:
            reason = reason.replace(token, "…")
        status = getattr(getattr(error, "response", None), "status_code", 0)
        raise StoreError(f"{repo} on the hub: {reason}{_ADVICE.get(status, '')}") from error
    except Exception as error:  # the libraries below it have errors of their own
        if type(error).__module__.startswith(("httpx", "httpcore", "hf_xet")):
            raise StoreError(f"{repo} on the hub: {cause(error)}") from error
        raise
