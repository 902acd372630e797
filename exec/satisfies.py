"""Exit with 0 if the packages of requirements files are installed in this Python: satisfies.py requirements.txt ..."""

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

try:
    from packaging.requirements import Requirement

    for file in map(Path, sys.argv[1:]):
        lines = [line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines()]
        for requirement in map(Requirement, (line for line in lines if line and not line.startswith("-"))):
            if not requirement.specifier.contains(version(requirement.name), prereleases=True):
                sys.exit(1)
except (ImportError, PackageNotFoundError):
    sys.exit(1)
