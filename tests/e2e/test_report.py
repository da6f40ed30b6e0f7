"""The report and the comparison: what they say, that they load nothing, and that a browser opens them."""

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import yaml
from synthetic_run import write_run

from vrft.errors import UserError
from vrft.files import read_rows, write_rows
from vrft.report.figures import methods_of
from vrft.report.gallery import choose
from vrft.report.page import write_comparison, write_report
from vrft.report.run_files import RunFiles
from vrft.report.write import write_reports

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


class Page(HTMLParser):
    """The tags, addresses and visible words of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")]

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def report(run_dir, others=()):
    return Page(write_report(run_dir, others).read_text())


def assert_loads_nothing(path):
    text = path.read_text()
    page = Page(text)
    assert not {"link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert page.addresses, "the pictures at least"
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert not re.search(r"@import|url\((?!['\"]?#)", text)
    assert "Content-Security-Policy" in text


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        "rft": write_run(folder / "rft", n_test=70),
        "sft": write_run(folder / "sft", n_test=70, trainer="sft"),
        "detection": write_run(folder / "detection", n_test=20, task_name="detection"),
        "classification": write_run(folder / "classification", n_test=20, task_name="classification"),
    }


@pytest.mark.parametrize("name", ["rft", "sft", "detection", "classification"])
def test_a_report_holds_the_figures_and_loads_nothing(runs, name):
    path = write_report(runs[name])
    assert path == runs[name] / "report.html"
    assert_loads_nothing(path)
    page = Page(path.read_text())
    result = json.loads((runs[name] / "result.json").read_text())
    for split, by_name in result["test_sets"].items():
        assert split in page.text
        for by_protocol in by_name.values():
            [metrics] = by_protocol.values()
            for metric in metrics.values():
                assert metric["value"] is None or f"{metric['value']:.3f}" in page.text
                assert f"{metric['n']}" in page.text
    assert f"{len(read_rows(runs[name] / 'data' / 'test.jsonl'))} questions" in page.text


def test_the_story_says_what_was_done_and_how_sure_it_is(runs):
    text = report(runs["rft"]).text
    assert re.search(r"Accuracy@0\.5 rose from 0\.\d{3} to 0\.\d{3}", text)
    assert "Reinforcement fine-tuning (GRPO) on 40 training rows, 50 steps in 38 s." in text
    assert re.search(r"changed by \+0\.\d{3} \(95 % interval \+0\.\d{3} to \+0\.\d{3}\)", text)
    assert "0123456789abcdef" in text, "the commit"
    assert "c0c0" in text, "the config's hash"


def test_curves_are_those_that_were_logged(runs):
    grpo, sft = report(runs["rft"]).text, report(runs["sft"]).text
    for title in (
        "Reward",
        "Terms of the reward",
        "Validation: accuracy@0.5",
        "KL to the reference model",
        "Completion length",
    ):
        assert title in grpo
    assert "Token accuracy" in sft
    assert "Validation: accuracy@0.5" in sft
    assert "Terms of the reward" not in sft


def test_the_gallery_shows_before_and_after_with_boxes(runs):
    text = write_report(runs["rft"]).read_text()
    assert text.count('<article class="card item"') == 60
    assert text.count("<h4>Before") == text.count("<h4>After") == 60
    assert text.count("data:image/png;base64") == 60, "each picture once"
    for tag in ("improved", "worse", "wrong", "unreadable", "zero"):
        assert f'data-filter="{tag}"' in text


def test_what_a_model_writes_cannot_reach_the_page_as_markup(tmp_path):
    run_dir = write_run(tmp_path / "run", n_test=10)
    path = run_dir / "evaluations" / "best" / "test" / "scores.jsonl"
    hostile = "<script>alert(1)</script><answer>\"'>"
    write_rows(path, [{**scored, "text": hostile} for scored in read_rows(path)])
    text = write_report(run_dir).read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_a_run_without_training_tells_what_the_model_can_do(tmp_path):
    run_dir = write_run(tmp_path / "run", n_test=20, n_steps=0, names=("before",))
    page = report(run_dir)
    assert "nothing was trained" in page.text
    assert "Completion" in page.text
    assert "got worse" not in page.text
    assert "Training" not in page.text


def test_a_run_without_an_evaluation_before_has_no_change(tmp_path):
    run_dir = write_run(tmp_path / "run", n_test=20, names=("best",))
    page = report(run_dir)
    assert re.search(r"Accuracy@0\.5 of 0\.\d{3} on the test set after training", page.text)
    assert "vs base" not in page.text


def test_a_run_that_evaluated_nothing_still_has_its_curves(tmp_path):
    run_dir = write_run(tmp_path / "run", n_test=10, names=())
    page = report(run_dir)
    assert "Trained, not evaluated" in page.text
    assert "Reward" in page.text


def test_what_befell_the_training_is_told(tmp_path):
    """An alarm that ended it, unless it went on since; and terms of the user's own that failed."""
    run_dir = write_run(tmp_path / "run", n_test=10)
    *_, last = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for step in (last["step"], last["step"] - 1):
        alarm = {"step": step, "rule": "kl", "action": "stop", "message": "kl is 3"}
        (run_dir / "alarms.jsonl").write_text(json.dumps(alarm) + "\n")
        page = report(run_dir).text
        assert (f"The alarm kl stopped the training at step {step}." in page) == (step == last["step"])
        assert "kl is 3" in page
    assert "A reward term failed" not in page
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**last, "term_faults/my.term": 7.0}) + "\n")
    assert "A reward term failed and paid 0: my.term on 7 completions." in report(run_dir).text


def test_an_unfinished_run_is_refused(tmp_path):
    run_dir = write_run(tmp_path / "run", n_test=10)
    (run_dir / "result.json").unlink()
    with pytest.raises(UserError, match=r"run has no result\.json"):
        write_report(run_dir)
    assert not (run_dir / "report.html").exists()


@pytest.mark.parametrize("name", ["result.json", "provenance.json", "config.yaml"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    run_dir = write_run(tmp_path / "run", n_test=10)
    (run_dir / name).write_text("{[")
    with pytest.raises(UserError, match=rf"run/{name} cannot be read"):
        write_report(run_dir)


def test_runs_are_compared_in_one_table(runs, tmp_path, capsys):
    path = write_comparison([runs["sft"], runs["rft"]], tmp_path)
    printed = capsys.readouterr().out
    labels = ["Base", "SFT, best by validation", "SFT, last step", "RFT, best by validation", "RFT, last step"]
    assert re.findall(r"^  (\S.*?)  ", printed, flags=re.MULTILINE) == labels * 2, "the base once, two metrics"
    assert max(map(len, printed.splitlines())) <= 100
    assert "test (n = 70)" in printed
    markdown = (tmp_path / "comparison.md").read_text()
    assert all(f"| {label} |" in markdown for label in labels)
    with (tmp_path / "comparison.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(labels) * 3 * 2, "methods x test sets x metrics"
    [rft] = [one for one in lines if (one["method"], one["split"], one["metric"]) == (labels[3], "test", "iou")]
    result = json.loads((runs["rft"] / "result.json").read_text())
    assert float(rft["value"]) == result["after"]["grounding_v1"]["iou"]["value"]
    before = result["before"]["grounding_v1"]["iou"]["value"]
    assert float(rft["change"]) == pytest.approx(float(rft["value"]) - before, abs=1e-9)
    assert Page(path.read_text()).text.count("Base") == 6
    assert float(rft["difference"]) == pytest.approx(
        float(rft["value"]) - next(float(one["value"]) for one in lines if one["method"] == labels[1] and
                                   (one["split"], one["metric"]) == ("test", "iou")), abs=1e-9)  # fmt: skip
    verdict = r"RFT − SFT, best by validation: accuracy@0\.5 (\S+ \[\S+, \S+\]) on test \(paired, n = 70\): neither is"
    for text in (re.sub(r"\s+", " ", printed), markdown, Page(path.read_text()).text):
        assert re.search(verdict, text)
    assert "vs SFT" in markdown
    assert "vs SFT" in Page(path.read_text()).text


def test_a_comparison_tells_what_differs_beside_the_method(runs, tmp_path, capsys):
    other = tmp_path / "other |=1 <b>$x"
    shutil.copytree(runs["sft"], other)
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["trainer"] |= {"learning_rate": 7e-5, "args": {"beta": 0.1}}
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    write_reports([runs["rft"], other], out_dir=tmp_path / "new" / "folder")
    printed = capsys.readouterr().out
    assert "trainer.learning_rate: 0.0001, 7e-05" in printed
    assert printed.endswith(f"report: {tmp_path / 'new' / 'folder' / 'comparison.html'}\n")
    markdown = (tmp_path / "new" / "folder" / "comparison.md").read_text()
    assert "| trainer.learning_rate | 0.0001 | 7e-05 |" in markdown
    assert r"| rft | other \|=1 &lt;b>$x |" in markdown
    assert "beta" not in printed, "RFT and SFT always differ there"
    write_reports([runs["sft"], other], out_dir=tmp_path / "same")
    assert "trainer.args.beta: –, 0.1" in capsys.readouterr().out
    assert '"SFT (other |=1 <b>$x), last step"' in (tmp_path / "same" / "comparison.csv").read_text()


def test_figures_of_two_protocols_do_not_look_alike(runs, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(runs["sft"], other)
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["protocol"]["version"] = 2
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    (other / "result.json").write_text((other / "result.json").read_text().replace("grounding_v1", "grounding_v2"))
    labels = [method.label for method in methods_of([RunFiles(runs["rft"]), RunFiles(other)])]
    assert "RFT, best by validation, grounding_v1" in labels
    assert "SFT, best by validation, grounding_v2" in labels


def test_a_report_takes_the_methods_of_other_runs(runs):
    text = report(runs["rft"], [runs["sft"]]).text
    assert "RFT, best by validation" in text
    assert "SFT, best by validation" in text


def test_no_runs_are_refused(tmp_path):
    with pytest.raises(UserError, match="runs is empty"):
        write_comparison([], tmp_path)


@pytest.mark.parametrize(
    ("tags", "n_items", "expected", "why"),
    [
        ([], 5, [], "no rows"),
        ([[], [], []], 5, [0, 1, 2], "fewer rows than places"),
        ([[]] * 10, 2, [0, 5], "evenly"),
        (
            [["improved"]] * 30 + [["zero"]],
            13,
            [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27, 30],
            "a dozen, and the rare one",
        ),
    ],
)
def test_choice_of_rows(tags, n_items, expected, why):
    assert choose(tags, n_items) == expected, why


def test_detection_has_its_classes_curves_and_sizes(tmp_path):
    run_dir = write_run(tmp_path / "run", n_test=20, task_name="detection")
    path = run_dir / "data" / "test.jsonl"
    rows = read_rows(path)
    write_rows(path, [dict(row, gold=[]) if row["category"] == "nine" else row for row in rows])
    text = report(run_dir).text
    assert "AP by class on the test set" in text
    assert re.search(
        r"Absent: asked for, but no gold box, so in no mean: nine( \(\d+ → \d+ boxes predicted\))?\.",
        text,
    )
    for title in ("IoU 0.50", "IoU 0.75", "Mean over IoU 0.50 to 0.95", "AP by object size", "small: below 32"):
        assert title in text
    assert "The test set has no gold box that is medium or large" in text
    assert "Confusion" not in text


def test_classification_has_its_confusion(runs):
    page = report(runs["classification"])
    for words in ("Confusion", "another name", "unreadable"):
        assert words in page.text
    assert "Object size" not in page.text
    assert 'data-filter="missed"' not in (runs["classification"] / "report.html").read_text(), "no boxes"


def open_in_browser(path, tmp_path, *flags):
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={tmp_path}",
             *flags]  # fmt: skip
    return subprocess.run([CHROMIUM, *flags, path.as_uri()], capture_output=True, text=True, timeout=120, check=True)


def shown_items(path, tmp_path, tag):
    """The tags of the items that a browser shows after a click on a filter; without a click for None."""
    text = path.read_text()
    click = f"<script>document.querySelector('[data-filter={tag}]').click()</script>" if tag else ""
    clicked = tmp_path / f"{tag}.html"
    clicked.write_text(text.replace("</body>", f"{click}</body>"))
    done = open_in_browser(clicked, tmp_path / "profile", "--dump-dom")
    assert "CONSOLE" not in done.stderr
    articles = re.findall(r'<article class="card item" data-tags="([^"]*)"( hidden="")?', done.stdout)
    return [tags.split() for tags, hidden in articles if not hidden]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_a_click_on_a_filter_changes_what_is_shown(runs, tmp_path):
    path = write_report(runs["detection"])
    everything = shown_items(path, tmp_path, None)
    assert len(everything) == 20
    for tag in ("missed", "false_positive"):
        expected = [tags for tags in everything if tag in tags]
        assert 0 < len(expected) < 20
        assert shown_items(path, tmp_path, tag) == expected


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_a_browser_opens_the_page_without_complaint(runs, tmp_path):
    path = write_report(runs["rft"])
    done = open_in_browser(path, tmp_path, "--window-size=1240,2000", f"--screenshot={tmp_path / 'page.png'}")
    assert (tmp_path / "page.png").stat().st_size > 20_000
    assert "CONSOLE" not in done.stderr, "a script error, or something that the page may not load"


def widths(path, tmp_path, width):
    """How wide a page is in a frame of a width, and how many of its tables are cut off where nothing scrolls."""
    measure = """<script>let n = 0; for (const table of document.querySelectorAll("table")) {
      const box = table.parentElement, style = getComputedStyle(box).overflowX;
      if (table.getBoundingClientRect().right > box.getBoundingClientRect().right + 1 && style === "visible") n++;
    } document.title = "wide " + document.documentElement.scrollWidth + " cut " + n</script>"""
    measured, frame = tmp_path / f"{path.stem}_{width}.html", tmp_path / "frame.html"
    measured.write_text(path.read_text().replace("</body>", f"{measure}</body>").replace("default-src 'none'", ""))
    frame.write_text(f"<iframe src='{measured.name}' style='border: 0; width: {width}px; height: 900px' onload='"
                     "document.title = frames[0].document.title'></iframe>")  # fmt: skip
    flags = ("--dump-dom", "--allow-file-access-from-files", "--disable-web-security", "--window-size=1600,1000")
    dom = open_in_browser(frame, tmp_path / "profile", *flags).stdout
    wide, cut = map(int, re.search(r"<title>wide (\d+) cut (\d+)", dom).groups())
    return wide, cut


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_pages_fit_a_screen_and_a_telephone(runs, tmp_path):
    """Whatever an alarm says and a run is called."""
    run = shutil.copytree(runs["rft"], tmp_path / ("long_name_" * 20))
    alarm = {"step": 5, "rule": "hacked", "action": "warn", "message": "the reward rises while " * 20}
    write_rows(run / "alarms.jsonl", [alarm, {**alarm, "rule": "rule_of_mine_" * 9, "message": "word" * 90}])
    pages = [write_report(run), write_comparison([runs["sft"], run], tmp_path / "comparison")]
    for page in pages:
        for width in (1400, 400):
            wide, cut = widths(page, tmp_path, width)
            assert wide <= width, (page.name, width)
            assert cut == 0, (page.name, width)
