"""Code of the user's own: imported only where it is trusted, and guarded where it is run."""

import sys
import textwrap
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from vrft.errors import UserError
from vrft.tasks import load_task
from vrft.tasks.base import Parsed
from vrft.tasks.reward_terms import RewardOptions
from vrft.tasks.user_code import guarded_term, load_user_code

TERM = "own_rewards.judges.short"
PARSED = Parsed("<answer>4</answer>", 4, None)
ROW = {"row_id": "r7", "images": ["a.png", "/elsewhere/b.png"]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a package that leaves a file `imported` behind; what is imported is forgotten after."""
    package = tmp_path / "own_rewards"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "judges.py").write_text(
        "open('imported', 'w').close()\n\n\ndef short(parsed, row, images):\n    return 0.25\n"
    )
    (package / "broken.py").write_text("import no_such_module_anywhere\n")
    (package / "wrong.py").write_text("def term(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if name.startswith("own_"):
            del sys.modules[name]


@pytest.mark.parametrize(
    "trust_code",
    [
        [],
        ["own_reward"],  # no prefix of a name
        ["own_rewards.judge"],
        ["own_rewards.judges.short"],  # the term is no module
        ["judges"],
        [""],
    ],
)
def test_a_module_that_is_not_trusted_is_refused_and_not_imported(folder, trust_code):
    with pytest.raises(UserError, match=r"reward\.weights names own_rewards\.judges\.short.*trust_code=\[own_rewards"):
        load_user_code(TERM, trust_code=trust_code, key="reward.weights")
    assert not (folder / "imported").exists()
    assert not any(name.startswith("own_rewards") for name in sys.modules)


@pytest.mark.parametrize(
    "trust_code",
    [
        ["own_rewards.judges"],
        ["own_rewards"],  # a package that holds it
        ["another", "own_rewards.judges"],
    ],
)
def test_a_trusted_one_is_imported(folder, trust_code):
    assert load_user_code(TERM, trust_code=trust_code, key="reward.weights")(PARSED, ROW, []) == 0.25
    assert (folder / "imported").exists(), "importing leaves the trace that the refusal did not"


@pytest.mark.parametrize(
    ("dotted", "words"),
    [
        ("own_rewards.judges.long", r"own_rewards\.judges \(.*judges\.py\) has no 'long'"),
        ("own_rewards.nothing.term", "importing own_rewards.nothing failed: ModuleNotFoundError"),
        ("own_rewards.broken.term", "importing own_rewards.broken failed: .*no_such_module_anywhere"),
        ("own_rewards.wrong.term", "importing own_rewards.wrong failed: SyntaxError"),
    ],
)
def test_what_cannot_be_loaded_is_named(folder, dotted, words):
    with pytest.raises(UserError, match=words) as caught:
        load_user_code(dotted, trust_code=["own_rewards"], key="task.name")
    assert str(caught.value).startswith(f"task.name names {dotted}")


def test_a_task_of_ones_own(folder):
    (folder / "own_tasks.py").write_text(
        textwrap.dedent("""
        from vrft.tasks.counting import CountingTask


        class Bricks(CountingTask):
            name = "bricks"

            def ask(self, row, frame):
                return f"How many bricks has the {row['category']}?"
        """)
    )
    with pytest.raises(UserError, match=r"task\.name names own_tasks\.Bricks.*trust_code=\[own_tasks\]"):
        load_task("own_tasks.Bricks")
    task = load_task("own_tasks.Bricks", trust_code=["own_tasks"], thinking="none")
    assert (task.name, task.has_thought) == ("bricks", False)
    assert task.question({"category": "wall"}, None).startswith("How many bricks has the wall?")
    with pytest.raises(UserError, match=r"does not take.*colour"):
        load_task("own_tasks.Bricks", trust_code=["own_tasks"], colour="red")


def test_a_task_that_lacks_methods_is_told_which(folder):
    (folder / "own_tasks.py").write_text(
        "from vrft.tasks import Task\n\n\nclass Half(Task):\n    def ask(self, row, frame):\n        return '?'\n"
    )
    with pytest.raises(UserError, match=r"task=own_tasks\.Half: Half lacks .*\bmetrics\b.*, which every task defines"):
        load_task("own_tasks.Half", trust_code=["own_tasks"])


def test_the_told_setting_keeps_what_is_trusted_by_now(folder):
    with pytest.raises(UserError, match=r"set trust_code=\[own_rewards\.judges,own_tasks\]"):
        load_user_code(TERM, trust_code=["own_tasks"], key="reward.weights")


def guarded(term, *, root=None, **options):
    faults = Counter()
    return guarded_term("own.term", term, options=RewardOptions(**options), root=root, faults=faults), faults


@pytest.mark.parametrize(
    ("returned", "value"),
    [(0.25, 0.25), (0, 0), (1, 1), (True, 1)],  # True is 1, as in Python
)
def test_a_number_between_0_and_1_is_paid(returned, value):
    term, faults = guarded(lambda parsed, row, images: returned)
    assert (term(PARSED, ROW), faults) == (value, {})
    assert isinstance(term(PARSED, ROW), float)


def raising(parsed, row, images):
    raise KeyError("colour")


FAULTS = [
    (raising, "KeyError: 'colour'"),
    (lambda parsed, row: 1.0, "TypeError: .*positional argument"),  # takes no images
    (lambda *given: float("nan"), "returned nan"),
    (lambda *given: float("inf"), "returned inf"),
    (lambda *given: 2.0, r"returned 2\.0; a number in \[0, 1\]"),
    (lambda *given: -0.5, r"returned -0\.5"),
    (lambda *given: [0.5], r"returned '\[0\.5\]'; one number"),
    (lambda *given: None, "returned 'None'"),
    (lambda *given: "right", "returned 'right'"),
]


@pytest.mark.parametrize(("term", "words"), FAULTS)
def test_a_term_that_fails_stops_the_run_and_says_where(term, words):
    guarded_one, _ = guarded(term)
    with pytest.raises(UserError, match=words) as caught:
        guarded_one(PARSED, ROW)
    for part in ("own.term", "row r7", "<answer>4</answer>", "on_fault=zero"):
        assert part in str(caught.value)


@pytest.mark.parametrize(("term", "words"), FAULTS)
def test_or_pays_nothing_and_is_counted(term, words):
    guarded_one, faults = guarded(term, on_fault="zero")
    assert [guarded_one(PARSED, ROW) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert faults == {"own.term": 3}


@pytest.mark.parametrize("is_main", [True, False])
def test_a_term_that_hangs_is_left_behind(is_main):
    """By a timer in the main thread; elsewhere in a thread of its own, from which a value still comes back."""
    over = threading.Event()

    def hanging(parsed, row, images):
        over.wait()
        return 1.0

    def call_it():
        started = time.perf_counter()
        term, _ = guarded(hanging, timeout_s=0.05)
        with pytest.raises(UserError, match=r"own\.term failed on row r7.*\n?.*longer than .*timeout_s=0\.05 seconds"):
            term(PARSED, ROW)
        term, faults = guarded(hanging, timeout_s=0.05, on_fault="zero")
        assert (term(PARSED, ROW), faults) == (0.0, {"own.term": 1})
        assert time.perf_counter() - started < 1, "twice 0.05 s, not the usual 30"
        term, _ = guarded(lambda *_: 0.25)
        assert term(PARSED, ROW) == 0.25

    try:
        if is_main:
            call_it()
        else:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(call_it).result()
    finally:
        over.set()


def test_a_term_gets_the_completion_the_row_and_the_paths_of_its_images(tmp_path):
    given = []
    term, _ = guarded(lambda *arguments: given.append(arguments) or 1.0, root=tmp_path)
    term(PARSED, ROW)
    [(parsed, row, images)] = given
    assert (parsed, row) == (PARSED, ROW)
    assert [str(path) for path in images] == [f"{tmp_path}/a.png", "/elsewhere/b.png"]
    assert all(path.is_absolute() for path in images)


@pytest.mark.parametrize(("row", "has_root"), [(ROW, False), ({"row_id": "r"}, True)])  # no folder; no images
def test_without_a_folder_or_images_there_are_no_paths(tmp_path, row, has_root):
    given = []
    term, _ = guarded(lambda *arguments: given.append(arguments[2]) or 1.0, root=tmp_path if has_root else None)
    term(PARSED, row)
    assert given == [[]]
