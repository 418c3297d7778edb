"""The chart is well-formed and puts points where they belong."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from benches.replay.svg import BOTTOM, HEIGHT, LEFT, RIGHT, WIDTH, chart


def test_a_line_runs_from_the_left_edge_to_the_right_one() -> None:
    figure = chart("a < b", "GB", "%", {"rule & co": [(5, 0.0), (50, 10.0), (500, 20.0)]})
    root = ET.fromstring(figure)
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a < b", "rule & co", "5", "50", "500", "20"} <= set(texts)
    path = next(match for match in re.findall(r'd="M([^"]*L[^"]*)"', figure))
    points = [tuple(float(at) for at in point.split()) for point in path.split("L")]
    assert points[0] == (LEFT, HEIGHT - BOTTOM)
    assert points[2][0] == WIDTH - RIGHT
    assert points[1][0] == (LEFT + WIDTH - RIGHT) / 2
    assert points[0][1] > points[1][1] > points[2][1]
