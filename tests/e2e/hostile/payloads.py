"""What is hostile in files and configs that someone else wrote.

Each of them would leave the file `mark` behind (or be counted by a server), and every test shows first that it does so
where it is read without care.
"""

from __future__ import annotations

import os
from pathlib import Path

import yaml

SMOKE = ("experiment=digits_riddles", "debug=smoke")


class Payload:
    """Unpickled, it leaves `mark` behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def ran(mark: Path) -> bool:
    """True if the payload has run since it was last asked."""
    was_there = mark.exists()
    mark.unlink(missing_ok=True)
    return was_there


def written(folder: Path, config: dict) -> tuple[str, str]:
    """What ends a command line that chooses a file that someone else wrote."""
    file = folder / "configs" / "experiment" / "theirs.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("# @package _global_\n" + yaml.safe_dump(config))
    return "experiment=theirs", f"--config-dir={folder / 'configs'}"
