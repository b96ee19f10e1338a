"""Plots: points lie where they should, ticks are round, names are escaped."""

import re

import pytest

from onnxq.pipelines.report.plots import HEIGHT, MANY, MARGIN, WIDTH, Axes, Point, plot, round_values

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
    assert across == ["20", "40", "60", "place"]


@pytest.mark.parametrize(
    ("ends", "values"),
    [
        ((0.0, 1.0), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ((33.5, 46.5), [34, 36, 38, 40, 42, 44, 46]),
        ((-130.0, 120.0), [-100, -50, 0, 50, 100]),
        ((0.5, 1.5), [0.6, 0.8, 1.0, 1.2, 1.4]),
    ],
)
def test_ticks_are_round(ends, values):
    assert round_values(*ends) == pytest.approx(values)


def test_a_count_has_no_half():
    assert round_values(1, 3, least=1.0) == [1, 2, 3]


def test_of_many_points_only_the_marked_have_a_dot():
    points = [Point(i, i % 7, f"p{i}", marked=i == 5) for i in range(MANY + 1)]
    assert len(circles(plot(points, AXES))) == 1
    assert plot(points, AXES).count(",") > MANY  # the line has them all


def test_names_are_escaped_and_one_point_is_enough():
    drawn = plot([Point(1, 1.0, "<b>&", label="<i>")], Axes("<x>", "<y>"))
    assert "&lt;b&gt;&amp;" in drawn
    assert not re.search(r"<[bixy]>", drawn)


def test_a_line_may_join_some_points_only():
    points = [Point(1, 1.0, "a"), Point(2, 0.0, "b"), Point(3, 2.0, "c")]
    drawn = plot(points, AXES, [points[0], points[2]])
    (line,) = re.findall(r'points="([^"]*)"', drawn)
    ends = [f"{x:.1f},{y:.1f}" for x, y in (circles(drawn)[0], circles(drawn)[2])]
    assert line.split() == ends
