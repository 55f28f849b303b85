"""The notebook runs as committed, and so do the examples of docs/python.md."""

import json
import re
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

import bitsweep
from tests import warm

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
PAGE = ROOT / "docs" / "python.md"
STARTER = """
import sys
from pathlib import Path
from tests import warm
warm.use(Path(sys.argv[1]))
sys.exit(warm.start(sys.argv[2:]).wait())
"""


def test_the_notebook_is_ten_cells_without_outputs_and_places() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert len(cells) == 10
    for cell in cells:
        assert cell["cell_type"] == "markdown" or cell["outputs"] == []
        assert cell.get("execution_count") is None
    assert not re.search(r"/(home|root|work|tmp|Users)/", NOTEBOOK.read_text())


@pytest.mark.slow
def test_the_notebook_runs_in_a_kernel(tmp_path: Path) -> None:
    """Processes of cells start from a kernel, where `__main__` is no script."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    kernels = AsyncKernelManager(kernel_spec_manager=warm_kernels(tmp_path))
    NotebookClient(
        notebook, kernels, timeout=300, resources={"metadata": {"path": tmp_path}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    (figures,) = [o.data["text/plain"] for o in outputs if "RTN w4" in str(o.get("data"))]
    measured = json.loads(figures.replace("'", '"'))
    # The model knows its stories: full precision is best, and GPTQ at 3 bits beats chance by far.
    assert measured["full prec. w16"] < measured["RTN w4"] < measured["GPTQ w3"] < 10
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert (tmp_path / "report" / "summary.md").is_file()
    assert len(bitsweep.load_records(tmp_path / "results")) == 5


def warm_kernels(folder: Path) -> KernelSpecManager:
    """Kernels of Python that have imported torch and the packages already."""
    words = ["-c", STARTER, str(warm.place()), "-m", "ipykernel_launcher", "-f"]
    kernel = folder / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(
        json.dumps(
            {
                "argv": [sys.executable, *words, "{connection_file}"],
                "display_name": "warm",
                "language": "python",
            }
        )
    )
    return KernelSpecManager(kernel_dirs=[str(kernel.parent)], ensure_native_kernel=False)


def examples(page: str) -> list[str]:
    """The Python code of a page, block by block."""
    return re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def test_every_public_name_is_on_the_page() -> None:
    page = PAGE.read_text()
    for name in bitsweep.__all__:
        assert f"`{name}" in page or f"bitsweep.{name}" in page, name


@pytest.mark.slow
def test_the_examples_of_the_page_run_one_after_the_other(tmp_path: Path) -> None:
    """As one script without a guard for `__main__`: a cell's process must not run it again."""
    script = tmp_path / "script.py"
    script.write_text("print('begun')\n" + "\n".join(examples(PAGE.read_text())))
    done = warm.run([str(script)], cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    logs = [log.read_text() for log in tmp_path.glob("results/runs/*/*.log")]
    assert logs
    assert (done.stdout + "".join(logs)).count("begun") == 1
