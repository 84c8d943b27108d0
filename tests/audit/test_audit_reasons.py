"""docs/audit.md explains every reason that verify, recompute, empirical, replay and check can give, and no other."""

import ast
import inspect
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import typer.main
from click import Command, Group

from client import envelopes
from client.audit import cli, sites
from client.audit import replay as client_replay
from client.intake import pinned
from multimix.audit import direct_tests, membership, recompute
from multimix.audit import replay as audit_replay
from multimix.audit.empirical import Bound
from multimix.audit.evidence import build, bundle, records, rederived
from multimix.audit.evidence.words import METHODS
from multimix.audit.replay import NOT_REPLAYABLE, verdict_of
from multimix.audit.verification import bookkeeping, claims, countersigned, decisions, lines, order
from multimix.privacy import dp_sgd, training
from multimix.privacy.reservations import Reservations

DOC = (Path(__file__).parents[2] / "docs" / "audit.md").read_text()
REASON = re.compile(r"[a-z]+(_[a-z0-9]+)+")
OF_BOOKS = (lines, order, countersigned, bookkeeping, claims, decisions)
OF_REPLAY = (
    client_replay,
    audit_replay,
    pinned,
    envelopes,
    training,
    dp_sgd,
    sites.kept_order,
    sites.plan_of,
    Reservations.order_of,
    Reservations.secret_of,
    Reservations.reply_bytes,
)


def rows(text: str) -> list[tuple[str, ...]]:
    """Return the cells of a table, without its two head lines and the backticks of a code."""
    table = [line for line in text.splitlines() if line.startswith("|")]
    return [tuple(cell.strip().strip("`") for cell in line.strip("|").split("|")) for line in table[2:]]


def told(name: str) -> dict[str, str]:
    """Return the second cell by reason: kind or verdict."""
    return {row[0]: row[1] for row in rows(DOC.split(f"<!-- reasons of {name} -->")[1].split("<!-- /reasons -->")[0])}


def tree(source: object) -> ast.AST:
    assert isinstance(source, types.ModuleType | types.FunctionType)
    return ast.parse(inspect.cleandoc("\n" + inspect.getsource(source)))


def calls(source: object, *names: str) -> Iterator[ast.Call]:
    """Yield the calls of functions, methods or classes with these names."""
    for node in ast.walk(tree(source)):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in names:
                yield node


def strings(*nodes: ast.AST) -> set[str]:
    """Return the strings in expressions; of an f-string what stands before its first value, without a colon."""
    found = (node.value for root in nodes for node in ast.walk(root) if isinstance(node, ast.Constant))
    return {text.removesuffix(": ") for text in found if isinstance(text, str) and text}


def first_arguments(source: object, *names: str) -> set[str]:
    return strings(*(call.args[0] for call in calls(source, *names) if call.args))


def of_books() -> set[tuple[str, str]]:
    """Return reasons with their severity: given to `violation` or `notice`, by name or as pairs and keys."""
    found = set()
    for module in OF_BOOKS:
        for severity in ("violation", "notice"):
            found |= {(reason, severity) for reason in first_arguments(module, severity)}
    pairs = [node.value.elts[0] for node in ast.walk(tree(claims)) if _yields_a_pair(node)]
    keys = [key for node in ast.walk(tree(countersigned)) if isinstance(node, ast.Dict) for key in node.keys if key]
    return found | {(reason, "violation") for reason in strings(*pairs, *keys) if REASON.fullmatch(reason)}


def _yields_a_pair(node: ast.AST) -> bool:
    return isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple)


def of_check() -> set[str]:
    nodes = [node for each in (bundle, rederived) for node in ast.walk(tree(each))]
    listed = [node for node in nodes if isinstance(node, ast.List)]
    made = [node.elt for node in nodes if isinstance(node, ast.ListComp)]
    added = [call for each in (bundle, rederived) for call in calls(each, "append")]
    named = {reason for reason in strings(*listed, *made, *added) if REASON.fullmatch(reason)}
    readers = (records, build, membership.permitted_tpr, membership._require_guarantee)
    unreadable = set().union(*(first_arguments(each, "InputError") for each in readers))
    derived = {f"{name}_differs" for name in rederived._DERIVED}
    return (named | unreadable | derived) - {"key_unusable"}  # of a key in the evidence: it tells `evidence_unreadable`


def test_every_reason_of_verify_is_explained_with_its_severity():
    explained = {(reason, kind) for reason, kinds in told("verify").items() for kind in kinds.split(" or ")}
    found = of_books()
    assert ("limit_run_exceeded", "violation") in found, "the reasons in pairs are read"
    assert ("head_other_key", "violation") in found, "the reasons in keys are read"
    assert explained == found


def test_every_reason_and_verdict_of_recompute_is_explained():
    notes = {"delta_lowered", "delta_raised", "claim_above_limit", "seeded", "non_private_run"}
    errors = first_arguments(recompute, "RecomputeError")
    explained = told("recompute")
    assert set(explained) == set(get_args(recompute.Verdict)) | notes | errors
    assert {reason for reason, kind in explained.items() if kind == "cannot be read"} == errors


def test_the_notes_of_recompute_are_explained():
    findings = inspect.getsource(recompute._findings)
    written = set(re.findall(r'^ +"([a-z_]+)": ', findings, re.MULTILINE))
    assert {"undecided", "delta_lowered"} < written
    assert written < set(told("recompute"))


def test_every_flag_of_the_empirical_audit_is_explained():
    section = DOC.split("## What each test means")[1].split("\n## ")[0]
    bounds = {f"bound_{method}" for method in get_args(Bound.model_fields["method"].annotation)}
    assert bounds == {f"bound_{method}" for method in METHODS}
    tests = first_arguments(direct_tests, "spread", "correlation", "mean", "alike", "lags", "repeats")
    assert len(tests) == direct_tests.NUMBER_OF_TESTS
    assert {row[0] for row in rows(section)} == tests | bounds | {"neighbours"}


def test_every_reason_of_a_replay_is_explained_with_its_verdict():
    found = set(NOT_REPLAYABLE)
    for source in OF_REPLAY:
        found |= first_arguments(source, "note", "Refused", "Compared")
        found |= strings(*(argument for call in calls(source, "tried") for argument in call.args[1:]))
    assert {"released_beyond_the_ledger", "reply_damaged", "arrays_differ", "generation_gone"} <= found
    assert told("replay") == {reason: verdict_of([reason]).replace("_", " ") for reason in found}


def test_every_reason_of_check_is_explained():
    found = of_check()
    assert {"manifest_missing", "file_changed", "judgement_differs", "signer_not_given"} <= found
    assert set(told("check")) == found


def commands() -> list[list[str]]:
    """Return the page's calls of `multimix-audit`, word by word, those for a hospital as well."""
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", DOC, re.DOTALL)
    written = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.split() for line in written if line.startswith("multimix-audit ")]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_option_on_the_page_exists(words):
    group = typer.main.get_command(cli.app)
    assert isinstance(group, Group)
    command = group.commands[words[1]]
    assert isinstance(command, Command)
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known
