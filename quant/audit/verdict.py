"""Verdict: one word for the evidence on a layer, and the sentence that says why.

The thresholds were set on synthetic layers of known origin (tests/quant/audit), for which the
confusion matrix is printed in docs/audit.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from quant.audit.trials import FOLLOWED

if TYPE_CHECKING:
    from quant.audit.layer import ErrorAlone, Evidence

NOT_QUANTIZED = "not quantized"
NOT_JUDGED = "not judged"  # no token of the text reached the layer (an expert)
NO_GRID = "no grid of this type here"  # vectors of a codebook, factors
NOT_THIS_BASE = "not this base"
ROUNDED = "this layer is RTN"
WORSE_THAN_ROUNDING = "worse than RTN"
AS_GOOD = "as good as the solver"
OTHER_DATA = "solved on other data"
WORSE_THAN_SOLVER = "worse than the solver on this text"
VERDICTS = (
    AS_GOOD,
    OTHER_DATA,
    WORSE_THAN_SOLVER,
    ROUNDED,
    WORSE_THAN_ROUNDING,
    NOT_THIS_BASE,
    NOT_QUANTIZED,
    NOT_JUDGED,
    NO_GRID,
)

UNRELATED = 0.3  # cosine below which weights have nothing to do with each other
RTN = 0.99  # share of codes that must be the nearest levels
SAME_ERROR = 1.05  # of the solver's error
WORSE = 1.02  # of the error of rounding
# Share of codes below which no loop on this text has chosen them. A loop on a Hessian that differs
# a little (of half precision, of inputs taken elsewhere in the block) follows 97 % and more.
OTHER = 0.97


@dataclass(frozen=True)
class Verdict:
    """What a layer is: one of VERDICTS, and the evidence for it in one sentence."""

    name: str
    why: str


def judge_alone(seen: ErrorAlone, kind: str, why: str) -> Verdict:
    """Return the verdict on a layer whose type `kind` has no grid of single weights, and `why`."""
    return _unrelated(seen) or Verdict(
        NO_GRID,
        f"{kind} {why}, so there is neither rounding nor a solver to compare with; its error is "
        f"{seen.error:.3g} of the layer's output",
    )


def _unrelated(seen: Evidence | ErrorAlone) -> Verdict | None:
    if seen.cosine >= UNRELATED:
        return None
    said = f"its weights and those of the base have a cosine of {seen.cosine:.2f}"
    return Verdict(NOT_THIS_BASE, said)


def judge(seen: Evidence) -> Verdict:
    """Return the verdict on a quantized layer; the first rule that applies decides."""
    unrelated = _unrelated(seen)
    if unrelated is not None:
        return unrelated
    share = f"{100 * seen.rounded:.1f} % of the codes are the nearest levels"
    if seen.rounded >= RTN:
        solver = f"{100 * seen.solver_rounded:.1f} % of the solver's"
        return Verdict(ROUNDED, f"{share}, {solver}")
    times = f"{seen.error / seen.rounding_error:.3g} times the error of rounding"
    if seen.error > WORSE * seen.rounding_error:
        return Verdict(WORSE_THAN_ROUNDING, f"{times}; {share}")
    if seen.followed >= FOLLOWED:
        steps = f"{100 * seen.followed:.1f} % of the codes are what the solver would choose"
        same = f"{steps} behind the codes before them ({seen.same_as})"
        if seen.error > SAME_ERROR * seen.solver_error:  # another damping or order is better here
            times = f"{seen.error / seen.solver_error:.3g} times"
            same += f"; {times} the error of its better settings"
        return Verdict(AS_GOOD, same)
    over = f"{seen.error / seen.solver_error:.3g} times the solver's error, {times}"
    if seen.error <= SAME_ERROR * seen.solver_error:
        return Verdict(AS_GOOD, over)
    if seen.any_loop is None:
        return Verdict(WORSE_THAN_SOLVER, f"{over}; {share}")
    steps = f"{100 * seen.any_loop:.1f} % of the codes"
    if seen.any_loop < OTHER:
        order = seen.order if seen.order == "act-order" else f"{seen.order} order"
        loop = f"its columns were corrected in {order}, but at most {steps} follow this text"
        return Verdict(OTHER_DATA, f"{loop}; {over}")
    if seen.any_loop < FOLLOWED:
        return Verdict(WORSE_THAN_SOLVER, f"{over}; at most {steps} follow this text")
    return Verdict(WORSE_THAN_SOLVER, f"{over}; {steps} are {seen.any_loop_as}")
