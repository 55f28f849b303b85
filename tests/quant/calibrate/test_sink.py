"""A block is kept while the next one is made: in order, one at a time, and nothing is lost."""

import errno
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from quant.calibrate import sink
from quant.calibrate.cost import StageMeter
from quant.calibrate.sink import Finished, InMemorySink, WriteBehind
from quant.calibrate.source import LoadedModel
from quant.calibrate.stream import QuantizationResult, quantize_blocks
from quant.checkpoint import partial
from quant.config import QuantizationConfig
from quant.errors import ArtifactError
from quant.scheme import Scheme
from quant.solvers import gptq, rtn
from quant.weight import QuantizedWeight
from tests.quant import killing
from tests.quant.architectures import BLOCKS, random_windows, tiny_model

SCHEME = Scheme(4, group_size=16)
SOLVERS = {"rtn": rtn.SOLVER, "gptq": gptq.SOLVER}
Keep = Callable[[int], None]


class Watched(InMemorySink):
    """A sink that notes what happens to it; keep(index) is what keeping a block takes."""

    def __init__(self, keep: Keep) -> None:
        super().__init__()
        self.keep = keep
        self.events: list[tuple[str, int]] = []
        self.made: list[Finished] = []

    def put(
        self, index: int, weights: dict[str, QuantizedWeight], made: Finished
    ) -> Callable[[], None]:
        self.events.append(("put", index))
        self.made.append(made)
        super().put(index, weights, made)

        def keep() -> None:
            self.events.append(("begin", index))
            self.keep(index)
            self.events.append(("end", index))

        return keep


class Stop(Exception):
    """What a test makes a run end with."""


def run(
    watched: Watched, method: str = "gptq", at_layer: Callable[[int], None] = lambda _: None
) -> QuantizationResult:
    """Quantize a small model into a sink; at_layer(block) is called when a layer is solved."""
    windows = random_windows(3) if method == "gptq" else []
    return quantize_blocks(
        LoadedModel(tiny_model("llama")),
        windows,
        QuantizationConfig(SOLVERS[method], SCHEME),
        watched,
        lambda _, __, name: at_layer(int(name.split(".")[2])),
    )


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_a_block_is_kept_while_the_next_is_made_and_before_it_is_put(method: str) -> None:
    solving = [threading.Event() for _ in range(BLOCKS)]
    threads = set()

    def keep(index: int) -> None:
        threads.add(threading.current_thread())
        if index + 1 < BLOCKS:  # for ever, if the run waited for this block first
            assert solving[index + 1].wait(30)
        time.sleep(0.05)

    watched = Watched(keep)
    run(watched, method, lambda block: solving[block].set())
    expected = [(what, i) for i in range(BLOCKS) for what in ("put", "begin", "end")]
    assert watched.events == expected
    assert threading.current_thread() not in threads
    assert len(threads) == 1
    assert not threads.pop().is_alive()


@pytest.mark.parametrize("failing", range(BLOCKS))
def test_an_error_of_the_sink_comes_out_and_nothing_is_put_after_it(failing: int) -> None:
    error = OSError(errno.ENOSPC, "No space left on device")

    def keep(index: int) -> None:
        if index == failing:
            raise error

    watched = Watched(keep)
    with pytest.raises(OSError, match="No space") as caught:
        run(watched)
    assert caught.value is error
    assert [index for what, index in watched.events if what == "put"] == list(range(failing + 1))
    assert watched.events[-1] == ("begin", failing)


@pytest.mark.parametrize("ending", [Stop, KeyboardInterrupt])
def test_an_error_of_the_run_lets_the_block_under_way_be_kept(ending: type[BaseException]) -> None:
    failed = threading.Event()

    def keep(index: int) -> None:
        if index == 1:
            assert failed.wait(30)
            time.sleep(0.1)

    def at_layer(block: int) -> None:
        if block == 2:
            failed.set()
            raise ending

    watched = Watched(keep)
    with pytest.raises(ending) as caught:
        run(watched, at_layer=at_layer)
    assert watched.events[-1] == ("end", 1)
    assert not hasattr(caught.value, "__notes__")


def test_of_two_errors_the_run_s_own_is_raised_and_tells_the_other() -> None:
    def keep(_: int) -> None:
        raise OSError("No space left on device")

    def at_layer(block: int) -> None:
        if block == 1:
            raise Stop

    with pytest.raises(Stop) as caught:
        run(Watched(keep), at_layer=at_layer)
    told = ["The block before it could not be written: No space left on device"]
    assert caught.value.__notes__ == told


def test_an_interrupt_while_a_block_is_waited_for_lets_it_be_kept() -> None:
    main = threading.get_ident()
    solved = threading.Event()

    def keep(index: int) -> None:
        if index == BLOCKS - 1:
            assert solved.wait(30)
            time.sleep(0.2)  # now the run has nothing to do but wait
            signal.pthread_kill(main, signal.SIGINT)
            time.sleep(0.2)

    watched = Watched(keep)
    with pytest.raises(KeyboardInterrupt):
        run(watched, at_layer=lambda block: solved.set() if block == BLOCKS - 1 else None)
    assert watched.events[-1] == ("end", BLOCKS - 1)


def test_waiting_and_the_work_behind_it_are_told_apart() -> None:
    watched = Watched(lambda _: time.sleep(0.3))
    begin = time.perf_counter()
    result = run(watched, "rtn")
    wall = time.perf_counter() - begin
    stages = {stage.name: stage for stage in result.stages}
    assert stages["write"].background >= 0.3 * BLOCKS
    assert stages["write"].seconds > 0.1  # rounding a small block takes no 0.3 s
    assert sum(stage.seconds for stage in result.stages) <= wall
    assert {stages[name].background for name in ("read", "solve")} == {0}
    # The block after it tells what keeping a block took; nobody tells it of the last one.
    told = [sum(stage.background for stage in made.stages) for made in watched.made]
    assert told[0] == 0
    assert all(seconds >= 0.3 for seconds in told[1:])
    assert sum(told) <= stages["write"].background - 0.3


def test_the_other_thread_brings_no_team_of_its_own_and_changes_no_other_s() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found: dict[str, int] = {}

        def note(who: str) -> None:
            found[who] = torch.get_num_threads()

        with StageMeter(torch.device("cpu")) as meter:
            with WriteBehind(meter, one_thread=True) as writer:
                note("run")
                writer.begin(lambda: note("alone"))
                later = threading.Thread(target=note, args=("later",))
                later.start()
                later.join()
            with WriteBehind(meter, one_thread=False) as writer:
                writer.begin(lambda: note("team"))
        note("afterwards")
        assert found == {"run": 2, "alone": 1, "later": 2, "team": 2, "afterwards": 2}
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(folder)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_the_files_are_those_of_writing_in_the_run_s_own_thread(
    method: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killing.make(model, tmp_path / "behind", method=method)
    monkeypatch.setattr(sink.WriteBehind, "begin", lambda _, write: write())
    killing.make(model, tmp_path / "first", method=method)
    assert files(tmp_path / "behind") == files(tmp_path / "first")


@pytest.mark.parametrize("block", [1, BLOCKS - 1])
def test_a_full_disk_is_told_and_the_run_after_it_goes_on(
    block: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killing.make(model, tmp_path / "whole")
    write = partial.write_shard

    def full(path: Path, entries: list[object]) -> None:
        if f"-{block + 1:05}-of-" in path.name:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, entries)

    with monkeypatch.context() as patch:
        patch.setattr(partial, "write_shard", full)
        with pytest.raises(ArtifactError, match=r"artifact could not be written: .*No space left"):
            killing.make(model, tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()
    assert killing.make(model, tmp_path / "artifact").resumed == block
    assert files(tmp_path / "artifact") == files(tmp_path / "whole")
