"""What pyproject.toml cannot say: a build begins empty, and notes the revision that it is of."""

import runpy
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist


ROOT = Path(__file__).parent
VERSION = runpy.run_path(str(ROOT / "exporter" / "__init__.py"))


def note_revision(package: Path) -> None:
    """Write the revision beside the package's version."""
    (package / VERSION["REVISION_FILE"]).write_text(VERSION["REVISION"] + "\n")


class BuildFromNothing(build_py):
    """Modules that an earlier build left in build/ must not come along."""

    def run(self) -> None:
        """Build the modules."""
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()
        if not self.editable_mode:
            note_revision(Path(self.build_lib) / "exporter")


class SourceWithRevision(sdist):
    """A source distribution has no git folder that a later build could ask."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Copy the files and note the revision."""
        super().make_release_tree(base_dir, files)
        note_revision(Path(base_dir) / "exporter")


setup(cmdclass={"build_py": BuildFromNothing, "sdist": SourceWithRevision})
