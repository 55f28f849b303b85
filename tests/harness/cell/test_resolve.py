"""What a cell is resolved to, and what is refused in one sentence before anything is loaded."""

import pytest

from harness.cell import resolve as resolving
from harness.cell.resolve import make_scheme, resolve
from harness.config.compose import compose_cells
from harness.config.schema import OutsideConfig, SchemeConfig
from harness.errors import BitsweepError, ConfigError
from harness.run import launch
from quant.scheme import Scheme
from tests.harness.cells import cell_of


def test_suites_in_their_order() -> None:
    (cell,) = compose_cells(["suite=[latency,zeroshot,perplexity]"])
    names = [each.suite.name for each in cell_of(cell.config).choices.suites]
    assert names == ["zeroshot", "perplexity", "latency"], "as given, what is timed last"


def test_a_model_is_looked_for_once_for_all_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    sought, find = [], resolving.find_model
    found = lambda config, *rest: (sought.append(config.context), find(config, *rest))[1]  # noqa: E731
    monkeypatch.setattr(resolving, "find_model", found)
    sweep = compose_cells(["scheme=w4,w3", "model.context=null,64", "method=rtn"], multirun=True)
    cells = launch.resolve_all(sweep)
    assert sought == [None, 64]
    assert [each.model.config.context for each in cells] == [None, 64, None, 64]
    launch.resolve_all(sweep[:1])
    assert sought == [None, 64, None], "files may have changed since"


def test_schemes() -> None:
    assert make_scheme(SchemeConfig(bits=16)) is None
    assert make_scheme(SchemeConfig(bits=3, group_size=128)) == Scheme(bits=3, group_size=128)
    headed = SchemeConfig(bits=3, head=OutsideConfig(bits=8, group_size=32))
    assert make_scheme(headed) == Scheme(bits=3, head=Scheme(bits=8, group_size=32))
    for head in (OutsideConfig(), OutsideConfig(bits=8)):
        with pytest.raises(ConfigError, match="16 is not quantized"):
            make_scheme(SchemeConfig(bits=16, group_size=128, head=head))


def test_a_head_is_named_or_set_by_its_keys() -> None:
    lines = [["scheme=w4g64_head8"], ["scheme=w4g64_head_w8g32"]]
    lines += [
        [
            "scheme=w4",
            "scheme.group_size=64",
            *(f"scheme.head.{k}" for k in ("bits=8", "group_size=32")),
        ]
    ]
    found = [cell.config.scheme for line in lines for cell in compose_cells(line)]
    assert found[0] == found[1] == found[2]
    made = make_scheme(found[0])
    assert made == Scheme(4, 64, head=Scheme(8, 32))


REFUSED = [
    # wrong names
    ("scheme=w9", "scheme=w9 is not an option", "8"),
    ("scheme=w4g", "scheme=w4g is not an option", "such as w4g128"),
    ("scheme=w4_nope", "scheme=w4_nope is not an option", "nope"),
    ("model=opt-126m", "did you mean opt-125m", "--help model"),
    ("modle=embedded", "modle is not a key", "did you mean model"),
    ("experiment=quikstart", "did you mean quickstart", "quickstart"),
    ("suite=[perplexity,nope]", "suite=nope is not an option", "latency"),
    ("model.dtyp=float16", "model.dtyp is not a key", "did you mean dtype"),
    ("quant.bits=3", "quant is not a key", "scheme"),
    ("+model.x=1", "nothing reads", "remove the +"),
    # wrong values
    ("model.context=abc", "model.context", "whole number or null"),
    ("method.act_order=maybe", "method.act_order", "true or false"),
    ("model.dtype=float8", "model.dtype=float8 is unknown", "bfloat16"),
    ("scheme.head.bits=9", "scheme.head: bits=9 is not a bit width", "8"),
    ("scheme.head.group_size=8", "scheme.head has no bits", "scheme.head.bits=8"),
    ("scheme.bits=9", "bits=9 is not a bit width", "2, 3, 4, 5, 6, 7, 8"),
    ("scheme.levels=five", "scheme.levels: there is no module five", "ternary"),
    ("seed=-1", "seed=-1 is too small", "0 or more"),
    ("runtime.timeout_s=0", "leaves no time", "null"),
    ("runtime.device=tpu", "runtime.device=tpu is unknown", "cuda"),
    ("runtime.kernel=marlin", "marlin", "reference"),
    ("runtime.kernel=cuda", "no GPU", "kernel=reference"),
    ("seed=[1", "cannot be read", "quotes"),
    ("scheme=w4,w3", "gives several values", "add -m"),
    # impossible combinations
    ("method=none", "does not quantize", "scheme=w16"),
    ("scheme=w16", "needs a scheme to quantize to", "method=none"),
    ("calib=none", "needs calibration text", "calib=embedded"),
    ("calib.sequences=0", "calib.sequences=0", "method=rtn"),
    ("calib.length=1", "too short", "null"),
    ("method=rtn method.true_sequential=true", "not an option of quant.solvers.rtn", "leave it"),
    ("method=rtn method.damping=0.1", "not an option of quant.solvers.rtn", "method=gptq"),
    ("method=rtn method.damping_ladder=[0.1]", "not an option of", "method=gptq"),
    ("method.dampin=0.1", "method.dampin=0.1 is not an option", "did you mean damping"),
    ("method.damping=much", "method.damping", "a number"),
    ("method=none scheme=w16 method.damping=0.1", "has no effect", "method=gptq"),
    ("method.solver=quant.solvers.gptk", "no module quant.solvers.gptk", "--config-dir"),
    ("method.solver=quant.solvers.base", "no SOLVER", "SOLVER = Solver(...)"),
    ("method.solver=gp-tq", "not the name of a module", "quant.solvers.gptq"),
    ("suite.perplexity.module=harness.suites.base", "no SUITE", "SUITE = Suite(...)"),
    ("suite.latency.repeat=2", "suite.latency.repeat=2 is not an option", "did you mean repeats"),
    ("suite.latency.repeats=few", "suite.latency.repeats", "a whole number"),
    ("suite.mine.module=harness.suites.kernels suite.mine.batches=[1]", "called kernels", "rename"),
    ("method.damping_ladder=[0.1,0.05]", "does not rise", "[0.1, 1.0]"),
    ("method.static_groups=true method.group_grid=stale", "has no effect", "static_groups=false"),
    ("scheme=ternary_g8 scheme.symmetric=true", "ternary levels", "symmetric=false"),
    ("method=rtn scheme=w3g64_hessian", "RTN does not have", "method=rtn_calibrated"),
    ("method=hqq scheme=w3g64", "which uniform levels do not store", "use scheme=hqq3g64"),
    ("method=hqq scheme=hqq3g64 method.beta=0", "beta=0.0 cannot be", "above 0"),
    ("method=rtn_calibrated scheme=w3g64_mse", "without calibration", "use method=rtn"),
    ("method.few_tokens=rtn scheme=w3g64_hessian", "without a Hessian", "few_tokens=damp"),
    ("scheme.head.bits=8 scheme.head.grid=hessian", "head.grid=hessian", "head.grid=mse"),
    ("suite=[]", "nothing to measure", "suite=[perplexity,latency]"),
    ("suite=[latency] suite.perplexity.batch_size=2", "suite", "suite"),
    ("suite.latency.decode_tokens=9999", "context of 512", "smaller"),
    ("suite.perplexity.protocols=[]", "is empty", "[wikitext2]"),
    ("suite.perplexity.batch_size=0", "too small", "1 or more"),
    ("method.damping=nan", "method.damping=nan is not finite", "use a finite number"),
    ("method.damping_ladder=[nan]", "damping_ladder=[nan] does not rise", "larger shares"),
    ("runtime.timeout_s=nan", "runtime.timeout_s=nan is not finite", "use a finite number"),
    ("model.expected.embedded=inf", "model.expected.embedded=inf", "use a finite number"),
    ("seed=9223372036854775808", "is too large for", "use 0 to 9223372036854775807"),
    ("calib.seed=99999999999999999999", "is too large for", "use 0 to 9223372036854775807"),
    # missing things
    ("model=local", "needs a folder", "model.path=FOLDER"),
    ("model=local model.path=/nowhere", "is not a folder", "config.json"),
    ("model=hub", "needs a repository", "model.id="),
    ("calib=documents", "reads a local file", "calib.path=<file>"),
    ("calib=text calib.path=/nowhere.txt", "no file or folder /nowhere.txt", "correct the path"),
    ("calib=documents calib.path=@ calib.documents.count=0", "count=0 is too small", "use 1 or"),
    ("calib=documents calib.path=@ calib.documents.start=-1", "start=-1 is too small", "use 0 or"),
    (
        "suite.perplexity.protocols=[documents] suite.perplexity.paths.documents=@ "
        "suite.perplexity.documents.count=-3",
        "count=-3 is too small",
        "use 1 or more, or null for all",
    ),
    (
        "suite.perplexity.protocols=[documents] suite.perplexity.paths.documents=@ "
        "suite.perplexity.documents.separator=''",
        "separator of documents is empty",
        "the text between two documents",
    ),
    ("suite.perplexity.protocols=[wikitex2]", "wikitex2", "did you mean wikitext2"),
    ("suite.perplexity.protocols=[wikitext2]", "could not be downloaded", "wikitext2=<file"),
    ("suite.perplexity.paths.c4=/x", "not measured", "suite.perplexity.protocols"),
    ("suite.zeroshot.files.mine=/nowhere.jsonl", "/nowhere.jsonl", "correct the path"),
]


@pytest.mark.parametrize(("given", "what", "next_step"), REFUSED, ids=[r[0] for r in REFUSED])
def test_what_is_impossible_is_said_with_the_next_step(
    given: str, what: str, next_step: str
) -> None:
    def attempt() -> None:
        for cell in compose_cells(given.replace("@", __file__).split(" ")):
            resolve(cell.config)

    with pytest.raises(BitsweepError) as caught:
        attempt()
    message = str(caught.value)
    assert what in message
    assert next_step in message
    assert "\n" not in message, "one sentence on one line"
    assert message.endswith((".", "?"))
