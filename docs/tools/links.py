"""Links as GitHub reads them: what is no page of the site is looked at in the repository."""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files of the repository that are no pages become links to its web pages."""
    docs = Path(config.docs_dir)
    folder = posixpath.dirname(page.file.src_uri)

    def link(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        place = posixpath.normpath(posixpath.join(folder, target))
        inside = not place.startswith("..")
        file = files.get_file_from_path(place) if inside else None
        if (file and not file.inclusion.is_excluded()) or not (docs / place).exists():
            return match[0]  # mkdocs resolves it, or says that it leads nowhere
        kind = "tree" if (docs / place).is_dir() else "blob"
        place = posixpath.normpath(posixpath.join(docs.name, place))
        return f"]({config.repo_url}/{kind}/main/{place}{anchor})"

    return re.sub(r"\]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)", link, markdown)
