"""A wheel without the page of the explorer is not built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PageHook(BuildHookInterface[Any]):
    """Looks whether the page is there."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Before the build. An editable install reads the page where it will be built."""
        page = Path(self.root, "src/penult/explorer/page/main.js")
        if version != "editable" and not page.is_file():
            raise RuntimeError("the page of the explorer is not built: make page")
