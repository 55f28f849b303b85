"""Records of older versions are read in today's form."""

import json

from harness.records.migrate import STEPS, migrated
from harness.records.record import SCHEMA_VERSION


def test_older_records_are_read_in_today_s_form() -> None:
    steps = {
        1: lambda values: {**values, "two": values["one"]},
        2: lambda values: {key: value for key, value in values.items() if key != "one"},
    }
    assert migrated('{"one": 7}', steps, 3) == {"two": 7, "schema_version": 3}
    assert migrated('{"schema_version": 2, "one": 7}', steps, 3) == {"schema_version": 3}
    assert migrated('{"schema_version": 9}', steps, 3) == {"schema_version": 9}
    assert set(STEPS) == set(range(1, SCHEMA_VERSION)), "every version that was left has a step"


def test_words_of_version_1_are_read_as_today_s() -> None:
    metric = {"name": "twin_decode_ms", "value": 3, "notes": {"kernel": "cpu"}}
    missing = {
        "name": "decode_ms",
        "notes": {"full-precision twin": "needs 9 GiB", "kernel": "cpu"},
    }
    stage = {"name": "seconds", "task": "layout"}
    found = migrated(json.dumps({"schema_version": 1, "metrics": [metric, missing, stage, 7]}))
    assert found["schema_version"] == SCHEMA_VERSION
    assert found["metrics"] == [
        {**metric, "name": "baseline_decode_ms"},
        {"name": "decode_ms", "notes": {"kernel": "cpu", "full-precision baseline": "needs 9 GiB"}},
        {"name": "seconds", "task": "structure"},
        7,
    ]
