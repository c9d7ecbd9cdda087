import re

import numpy as np
import pytest

NAMES = ("reference", "rtn-4", "rtn-2", "gptq-4", "<b>odd</b>-2")


@pytest.fixture(scope="module")
def table():
    from perplab.evaluation.quantization import CellResult, EffectiveBits, Grid, Measurement, grid_table

    def cell(place, name):
        nats = np.stack((np.full(20, 2.0 + place / 3) + np.arange(20) / 50, np.ones(20)), axis=1)
        right = np.stack((np.arange(20) < 18 - 3 * place, np.ones(20)), axis=1)
        measurements = (
            Measurement("log perplexity", "perplexity", "mean", nats, "nats per token", best="lower"),
            Measurement("facts: accuracy", "knowledge", "mean", right, chance=0.25),
        )
        return CellResult(name, measurements, EffectiveBits(16.0 - 3 * place, 16.0, 1_000_000 - 1000 * place), None)

    reference, *cells = (cell(place, name) for place, name in enumerate(NAMES))
    return grid_table(Grid("a model", reference, tuple(cells)), resamples=200)


@pytest.fixture(scope="module")
def page(table):
    from perplab.report import report
    from perplab.report.compression_section import compression_section

    return report([], studies=[compression_section(table)])


def test_every_model_is_a_point_in_every_plot_and_a_row_in_every_table(page, table):
    section = page[page.index('id="compression"') :]
    plots = re.findall(r"<svg class=\"plot\".*?</svg>", section, re.DOTALL)
    assert len(plots) == 3
    assert all(plot.count('class="point') == len(NAMES) for plot in plots)
    assert section.count('<th scope="row">rtn-4</th>') == len(plots) + 2


def test_names_from_outside_are_escaped(page):
    assert "<b>odd" not in page
    assert "&lt;b&gt;odd" in page


def test_the_page_asks_nothing_of_the_network_and_reads_by_keyboard(page):
    section = page[page.index('id="compression"') : page.index("<footer>")]
    assert not re.search(r"https?://|src=", section)
    assert section.count("<details>") == 3
    assert section.count('tabindex="0" role="region"') == 5
    assert '<a href="#compression">' not in page  # one section needs no list of sections
    assert "<h1>a model, compressed</h1>" in page


def test_the_front_is_what_no_other_model_beats():
    from perplab.report.compression_section import _front

    random = np.random.default_rng(0)
    points = [tuple(point) for point in random.random((50, 2)).tolist()]
    front = _front(points)
    assert front == sorted(front)
    for point in points:
        is_beaten = any(other[0] <= point[0] and other[1] <= point[1] and other != point for other in points)
        assert (point in front) == (not is_beaten)


def test_figures_that_cannot_be_read_are_words_and_no_points(table):
    from dataclasses import replace

    from perplab.report.compression_section import compression_section

    row = table.rows[-1]
    silent = replace(row.entries["facts: accuracy"], reading="no signal")
    changed = replace(table, rows=[*table.rows[:-1], replace(row, entries={**row.entries, "facts: accuracy": silent})])
    section = compression_section(changed)
    assert section.tables[0].rows[-1][2] == "no signal"
    assert section.figures[-1].plot.count('class="point') == len(NAMES) - 1
