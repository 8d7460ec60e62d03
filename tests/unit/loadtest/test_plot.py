"""A plot is well-formed, says its numbers, and puts points where they belong."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import plot
import pytest

_NAMESPACE = "{http://www.w3.org/2000/svg}"


def points_of(picture: str) -> list[list[tuple[float, float]]]:
    root = ElementTree.fromstring(picture)
    return [
        [tuple(float(part) for part in pair.split(",")) for pair in line.attrib["points"].split()]
        for line in root.iter(f"{_NAMESPACE}polyline")
    ]


def test_a_logarithmic_axis_has_a_place_for_nothing():
    curve = plot.Curve("fresh", [(0, 100), (1_000_000, 100), (10_000_000, 100)])
    ((nothing, million, ten),) = points_of(plot.draw("t", "rows", "µs", [curve], logarithmic=True))
    assert million[0] - nothing[0] == pytest.approx(ten[0] - million[0], abs=0.2)
    assert nothing[1] == million[1] == ten[1]


def test_height_is_in_proportion_and_begins_at_zero():
    curve = plot.Curve("a", [(1, 0), (2, 500), (3, 1000)])
    ((low, middle, high),) = points_of(plot.draw("t", "x", "y", [curve]))
    assert low[1] - middle[1] == pytest.approx(middle[1] - high[1], abs=0.2)


def test_names_are_text_whatever_they_hold():
    picture = plot.draw("a < b & c", "x", "y", [plot.Curve("<script>", [(1, 1)], [(0.5, 2)])])
    texts = [node.text for node in ElementTree.fromstring(picture).iter(f"{_NAMESPACE}text")]
    assert "a < b & c" in texts
    assert "<script>" in texts


@pytest.mark.parametrize("highest", [0.003, 1.0, 7.3, 99.0, 2500.0, 12_345_678.0])
def test_the_highest_point_is_inside(highest: float):
    picture = plot.draw("t", "x", "y", [plot.Curve("a", [(1, highest / 2), (2, highest)])])
    for _, y in points_of(picture)[0]:
        assert 40 < y < 350
