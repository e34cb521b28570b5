"""Another revision of this repository, checked out beside this one, to be run with this one's environment."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.server import ROOT

PLACE = ROOT / "build" / "rolling"


@dataclass(frozen=True)
class Revision:
    """root: where its tree is. name: for people."""

    name: str
    root: Path

    def client_path(self) -> Path:
        """A directory with nothing but this revision's client library: on the import path before this tree it gives a
        caller of this tree that client.
        """
        place = PLACE / f"client-{self.name}"
        place.mkdir(parents=True, exist_ok=True)
        if not (place / "firstword").exists():
            (place / "firstword").symlink_to(self.root / "firstword")
        return place


def this_tree() -> Revision:
    """What is here, committed or not."""
    return Revision("this-tree", ROOT)


def checked_out(revision: str) -> Revision:
    """A revision of this repository. Raises subprocess.CalledProcessError for one that is not in it."""
    commit = _git("rev-parse", "--verify", f"{revision}^{{commit}}")
    root = PLACE / commit[:12]
    if not (root / "service").exists():
        _git("worktree", "prune")
        _git("worktree", "add", "--detach", "--force", str(root), commit)
    return Revision(commit[:12], root)


def default_base() -> str:
    """The last release before this commit; where there is none, the commit before it."""
    try:
        return _git("describe", "--tags", "--abbrev=0", "HEAD~1")
    except subprocess.CalledProcessError:
        return "HEAD~1"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()
