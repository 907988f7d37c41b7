"""Several processes: the same training as by one, one voice, one set of files, and one end."""

from __future__ import annotations

import pytest
import torch

from tests.children import Nursery
from tests.ranks import CASES, Job, trained

pytest.importorskip("resource", reason="forks and signals of POSIX")


@pytest.fixture(scope="module")
def nursery():
    with Nursery() as made:
        yield made


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request, nursery, tmp_path_factory) -> list[dict]:
    """What each rank of a job of 2 and of 3 has, of every case."""
    folder = tmp_path_factory.mktemp("ranks")
    job = Job(nursery, request.param, [str(folder), "{}"], folder, call="tests.ranks:train_all")
    assert job.wait() == [0] * request.param, job.texts
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize("name", CASES)
def test_the_same_noise_gives_the_training_of_one_process(ranks, name):
    expected = trained(name)
    for rank in ranks:
        torch.testing.assert_close(rank[name], expected, rtol=1e-9, atol=1e-10)
        assert all(torch.equal(rank[name]["state"][k], v) for k, v in ranks[0][name]["state"].items())
