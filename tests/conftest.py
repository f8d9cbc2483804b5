"""Fresh random numbers for all tests, and one thread each: two cores are soon shared."""

import os
import random
import secrets
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def _cache_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is kept in the home folder of whoever runs the tests; modules' own fixtures load data too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OVERTONE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def rng() -> random.Random:
    """Fresh in every run; a failing test shows the seed, and OVERTONE_TEST_SEED brings it back."""
    seed = int(os.environ.get("OVERTONE_TEST_SEED", secrets.randbits(32)))
    print(f"OVERTONE_TEST_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
def generator(rng: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(rng.getrandbits(62))
