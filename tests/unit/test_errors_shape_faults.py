"""What a model of pydantic refuses, in a user's words: one sentence a fault, with its key."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from vrft.errors import shape_faults


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Inner(Strict):
    size: Annotated[int, Field(ge=1)]
    share: Annotated[int | float, Field(gt=0, le=1)] | None


class Cat(Strict):
    name: Literal["cat"]
    lives: int


class Dog(Strict):
    name: Literal["dog"]
    inner: Inner | None = None


class Outer(Strict):
    inner: Inner
    names: list[str]
    table: dict[str, int | float]
    pet: Annotated[Cat | Dog, Field(discriminator="name")]
    shelf: dict[str, Inner] | None = None
    modes: list[Literal["on", "off"]] = []
    note: str = ""


GOOD = {"inner": {"size": 2, "share": 0.5}, "names": ["a"], "table": {"a": 1}, "pet": {"name": "cat", "lives": 9}}


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        ({}, []),
        ({"inner": {"size": 1, "share": None}}, []),
        ({"inner": {"size": 1, "share": 1}}, []),  # an int fits a float
        # a value of another type
        ({"inner": {"size": True, "share": 1}}, ["inner.size is True; an integer is needed"]),  # a bool is no integer
        ({"inner": {"size": 1.0, "share": 1}}, ["inner.size is 1.0; an integer is needed"]),
        ({"inner": {"size": "1", "share": 1}}, ["inner.size is '1'; an integer is needed"]),
        ({"inner": {"size": 1, "share": "a"}}, ["inner.share is 'a'; a number or null is needed"]),
        ({"inner": {"size": 1, "share": True}}, ["inner.share is True; a number or null is needed"]),
        ({"inner": None}, ["inner is None; a mapping is needed"]),
        ({"inner": [1]}, ["inner is [1]; a mapping is needed"]),
        ({"names": ["a", 1]}, ["names is ['a', 1]; a list of texts is needed"]),
        ({"names": [1, 2]}, ["names is [1, 2]; a list of texts is needed"]),  # said once
        ({"names": "a"}, ["names is 'a'; a list of texts is needed"]),
        ({"modes": ["of"]}, ["modes is ['of']; a list of on or off is needed"]),
        ({"table": {"a": "1"}}, ["table is {'a': '1'}; a mapping to numbers is needed"]),
        ({"table": 1}, ["table is 1; a mapping to numbers is needed"]),
        # a key that is not there
        (
            {"nmes": []},
            ["the config has no key 'nmes'; did you mean names? known: inner, names, table, pet, shelf, modes, note"],
        ),
        (
            {"inner": {"size": 1, "share": 1, "siz": 2}},
            ["inner has no key 'siz'; did you mean size? known: size, share"],
        ),
        ({"inner": {"size": 1}}, ["inner.share is missing; a number or null is needed"]),
        ({"inner": {"share": 1}}, ["inner.size is missing; an integer is needed"]),
        # a number out of its range
        ({"inner": {"size": 0, "share": 1}}, ["inner.size is 0; at least 1 is needed"]),
        ({"inner": {"size": 1, "share": 0}}, ["inner.share is 0; it must be above 0"]),
        ({"inner": {"size": 1, "share": 1.5}}, ["inner.share is 1.5; at most 1 is needed"]),
        # models told apart by their name
        ({"pet": {"name": "dog"}}, []),
        ({"pet": {"name": "cow"}}, ["pet.name is 'cow'; cat or dog is needed"]),
        ({"pet": {"lives": 9}}, ["pet.name is None; cat or dog is needed"]),
        ({"pet": {"name": "dog", "inner": 3}}, ["pet.inner is 3; a mapping or null is needed"]),
        ({"pet": None}, ["pet is None; a mapping is needed"]),
        ({"pet": {"name": "cat", "lives": "9"}}, ["pet.lives is '9'; an integer is needed"]),
        ({"pet": {"name": "dog", "lives": 9}}, ["pet has no key 'lives'; known: name, inner"]),
        ({"pet": {"name": "dog", "inner": {"size": 0, "share": 1}}}, ["pet.inner.size is 0; at least 1 is needed"]),
        # a mapping of models
        ({"shelf": {"a": GOOD["inner"]}}, []),
        ({"shelf": {"a": 3}}, ["shelf.a is 3; a mapping is needed"]),
        ({"shelf": 3}, ["shelf is 3; a mapping to values or null is needed"]),
        ({"shelf": {1: GOOD["inner"]}}, ["shelf has the key 1; a text is needed"]),
        ({"table": {2: 1}}, ["table has the key 2; a text is needed"]),
        ({"shelf": {"a.b": {"size": 0, "share": 1}}}, ["shelf.a.b.size is 0; at least 1 is needed"]),
        ({"shelf": {"a": {"size": 1}}}, ["shelf.a.share is missing; a number or null is needed"]),
        ({"shelf": {"a": GOOD["inner"] | {"x": 1}}}, ["shelf.a has no key 'x'; known: size, share"]),
        # several at once
        (
            {"inner": {"size": 0}, "names": 3, "pet": {"name": "cat", "lifes": 1, "lives": 1}},
            [
                "inner.size is 0; at least 1 is needed",
                "inner.share is missing; a number or null is needed",
                "names is 3; a list of texts is needed",
                "pet has no key 'lifes'; did you mean lives? known: name, lives",
            ],
        ),
    ],
    ids=str,
)
def test_shape_faults(change, faults):
    assert shape_faults(GOOD | change, Outer) == faults


def test_the_key_of_a_section_stands_before_its_own():
    assert shape_faults({"size": 1}, Inner, "inner") == ["inner.share is missing; a number or null is needed"]
    assert shape_faults(3, Inner, "inner") == ["inner is 3; a mapping is needed"]
    assert shape_faults(3, Inner) == ["the config is 3; a mapping is needed"]
