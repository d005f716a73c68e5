"""`deadstop explain`, and what the command says of itself."""

from __future__ import annotations

import pytest
from cli_child import command, warm

import deadstop
from deadstop.core.explanations import CAUSES, EXPLANATIONS


def test_a_class_is_explained() -> None:
    """A class comes with what it means, its cause by number and sentence, and its fix."""
    with warm("explain", "Caller-Blocked") as child:
        assert child.end() == 0
    output = " ".join(" ".join(child.output).split())
    found = EXPLANATIONS[deadstop.DiagnosisClass.CALLER_BLOCKED]
    for part in (found.summary, f"Cause {found.number}: {CAUSES[found.number].cause}", found.fix):
        assert part in output


def test_without_a_class_there_is_a_table_of_all() -> None:
    """Every class has a row, and every cause its sentence."""
    with warm("explain") as child:
        assert child.end() == 0
    output = "\n".join(child.output)
    assert [klass for klass in EXPLANATIONS if klass not in output] == []
    assert [cause.cause for cause in CAUSES.values() if cause.cause not in output] == []


def test_an_unknown_class_gets_the_list() -> None:
    """A class that does not exist is an error that names those that do."""
    with warm("explain", "nonsense") as child:
        assert child.end() == 2
    assert [klass for klass in EXPLANATIONS if klass not in child.errors] == []


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_the_command_introduces_itself(option: str) -> None:
    """--help and --version work."""
    with command(option) as child:
        assert child.end() == 0
    assert "deadstop" in child.output[0]
