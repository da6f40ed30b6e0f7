"""What `vrft check` says of golds written in the model's frame and read back."""

import pytest
from configs import composed

from vrft.cli.check import gold_figures, run
from vrft.errors import UserError
from vrft.tasks import load_task
from vrft.tasks.boxes import Frame

WH = (640, 480)


def test_what_training_refuses_of_rows_is_refused_with_the_figures(tmp_path, capsys):
    small = ("experiment=digits_riddles", "debug=smoke", "memory.max_prompt_length=20", f"run.dir={tmp_path / 'run'}")
    with pytest.raises(UserError, match=r"longer than memory.max_prompt_length=20.*\n.*train, row"):
        run(composed(*small, "trainer.epochs=1", verb="check"))
    printed = capsys.readouterr()
    assert "rows exceed memory.max_prompt_length=20" in printed.out
    assert (tmp_path / "run" / "golds.png").is_file()
    assert "vrft train would refuse this config: trainer.max_steps is 2 and trainer.epochs is 1" in printed.err


def in_frame(name):
    return lambda row: Frame(name, WH, (532, 392))


def test_the_figures_are_of_every_gold_box():
    rows = [
        {"row_id": "a", "image_wh": WH, "category": "dog", "gold": [[0, 0, 640, 480], [3, 3, 6, 6]]},
        {"row_id": "b", "image_wh": WH, "category": "dog", "gold": []},
    ]
    exact = gold_figures(load_task("detection"), {"train": rows}, in_frame("pixels"))
    assert exact == {"n": 2, "n_exact": 2, "n_below_0.95": 0, "lowest": 1.0, "lowest_row": "a", "n_merged": 0}
    rounded = gold_figures(load_task("detection"), {"train": rows}, in_frame("norm1000"))
    assert (rounded["n"], rounded["n_exact"], rounded["n_below_0.95"]) == (2, 1, 1)
    x1, y1, x2, y2 = 3.2, 2.88, 5.76, 5.76  # 3 of 640 is 4.69 of 1000, so 5, which is 3.2; and so on
    overlap = (x2 - x1) * (y2 - 3)
    alike = [{**rows[0], "gold": [[3, 3, 6, 6], [3, 3, 6.05, 6], [0, 0, 640, 480]]}]
    merged = gold_figures(load_task("detection"), {"train": alike}, in_frame("norm1000"))
    assert (merged["n"], merged["n_merged"]) == (3, 1)
    assert rounded["lowest"] == pytest.approx(overlap / (9 + (x2 - x1) * (y2 - y1) - overlap))


def test_a_gold_that_its_task_cannot_read_is_named():
    class Mumbling(type(load_task("counting"))):
        def write(self, gold, frame):
            return "many"

    rows = [{"row_id": "a", "image_wh": WH, "category": "dog", "gold": 3}]
    with pytest.raises(UserError, match=r"cannot read back.*\n.*train, row a: gold 3 \(not_found\)"):
        gold_figures(Mumbling(), {"train": rows}, in_frame("norm1000"))
