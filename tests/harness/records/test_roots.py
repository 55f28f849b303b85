"""Places of the machine become paths below named roots."""

from pathlib import Path

from harness.records.roots import Roots


def test_places_become_roots() -> None:
    roots = Roots.of([("results", Path("/mnt/my disk/results")), ("model", Path("/mnt/models/a"))])
    for text, shown in (
        ("/mnt/my disk/results/cells/x.json is", "<results>/cells/x.json is"),
        ("at /mnt/my disk/results.", "at <results>."),
        ("/mnt/models/a-b/c.txt", "<elsewhere>/c.txt"),
        ("'/mnt/models/a/b.bin'", "'<model>/b.bin'"),
        (f"{Path.home()}/notes", "<home>/notes"),
        (f"(/mnt/x{Path.home()}/notes)", "(<elsewhere>/notes)"),
        ("see https://hf.co/docs/x or 3/4/5, and/or/else", None),
        ("no tokens/s in /one", None),
    ):
        assert roots.shown(text) == (shown or text)
