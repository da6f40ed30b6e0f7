"""The keys of `dataset` as models, one a builder: known keys, types and ranges, what is wrong with them all at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from vrft.errors import raise_all, shape_faults
from vrft.tasks.boxes import FRAMES


class DatasetOptions(BaseModel):
    """Keys of `dataset`: frozen, none unknown; a bool is no number, and a number no text."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def faults(self) -> list[str]:
        """What is wrong with keys together, each right by itself."""
        return []


def _existing_folder(path: str) -> str:
    if not Path(path).is_dir():
        raise ValueError("there is no such folder")
    return path


def _frame_of_solutions(name: str) -> str:
    if name not in FRAMES or name == "seen_pixels":
        raise ValueError(
            "right are norm1000, pixels and norm1. Pixels of a resized image depend on the model's pixel limits, so "
            "write boxes in one of these"
        )
    return name


AtLeastZero = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Folder = Annotated[str, AfterValidator(_existing_folder)]


class CommonOptions(DatasetOptions):
    """The keys that every source takes whose rows `build_splits` checks and cuts.

    image_root: the folder that image paths start from and may not leave; null: the source's own.
    test_image_root: the same for a test set of its own; null: as for the training rows.
    frame: what boxes in `problem` and `solution` are written in.
    columns: `{name here: name in the file}`.
    max_rows: rows read of each source, from its start.
    n_validation, n_test: rows set apart from the training source, whole images at a time; of a test set of its own,
        `n_test` are used (null: all).
    k_shot: training rows of each class (`category`, a `gold` that is a name, or the labels of its boxes); rows
        without an object are left out, unless the source has `negatives`.
    on_bad_row: `stop` shows what is wrong with the rows and builds nothing; `skip` leaves bad rows out, counts them,
        and lists them in `skipped.json`.
    n_processes: processes that decode images; null: one a core. The rows do not depend on it.
    """

    image_root: Folder | None = None
    test_image_root: Folder | None = None
    frame: Annotated[str, AfterValidator(_frame_of_solutions)] | None = None
    columns: dict[str, str] = {}
    max_rows: AtLeastOne | None = None
    n_validation: AtLeastZero = 0
    n_test: AtLeastZero | None = None
    k_shot: AtLeastOne | None = None
    on_bad_row: Literal["stop", "skip"] = "stop"
    n_processes: AtLeastOne | None = None

    @property
    def has_own_test(self) -> bool:
        """True where the test rows are those of a source of their own: a `test_path` or a `test_split` is given."""
        return any(getattr(self, key, None) is not None for key in ("test_path", "test_split"))

    def root_of(self, *, is_test: bool) -> str | None:
        """The folder that the training or the test rows' image paths start from, where it is given."""
        return (self.test_image_root if is_test else None) or self.image_root


Kind = TypeVar("Kind", bound=DatasetOptions)


def read_options(options: dict, kind: type[Kind]) -> Kind:
    """The keys of `dataset`, `builder` aside, as their model. Raises `UserError` that names each wrong key."""
    given = {key: value for key, value in options.items() if key != "builder"}
    raise_all(shape_faults(given, kind, "dataset"), heading="The data set is not well described:")
    chosen = kind.model_validate(given)
    raise_all(chosen.faults(), heading="The data set is not well described:")
    return chosen
