"""Fresh random numbers for all tests, and one thread each: two cores are soon shared.

All draw from one seed a run, which each failing test shows; OVERTONE_TEST_SEED brings it back.
"""

import os
import random
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

if TYPE_CHECKING:
    from results.ledger.store import Store

_SEED = int(os.environ.get("OVERTONE_TEST_SEED", secrets.randbits(32)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Show the seed before any fixture, so that it stands in the report of a failure in them too."""
    print(f"OVERTONE_TEST_SEED={_SEED}")


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


@pytest.fixture(scope="session")
def session_seed() -> int:
    """The seed of the run, for fixtures that several tests share."""
    return _SEED


@pytest.fixture
def rng(session_seed: int) -> random.Random:
    return random.Random(session_seed)


@pytest.fixture
def np_rng(session_seed: int) -> np.random.Generator:
    return np.random.default_rng(session_seed)


@pytest.fixture
def generator(rng: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(rng.getrandbits(62))


@pytest.fixture(scope="session")
def command_names() -> list[str]:
    """All commands of the command line, as they are typed after `overtone`."""
    import typer

    from search.commands.cli import app

    group = typer.main.get_group(app)
    nested = {name: getattr(command, "commands", {}) for name, command in group.commands.items()}
    return [f"{name} {part}".rstrip() for name, parts in nested.items() for part in parts or [""]]


@pytest.fixture
def s3_store(monkeypatch: pytest.MonkeyPatch) -> Iterator["Store"]:
    """A bucket over the real S3 protocol, on this machine."""
    server_module = pytest.importorskip("moto.server")
    from results.ledger.store import Store

    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    try:
        options = f"region=us-east-1&scheme=http&endpoint_override={host}:{port}&allow_bucket_creation=true"
        store = Store(f"s3://user:secret@bucket/prefix?{options}")
        store._files._fs.create_dir("bucket")
        yield store
    finally:
        server.stop()
