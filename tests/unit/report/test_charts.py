"""Training curves: every series is drawn, however many there are."""

from __future__ import annotations

from vrft.report.charts import ChartPlan, plan_chart


def test_more_curves_than_colours_are_all_drawn():
    names = [f"term_{number}" for number in range(6)]
    logs = [{"step": step, **{name: 0.1 * number for number, name in enumerate(names)}} for step in range(1, 4)]
    plan = ChartPlan("terms", "mean of the batch", [(name, name) for name in names], is_share=True)
    svg = plan_chart(plan, logs).svg
    for name in names:
        assert name in svg
    assert svg.count("stroke-dasharray") >= 2  # the fifth and the sixth have the colours of the first two
