"""The cache of captured graphs: made once for a signature, compared, forgotten when wrong, given up with a reason."""

from __future__ import annotations

import warnings

import pytest
import torch

from pyro_vae.inference.capture import graph as capture
from pyro_vae.inference.capture.cache import BatchGraph, GraphCache, refilled
from pyro_vae.inference.capture.graph import NotCapturedError


class Numbers(GraphCache[int]):
    refusal = "numbers: made eagerly"
    difference = "they are others"
    most_misfits = 2
    misfit = "they change"


def test_a_graph_is_made_once_for_a_signature():
    cache, compared = Numbers(), []
    for key in ("a", "a", "b", "a"):
        cache.find(key, lambda: len(cache.graphs), lambda graph: compared.append(graph) is None)
    assert cache.graphs == {"a": 0, "b": 1}
    assert cache.captures == 2
    assert compared == [0, 0, 1, 0]


def test_a_failed_graph_is_captured_again_until_too_many_failed():
    cache = Numbers()
    for right in (1, 2):
        assert cache.find("a", lambda right=right: right, lambda graph, right=right: graph == right) == right
    assert cache.captures == 2
    with pytest.raises(NotCapturedError, match="they change"):
        cache.find("a", lambda: 3, lambda graph: graph == 3)


def test_a_graph_that_is_wrong_from_the_start_is_not_kept():
    cache = Numbers()
    with pytest.raises(NotCapturedError, match="captured, they are others"):
        cache.find("a", lambda: 1, lambda _: False)
    assert (cache.graphs, cache.captures) == ({}, 0)


def test_giving_up_warns_the_caller_and_drops_the_graphs():
    cache = Numbers()
    cache.find("a", lambda: 1, lambda _: True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cache.give_up("it has a reason", stacklevel=1)
    assert [str(w.message) for w in caught] == ["numbers: made eagerly: it has a reason."]
    assert caught[0].filename == __file__
    assert (cache.graphs, cache.reason) == ({}, "it has a reason")


def test_the_tensors_of_a_batch_take_the_place_of_those_at_capture(monkeypatch):
    """A tensor that no batch owns is read anew at each call."""
    monkeypatch.setattr(capture, "_compiled", lambda graph, inputs: graph)
    own, shared = [torch.tensor(2.0), torch.tensor(3.0)], torch.tensor(10.0)
    graph = BatchGraph(lambda x: (x * own[1] - own[0] + shared,), [torch.tensor(1.0)], own)
    x, other = torch.tensor(5.0), [torch.tensor(-1.0), torch.tensor(4.0)]
    assert float(graph([x], graph.inputs(own))[0]) == 5 * 3 - 2 + 10
    shared.fill_(20.0)
    assert float(graph([x], graph.inputs(other))[0]) == 5 * 4 + 1 + 20


def test_tensors_are_refilled_in_order():
    args, kwargs = (torch.zeros(1), "name", [torch.zeros(2)]), {"y": torch.zeros(3)}
    ours, named = refilled(args, kwargs, iter([torch.ones(1), torch.ones(2), torch.ones(3)]))
    assert (ours[1], float(ours[0]), ours[2][0].tolist(), named["y"].tolist()) == ("name", 1.0, [1, 1], [1, 1, 1])
