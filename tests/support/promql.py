"""Evaluates PromQL as far as the alert rules use it, on two scrapes, for machines without promtool."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import promql_parser
from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]

_COMPARISONS: Final[dict[str, Callable[[float, float], bool]]] = {
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
_MATCHES: Final[dict[str, Callable[[str, str], bool]]] = {
    "MatchOp.Equal": operator.eq,
    "MatchOp.NotRe": lambda value, pattern: not re.fullmatch(pattern, value),
}
_ARITHMETIC: Final[dict[str, Callable[[float, float], float]]] = {"-": operator.sub, "/": operator.truediv}


class Scrape:
    """What one scrape of a target has found."""

    def __init__(self, text: str, time: float, *, up: bool = True) -> None:
        self.time = time
        self._samples: dict[str, Vector] = {"up": {frozenset({("job", "tiledwriter")}): float(up)}}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = frozenset(sample.labels.items())
                assert labels not in self._samples.setdefault(sample.name, {}), f"{sample} occurs twice"
                self._samples[sample.name][labels] = sample.value

    @property
    def names(self) -> set[str]:
        return set(self._samples)

    def select(self, selector: Any) -> Vector:
        matchers = selector.matchers.matchers
        return {
            labels: value
            for labels, value in self._samples.get(selector.name, {}).items()
            if all(_MATCHES[str(each.op)](dict(labels).get(each.name, ""), each.value) for each in matchers)
        }


def metric_names(expression: str) -> set[str]:
    """The names of all metrics in an expression."""
    return set(_names_in(promql_parser.parse(expression)))


def _names_in(node: Any) -> Iterator[str]:
    if isinstance(node, promql_parser.VectorSelector):
        yield node.name
    elif isinstance(node, promql_parser.MatrixSelector):
        yield node.vector_selector.name
    elif isinstance(node, promql_parser.BinaryExpr):
        yield from (*_names_in(node.lhs), *_names_in(node.rhs))
    elif isinstance(node, promql_parser.Call):
        for argument in node.args:
            yield from _names_in(argument)
    elif isinstance(node, promql_parser.AggregateExpr | promql_parser.ParenExpr):
        yield from _names_in(node.expr)
    else:
        assert isinstance(node, promql_parser.NumberLiteral), node


def evaluate(expression: str, now: Scrape, before: Scrape) -> Vector:
    """The series for which an alert's expression holds; `before` is the scrape at the beginning of each range."""
    result = _evaluate(promql_parser.parse(expression), now, before)
    assert isinstance(result, dict)
    return result


def _evaluate(node: Any, now: Scrape, before: Scrape) -> Vector | float:
    if isinstance(node, promql_parser.NumberLiteral):
        return float(node.val)
    if isinstance(node, promql_parser.ParenExpr):
        return _evaluate(node.expr, now, before)
    if isinstance(node, promql_parser.VectorSelector):
        return now.select(node)
    if isinstance(node, promql_parser.Call):
        return _call(node, now, before)
    if isinstance(node, promql_parser.AggregateExpr):
        return _aggregate(node, now, before)
    assert isinstance(node, promql_parser.BinaryExpr), node
    return _combine(str(node.op), _evaluate(node.lhs, now, before), _evaluate(node.rhs, now, before))


def _call(node: Any, now: Scrape, before: Scrape) -> Vector | float:
    if node.func.name == "time":
        return now.time
    assert node.func.name == "increase"
    selector = node.args[0].vector_selector
    earlier, values = before.select(selector), now.select(selector)
    return {labels: value - earlier[labels] for labels, value in values.items() if labels in earlier}


def _aggregate(node: Any, now: Scrape, before: Scrape) -> Vector:
    assert str(node.op) == "max"
    values = _evaluate(node.expr, now, before)
    assert isinstance(values, dict)
    groups: dict[Labels, list[float]] = {}
    for labels, value in values.items():
        kept = frozenset((name, text) for name, text in labels if name in node.modifier.labels)
        groups.setdefault(kept, []).append(value)
    return {labels: max(group) for labels, group in groups.items()}


def _combine(operation: str, left: Vector | float, right: Vector | float) -> Vector:
    if operation == "or":
        assert isinstance(left, dict) and isinstance(right, dict)  # noqa: PT018
        return {**right, **left}
    if operation == "and":
        assert isinstance(left, dict) and isinstance(right, dict)  # noqa: PT018
        return {labels: value for labels, value in left.items() if labels in right}
    keys = left if isinstance(left, dict) else right
    assert isinstance(keys, dict)
    pairs = {
        labels: (
            left[labels] if isinstance(left, dict) else left,
            right[labels] if isinstance(right, dict) else right,
        )
        for labels in keys
        if not isinstance(right, dict) or labels in right
    }
    if operation in _ARITHMETIC:
        return {labels: _ARITHMETIC[operation](*pair) for labels, pair in pairs.items()}
    return {labels: pair[0] for labels, pair in pairs.items() if _COMPARISONS[operation](*pair)}
