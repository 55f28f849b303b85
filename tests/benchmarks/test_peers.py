"""The comparison with other programs: its table, and what it says of an environment that is not."""

import pytest

from benchmarks.peers import decode


def test_the_table_has_medians_between_the_fastest_and_the_slowest_round() -> None:
    subject = decode.Subject("w4g64, head w8g32", 93_600_000)
    for clock in (9.0, 8.0, 30.0):
        subject.decode.add(clock, 2 * clock)
        subject.prompt.add(100 * clock, 150 * clock)
    row = decode.table([subject]).splitlines()[1]
    expected = "w4g64, head w8g32 93.6 9.00 [8.00, 30.00] 18.00 900 [800, 3000] 1350"
    assert " ".join(row.split()) == expected


def test_an_environment_that_is_not_there_is_named(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv(decode.PEER, raising=False)
    assert decode._interpreter() is None
    monkeypatch.setenv(decode.PEER, str(tmp_path))
    with pytest.raises(SystemExit, match=f"{decode.PEER}=.* has no bin/python"):
        decode._interpreter()


def test_packages_of_peers_are_pinned() -> None:
    lines = (decode.HERE / "requirements.txt").read_text().splitlines()
    assert all("==" in line for line in lines if line and not line.startswith("#"))
