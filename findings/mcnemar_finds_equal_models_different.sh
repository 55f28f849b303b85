#!/usr/bin/env bash
# Guess: McNemar's test by chi-square (exact=False), with the continuity correction that is the default, gives p = 1 for two
#   models that answer every question alike, and for two that win the same number of questions from each other.
# Versions: statsmodels 0.15.0, mlxtend 0.25.0, scipy 1.17.1, numpy 2.4.6.
# File: tables of 1,000 questions, b right in the first model only, c in the second only.
# Came: b = c = 0 has the statistic infinity and p = 0 in both: the correction takes 1 from |b - c| = 0, squares the -1 and
#   divides by 0. For b = c > 0 the same -1 gives p = 0.75 (5 each) to 0.90 (30 each); the exact test says 1. A correction
#   stops at 0 (R's mcnemar.test leaves it out where b = c).
# Known: NaN of the uncorrected test and a ZeroDivisionError of evaluate's (huggingface/evaluate#795); of p = 0 nothing was found.
# Matters: a quantized model with no changed answer on a small task, the best result there is, is reported as different with
#   certainty; a script that corrects many tasks for multiple tests (Holm) has its first rejection there.
# Helps: exact=True, statsmodels' default.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv
venv/bin/pip install -q statsmodels==0.15.0 mlxtend==0.25.0 scipy==1.17.1 numpy==2.4.6 2>/dev/null
venv/bin/python - 2>/dev/null <<'PY'
import mlxtend.evaluate, numpy as np
from scipy.stats import binomtest, chi2
from statsmodels.stats.contingency_tables import mcnemar

for b, c in ((0, 0), (5, 5), (30, 30), (3, 9), (10, 30)):
    table = np.array([[700, b], [c, 300 - b - c]])
    true = binomtest(b, b + c).pvalue if b + c else 1.0
    stopped = chi2.sf(max(abs(b - c) - 1, 0) ** 2 / max(b + c, 1), 1)
    theirs = mcnemar(table, exact=False)
    _, of_mlxtend = mlxtend.evaluate.mcnemar(table, exact=False)
    print(f"b {b}, c {c}: exact p {true:.3g}, corrected and stopped at 0 {stopped:.3g}; statsmodels {theirs.pvalue:.3g} "
          f"(statistic {theirs.statistic:.3g}), mlxtend {of_mlxtend:.3g}")
    assert mcnemar(table).pvalue == min(true, 1) or abs(mcnemar(table).pvalue - true) < 1e-9
    if b + c == 0:
        assert theirs.pvalue == of_mlxtend == 0 and np.isinf(theirs.statistic)
    elif b == c:
        assert stopped == true == 1 and theirs.pvalue < 0.9, theirs
        assert abs(of_mlxtend - theirs.pvalue) < 1e-9
    else:
        assert abs(theirs.pvalue - stopped) < 1e-9
PY
# Output seen:
# b 0, c 0: exact p 1, corrected and stopped at 0 1; statsmodels 0 (statistic inf), mlxtend 0
# b 5, c 5: exact p 1, corrected and stopped at 0 1; statsmodels 0.752 (statistic 0.1), mlxtend 0.752
# b 30, c 30: exact p 1, corrected and stopped at 0 1; statsmodels 0.897 (statistic 0.0167), mlxtend 0.897
# b 3, c 9: exact p 0.146, corrected and stopped at 0 0.149; statsmodels 0.149 (statistic 2.08), mlxtend 0.149
# b 10, c 30: exact p 0.00222, corrected and stopped at 0 0.00266; statsmodels 0.00266 (statistic 9.03), mlxtend 0.00266
