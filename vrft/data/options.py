"""The keys of `dataset` as pydantic models, one per builder. All wrong keys, types and values are reported together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from vrft.errors import raise_all, shape_faults
from vrft.tasks.boxes import FRAMES


class DatasetOptions(BaseModel):
    """Keys of `dataset`. Unknown keys are refused; a bool is not accepted as a number, nor a number as a text."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def faults(self) -> list[str]:
        """Keys that contradict each other, each valid by itself: one text per fault."""
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
SolutionFrame = Annotated[str, AfterValidator(_frame_of_solutions)]


class CommonOptions(DatasetOptions):
    """The keys of every source whose rows go through `build_splits`.

    image_root: the folder of relative image paths; no path may leave it; null: the source's own folder.
    test_image_root: the same for a separate test set; null: as for the training rows.
    frame: the frame of the boxes in `problem` and `solution`.
    columns: `{vrft's name: name in the file}`.
    max_rows: number of rows to read from each source, from its start.
    n_validation, n_test: rows to take out of the training source, whole images at a time; null: a fifth of its rows, at
        most `most_validation` and `most_test`. `n_test` of a separate test set are used (null: all). `all`: every row
        is a test row.
    unseen_by: a folder of built rows, such as a run's `data`; rows for the test that share an image with its training
        or validation rows are left out.
    k_shot: training rows per class (`category`, a `gold` that is a name, or the labels of its boxes). Rows without an
        object are left out, unless the source has `negatives`.
    on_bad_row: `stop` lists the bad rows and builds nothing. `skip` leaves them out, counts them, and lists them in
        `skipped.json`.
    n_processes: processes that decode images; null: one per core. The rows do not depend on it.
    """

    image_root: Folder | None = None
    test_image_root: Folder | None = None
    frame: SolutionFrame | None = None
    columns: dict[str, str] = {}
    max_rows: AtLeastOne | None = None
    n_validation: AtLeastZero | None = 0
    n_test: AtLeastZero | Literal["all"] | None = None
    unseen_by: Folder | None = None
    k_shot: AtLeastOne | None = None
    on_bad_row: Literal["stop", "skip"] = "stop"
    n_processes: AtLeastOne | None = None
    most_validation: ClassVar[int] = 50
    most_test: ClassVar[int] = 100

    @property
    def has_own_test(self) -> bool:
        """True if the test rows have a source of their own: `test_path` or `test_split` is given."""
        return any(getattr(self, key, None) is not None for key in ("test_path", "test_split"))

    def root_of(self, *, is_test: bool) -> str | None:
        """The configured folder of the training or test rows' image paths, or None."""
        return (self.test_image_root if is_test else None) or self.image_root


Kind = TypeVar("Kind", bound=DatasetOptions)


def read_options(options: dict, kind: type[Kind]) -> Kind:
    """The keys of `dataset`, except `builder`, as a model. Raises `UserError` that names each wrong key."""
    given = {key: value for key, value in options.items() if key != "builder"}
    raise_all(shape_faults(given, kind, "dataset"), heading="The config of the data set is wrong:")
    chosen = kind.model_validate(given)
    raise_all(chosen.faults(), heading="The config of the data set is wrong:")
    return chosen
