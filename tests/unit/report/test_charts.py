"""Training curves: every series is drawn, however many there are."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from vrft import report
from vrft.report.charts import ChartPlan, curve_of, plan_chart, training_charts


def test_more_curves_than_colours_are_all_drawn():
    names = [f"term_{number}" for number in range(6)]
    logs = [{"step": step, **{name: 0.1 * number for number, name in enumerate(names)}} for step in range(1, 4)]
    plan = ChartPlan("terms", "mean of the batch", [(name, name) for name in names], is_share=True)
    svg = plan_chart(plan, logs).svg
    for name in names:
        assert name in svg
    assert svg.count("stroke-dasharray") >= 2  # the fifth and the sixth have the colours of the first two


class Elements(HTMLParser):
    """Names of elements and attributes, and all text."""

    def __init__(self, text):
        super().__init__()
        self.names, self.text = set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names |= {tag, *(name for name, _ in attrs)}

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("name", ['"><img src=x onerror=alert(1) x="', "</svg><script>", "a$^2$ & {b}"])
def test_the_name_of_a_term_is_text(name):
    """It may come from another's run, by a key of metrics.jsonl; and a $ is a $, not the start of a formula."""
    logs = [{"step": step, f"rewards/{name}/mean": 0.5, "rewards/iou/mean": 0.7} for step in (1, 2)]
    svg = str(training_charts(logs, metric="iou", best_step=None)[0].svg)
    page = Elements(svg)
    assert not {"img", "script", "onerror", "src"} & page.names
    if "/" not in name:
        assert name in page.text
        assert f"{name} from 0.5" in dict(re.findall(r'(aria-label)="([^"]*)"', svg)).get("aria-label", "").replace(
            "&#34;", '"').replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&")  # fmt: skip


def test_no_template_leaves_escaping_out():
    templates = sorted(Path(report.__file__).parent.glob("*.jinja"))
    assert len(templates) == 5
    assert not [path.name for path in templates if re.search(r"\|\s*safe|autoescape", path.read_text())]


@pytest.mark.parametrize(
    ("metric", "note"), [("iou", "on 12 rows for validation"), ("AP", "on 12 images for validation")]
)
def test_validation_says_what_it_counts_and_which_dot_is_untrained(metric, note):
    logs = [{"step": step, f"validation/{metric}": value, "validation/n": 12} for step, value in ((0, 0.4), (5, 0.3))]
    chart = training_charts(logs, metric=metric, best_step=0)[0]
    assert chart.note.startswith(note)
    assert "best 0.400, untrained" in chart.svg
    logs[1][f"validation/{metric}"] = 0.5
    assert ">untrained<" in training_charts(logs, metric=metric, best_step=5)[0].svg


def test_what_is_no_drawable_number_is_left_out():
    values = [0.5, float("nan"), float("inf"), "nan", None, 10**400, 0.7]
    logs = [{"step": step, "kl": value} for step, value in enumerate(values)]
    assert curve_of(logs, "kl", "").values == [0.5, 0.7]
