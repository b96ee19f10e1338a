"""Plots: points lie where they should, ticks are round, names are escaped."""

import re

from onnxq.pipelines.report.plots import HEIGHT, MANY, MARGIN, WIDTH, Axes, Point, plot

AXES = Axes("place", "SQNR, dB")


def circles(drawn):
    return [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)]


def test_points_are_in_the_corners_they_belong_to():
    (left, low), (right, high) = circles(plot([Point(1, 0.0, "a"), Point(9, 10.0, "b")], AXES))
    assert left == MARGIN
    assert right == WIDTH - MARGIN / 2
    assert MARGIN / 2 <= high < low <= HEIGHT - MARGIN


def test_a_counting_axis_has_whole_numbers():
    drawn = plot([Point(i, 1.0, "") for i in range(1, 73)], AXES)
    across = re.findall(r'text-anchor="middle">([^<]*)<', drawn)
    assert across == ["1", "19", "36", "54", "72", "place"]


def test_of_many_points_only_the_marked_have_a_dot():
    points = [Point(i, i % 7, f"p{i}", marked=i == 5) for i in range(MANY + 1)]
    assert len(circles(plot(points, AXES))) == 1
    assert plot(points, AXES).count(",") > MANY  # the line has them all


def test_names_are_escaped_and_one_point_is_enough():
    drawn = plot([Point(1, 1.0, "<b>&", label="<i>")], Axes("<x>", "<y>"))
    assert "&lt;b&gt;&amp;" in drawn
    assert not re.search(r"<[bixy]>", drawn)
