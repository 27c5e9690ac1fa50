"""The table of boot tests: what is kept of it by a run of some of them."""

from __future__ import annotations

from tests.boot.matrix import _HEAD, Row, cell_name, read_table


def test_names_are_for_people() -> None:
    node = "tests/boot/test_restored.py::test_restored[bios-usb-virtio-same]"
    assert cell_name(node, True) == "restored bios usb virtio same *(ci)*"
    assert cell_name("tests/boot/test_refused.py::test_misspelt_word", False) == "misspelt word"


def test_rows_are_read_back() -> None:
    row = Row("misspelt word", 12, "passed", "2026-01-02")
    other = Row("restored bios *(ci)*", 240, "failed", "2026-01-03")
    text = _HEAD + "".join(
        f"| {one.cell} | {one.seconds} | {one.result} | {one.date} |\n" for one in (row, other)
    )
    assert read_table(text) == {row.cell: row, other.cell: other}
    assert read_table(_HEAD) == {}
