"""Scores lists of class labels and predictions: exact accuracy, and accuracy by the published method's rule.

Two formats are read. JSON lines: `{"image": …, "label": name, "prediction": name or null}`; null: unreadable. The
original's `.pth`: a list of `{image path: {label, pred_class, …}}` with the number of the class, and the predicted
numbers, the most confident first. A list of class names (`classes=…`, one name a line) gives the numbers names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vrft.data.class_names import read_class_names, read_pth_labels
from vrft.errors import N_SHOWN, UserError, raise_all, suggestion
from vrft.evaluate.bootstrap import mean_with_interval
from vrft.files import numbered_rows
from vrft.tasks.answers import normal_name

_LINE = '{"image": path, "label": name, "prediction": name or null}'


@dataclass(frozen=True)
class Answer:
    """One image: its class, the predicted class (None: unreadable), and whether they are the same.

    label, prediction: names, or class numbers as text if no names are given.
    """

    image: str
    label: str
    prediction: str | None
    is_right: bool


def score_label_file(path: Path, *, classes: str | Sequence[str] | None = None, n_resamples: int = 1000) -> dict:
    """`{"metrics", "per_class", "absent_classes", "counts"}`, with the metrics `accuracy` and `accuracy_substring`.

    `accuracy`: the names are equal, ignoring case, blanks, underscores and hyphens (`vrft.tasks.answers.normal_name`);
    for numbers, the same number. `accuracy_substring`: see `is_substring_match`; left out for numbers without names.
    classes: the names of all classes, or a file of names. Classes without an image are listed as absent.
    Raises `UserError` that lists what is wrong with the file, by line or entry.
    """
    names = None if classes is None else read_class_names(classes, key="classes")
    has_numbers = path.suffix in (".pth", ".pt")
    answers = _read_numbers(path, names) if has_numbers else _read_lines(path, names)
    metrics = {"accuracy": mean_with_interval([one.is_right for one in answers], n_resamples=n_resamples)}
    if names or not has_numbers:
        matches = [is_substring_match(one.label, one.prediction) for one in answers]
        metrics["accuracy_substring"] = mean_with_interval(matches, n_resamples=n_resamples)
    by_class: dict[str, list[bool]] = {name: [] for name in names or ()}
    for one in answers:
        by_class.setdefault(one.label, []).append(one.is_right)
    per_class = {
        name: {"accuracy": mean_with_interval(values, n_resamples=n_resamples)}
        for name, values in by_class.items()
        if values
    }
    known = set(map(normal_name, by_class))
    predictions = [one.prediction for one in answers if one.prediction is not None]
    counts = {
        "images": len(answers),
        "right": sum(one.is_right for one in answers),
        "unreadable_predictions": len(answers) - len(predictions),
        "predictions_of_no_class": sum(normal_name(prediction) not in known for prediction in predictions),
        "duplicate_images": len(answers) - len({one.image for one in answers}),
    }
    absent = [name for name, values in by_class.items() if not values]
    return {"metrics": metrics, "per_class": per_class, "absent_classes": absent, "counts": counts}


def is_substring_match(label: str, prediction: str | None) -> bool:
    """True if the published evaluation counts the prediction as right: one of the two names contains the other, in
    lower case without blanks and underscores. An empty prediction, or a list of all names, always counts as right.

    >>> is_substring_match("Maine Coon", "maine_coon cat"), is_substring_match("Persian", "Siamese")
    (True, False)
    """
    if prediction is None:
        return False
    one, other = (name.replace(" ", "").replace("_", "").lower() for name in (label, prediction))
    return one in other or other in one


def _read_lines(path: Path, names: list[str] | None) -> list[Answer]:
    if not path.is_file():
        raise UserError(f"cases={path}: there is no such file; JSON lines are needed, each {_LINE}, or a .pth")
    faults: list[str] = []
    answers, known = [], None if names is None else dict.fromkeys(names)  # a look-up takes no time
    for number, row in numbered_rows(path, faults):
        own = list(_line_faults(row, known, is_shown=len(faults) < N_SHOWN))
        faults += [f"{path.name}, line {number}: {fault}" for fault in own]
        if not own:
            label, prediction = row["label"], row["prediction"]
            is_right = prediction is not None and normal_name(label) == normal_name(prediction)
            answers.append(Answer(row["image"], label, prediction, is_right))
    return _checked(answers, faults, path)


def _line_faults(row: dict, names: Collection[str] | None, *, is_shown: bool) -> Iterator[str]:
    """is_shown: False for a fault beyond those that are printed, for which no near name is looked for."""
    missing = [key for key in ("image", "label", "prediction") if key not in row]
    if missing:
        yield f"{', '.join(missing)} missing; the keys are {', '.join(row)}; needed: {_LINE}"
        return
    for key in ("image", "label"):
        if not isinstance(row[key], str) or not row[key].strip():
            yield f"{key} is {str(row[key])[:60]!r}; a text is needed, as in {_LINE}"
    if row["prediction"] is not None and not isinstance(row["prediction"], str):
        yield f"prediction is {str(row['prediction'])[:60]!r}; a name is needed, or null for an unreadable answer"
    if names is not None and isinstance(row["label"], str) and row["label"] not in names:
        near = suggestion(row["label"], names) if is_shown else ""
        yield f"label is {row['label']!r}; {near}one of the {len(names)} classes is needed"


def _read_numbers(path: Path, names: list[str] | None) -> list[Answer]:
    faults, answers = [], []
    for number, image, label, prediction in read_pth_labels(path, faults, key="cases"):
        if prediction is None:
            faults.append(f"{path.name}, row {number}: pred_class is missing; the predicted numbers are needed")
            continue
        wrong = [one for one in (label, prediction) if one < 0 or (names is not None and one >= len(names))]
        faults += [
            f"{path.name}, row {number}: class {one}; the {len(names or ())} classes count from 0" for one in wrong
        ]
        if not wrong:
            written = [names[one] if names else str(one) for one in (label, prediction)]
            answers.append(Answer(image, *written, is_right=label == prediction))
    return _checked(answers, faults, path)


def _checked(answers: list[Answer], faults: list[str], path: Path) -> list[Answer]:
    raise_all(faults, heading=f"cases={path} cannot be scored:")
    if not answers:
        raise UserError(f"cases={path} holds no case; at least one is needed")
    return answers
