"""What a ladder is made of, and what is refused before anything is trained."""

import pytest

from perplab.errors import PerplabError
from perplab.laws.ladder import Cell, LadderConfig, Shape

GRID = {"shapes": ("8x1", "16x1"), "multipliers": (20,), "extra": ("8x1@80",), "held_out": ("16x1@80",)}


def cells_of(**changes):
    return LadderConfig(**(GRID | changes)).cells


def test_every_shape_is_run_at_every_multiplier_beside_extra_and_held_out_cells():
    names = {cell.name: cell.held_out for cell in cells_of(multipliers=(5, 20))}
    assert names == {
        "8x1@5-seed0": False,
        "16x1@5-seed0": False,
        "8x1@20-seed0": False,
        "16x1@20-seed0": False,
        "8x1@80-seed0": False,
        "16x1@80-seed0": True,
    }


def test_a_held_out_cell_of_the_grid_is_not_fitted():
    assert [cell for cell in cells_of(held_out=("16x1@20",)) if cell.held_out] == [Cell(Shape(16, 1), 20.0, 0, True)]


def test_cells_are_made_once_for_each_seed_and_never_twice():
    names = [cell.name for cell in cells_of(seeds=(3, 5, 3), extra=("8x1@80", "8x1@20"))]
    assert len(names) == len(set(names)) == 2 * 4
    assert {name.partition("seed")[2] for name in names} == {"3", "5"}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"held_out": ("32x1@80",)}, "32x1@80 is off the grid, which has no shape 32x1: choose from 8x1, 16x1"),
        ({"held_out": ("16x1@8",)}, "16x1@8 is off the grid, which has no multiplier 8: choose from 20, 80"),
        ({"extra": ("9x9@80",)}, "9x9@80 is off the grid"),
        ({"extra": ("16x1@80",)}, "16x1@80 is both fitted and held out"),
        ({"multipliers": (20, -5)}, "multiplier is -5: give a positive number"),
        ({"multipliers": (float("nan"),)}, "multiplier is nan"),
        ({"extra": ("8x1@0",)}, "multiplier is 0"),
        ({"extra": ("8x1@inf",)}, "multiplier is inf"),
        ({"shapes": ("8*1", "8x1", "16x1")}, "'8*1' is not a shape: write WIDTHxLAYERS"),
        ({"shapes": ("0x1", "8x1", "16x1")}, "'0x1' is not a shape"),
        ({"held_out": ("16x1",)}, "'16x1' is not a cell"),
        ({"held_out": ("16x1@many",)}, "'16x1@many' is not a cell"),
        ({"shapes": ()}, "without shapes"),
        ({"seeds": ()}, "without seeds"),
        ({"workers": 0}, "workers is 0"),
        ({"heldout_bytes": 0}, "heldout_bytes is 0"),
    ],
)
def test_what_cannot_be_meant_is_one_line(changes, complaint):
    with pytest.raises(PerplabError) as refused:
        cells_of(**changes)
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)
