"""Words as people type them after the verb, and how a word that cannot be read is named."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from vrft.cli.verbs import groups
from vrft.cli.words import careful_words
from vrft.errors import UserError

GROUPS = {"experiment": ["digits_riddles"], "trainer": ["grpo", "sft"]}


@pytest.mark.parametrize(
    "text",
    [
        "the cup, on the left",
        "driver's seat",
        "左边的猫",
        "cup (blue)",
        "[red] cup",
        "[red]",
        "{a: 1}",
        "a=b",
        "8",
        "null",
        "true",
        "is it 50% off? yes!",
        'say "hello"',
        'it\'s "both"',
        "choice(a,b)",
        "ends in \\",
        "~/home",
        "a: b",
    ],
)
def test_a_question_is_asked_as_it_stands(text):
    [word] = careful_words([f"predict.ask={text}"], groups=GROUPS)
    assert OverridesParser.create().parse_override(word).value() == text


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("predict.ask='the red cup'", "the red cup"),  # Hydra's own quotes stay
        ('predict.ask="it\'s"', "it's"),
        ("dataset.path=~/rows.jsonl", "~/rows.jsonl"),  # expanded with the config
        ("dataset.path=数据/rows, 2.jsonl", "数据/rows, 2.jsonl"),
        ("dataset.path=epoch=3/rows.jsonl", "epoch=3/rows.jsonl"),
        ("run.dir=runs/it's (1)", "runs/it's (1)"),
        ("out=2024", "2024"),
        ("run.dir=runs/${run.name}", "runs/${run.name}"),
        ("rows=null", None),
        ("+dataset.test_path=a b,c", "a b,c"),
        ("runs=[~/a b,it's]", ["~/a b", "it's"]),
        ("dataset.test_classes=[driver's seat,cup]", ["driver's seat", "cup"]),
        ("runs=[runs/A,runs/B]", ["runs/A", "runs/B"]),
        ("trainer.max_steps=3", 3),
        ("~logging", None),
    ],
)
def test_paths_are_taken_as_they_stand_and_all_else_is_hydras(word, value):
    [readable] = careful_words([word], groups=GROUPS)
    parsed = OverridesParser.create().parse_override(readable).value()
    assert parsed == value


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("model.path=a,b", ["a", "b"]),
        ("model.path=~/a b,it's", ["~/a b", "it's"]),
        ("trainer.learning_rate=1e-5,1e-4", [1e-5, 1e-4]),
    ],
)
def test_a_list_with_commas_is_swept_with_m(word, values):
    options, *_ = careful_words([word, "-m"], groups=GROUPS)
    assert options == "-m"  # options come first, wherever they stood
    swept = OverridesParser.create().parse_override(careful_words([word, "-m"], groups=GROUPS)[1])
    assert list(swept.sweep_iterator(transformer=lambda one: getattr(one, "text", one))) == values


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs=[a,", "b]"], "quote the whole word: 'runs=[a, b]'"),
        (["runs=[a,", "b]", "out=c"], "quote the whole word: 'runs=[a, b]'"),
        (["runs=a", "b"], "'b' is no KEY=VALUE; a value with blanks is one word in quotes: 'runs=a b'"),
        (["runs=a", "b"], "'runs=[a,b]'"),
        (["digits_riddles"], "did you mean experiment=digits_riddles?"),
        (["experiment", "=", "x"], "write it without blanks: experiment=x"),
        (["experiment=", "=", "x"], "write it without blanks"),
        (["experiment", "=x"], "write it without blanks: experiment=x"),
        (["trainer.learning_rate"], "'trainer.learning_rate' is neither GROUP=NAME nor KEY=VALUE"),
        (["classes=seven,eight"], "a list is 'classes=[seven,eight]', one text is \"classes='seven,eight'\""),
        (["trainer.max_steps=1,2"], "with -m (--multirun)"),
        (["logging.tags=[a"], "the value of logging.tags cannot be read: [a"),
        (["question.title=it's"], "a text with such signs goes in quotes"),
        (["--experiment=x"], "a choice or a value is written without dashes: experiment=x"),
        (["-experiment=x"], "without dashes: experiment=x"),
        (["--learning_rate", "1e-4"], "without dashes: learning_rate=1e-4"),
        (["--multirn"], "did you mean --multirun?"),
        (["--hydra-help"], "--hydra-help is not offered"),
        (["--experimental-rerun=x.pickle"], "a pickle, which could run code"),
        (["--experimental-rerun", "x.pickle"], "a pickle, which could run code"),
    ],
)
def test_what_cannot_be_read_is_told_with_the_word_to_type(words, message):
    with pytest.raises(UserError) as error:
        careful_words(words, groups=GROUPS)
    assert message in str(error.value)
    assert not {"Exception", "mismatched", "EOF", "Lexer"} & set(str(error.value).split())


@pytest.mark.parametrize("text", ["what costs ${5}?", "it's ${run.dir}"])
def test_a_question_reads_no_other_key(text):
    [word] = careful_words([f"predict.ask={text}"], groups=GROUPS)
    value = OverridesParser.create().parse_override(word).value()
    assert OmegaConf.create({"run": {"dir": "x"}, "ask": value}).ask == text


def test_the_words_of_every_group_are_known():
    assert len(groups()) >= 15
    with pytest.raises(UserError, match="model=tiny"):
        careful_words(["tiny"], groups=groups())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--info"], ["--info=all"]),
        (["trainer=sft", "--info"], ["--info=all", "trainer=sft"]),  # the override is not what --info shows
        (["--info", "searchpath", "trainer=sft"], ["--info=searchpath", "trainer=sft"]),
        (["-i", "defaults"], ["-i=defaults"]),
    ],
)
def test_what_info_shows_may_follow_it_or_be_left_out(words, expected):
    assert careful_words(words, groups=GROUPS) == expected
