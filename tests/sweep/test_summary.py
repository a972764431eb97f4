"""Tables and page of a sweep, from records written by hand."""

import csv
import statistics

import numpy as np
import pytest

from vocseg.errors import VocsegError
from vocseg.intervals import bootstrap_interval
from vocseg.sweep.files import write_files
from vocseg.sweep.plan import Plan, Setting
from vocseg.sweep.summary import summarise, terminal_table
from vocseg.text_tables import latex_text


@pytest.fixture
def summary(create_record, tmp_path):
    """A good and a worse setting with two seeds, of which one failed, and one that failed altogether."""
    settings = [Setting(name, ["focal"], [("data.batch_size", "2")]) for name in ("worse_one", "good", "broken")]
    plan = Plan("mine", tmp_path / "sweep", settings, [0, 1], test=True)
    results = {
        (name, seed): create_record(plan.record(setting, seed), right, seed)
        for setting, name, right in zip(settings, ("worse", "good"), (0.5, 0.9), strict=False)
        for seed in (0, 1)
        if (name, seed) != ("worse", 1)
    }
    errors = {"worse_one-seed_1": "out of 100% <memory>", "broken-seed_0": "a_b", "broken-seed_1": "a_b"}
    return summarise(plan, errors), results


def test_mean_deviation_and_paired_difference(summary):
    summary, results = summary
    best, worse, broken = summary.lines
    assert [line.setting.name for line in summary.lines] == ["good", "worse_one", "broken"]
    assert summary.best is best
    for split in ("val", "test"):
        values = [results["good", seed][split].miou for seed in (0, 1)]
        assert best.mean(split) == pytest.approx(statistics.fmean(values))
        assert best.deviation(split) == pytest.approx(statistics.stdev(values))
        # of the seed that both have
        pair = [results[name, 0][split] for name in ("worse", "good")]
        found = worse.differences[split]
        assert found.mean == pytest.approx(pair[0].miou - pair[1].miou)
        assert (found.low, found.high) == bootstrap_interval(pair[0].matrices, minus=pair[1].matrices)
    assert (worse.errors, broken.runs) == ({1: "out of 100% <memory>"}, {})


def test_the_interval_of_several_trainings_is_of_their_mean(summary):
    _, results = summary
    first, second = (results["good", seed]["val"].matrices for seed in (0, 1))
    assert bootstrap_interval([first, first]) == bootstrap_interval(first)
    low, high = bootstrap_interval([first, second])
    assert low < statistics.fmean(results["good", seed]["val"].miou for seed in (0, 1)) < high


def test_networks_that_were_scored_on_other_images_are_not_compared(create_record, tmp_path):
    plan = Plan("mine", tmp_path / "sweep", [Setting("a", ["focal"]), Setting("b", ["focal"])], [0])
    for setting in plan.settings:
        create_record(plan.record(setting, 0), 0.9, 0, ["val"])
    run = summarise(plan, {}).lines[1]
    assert run.differences["val"] is not None
    path = plan.record(plan.settings[1], 0) / "val.npz"
    with np.load(path) as file:
        arrays = dict(file)
    arrays["counts"][:2] += np.array([1, -1], dtype=arrays["counts"].dtype)
    np.savez_compressed(path, **arrays)
    assert summarise(plan, {}).lines[1].differences["val"] is None


def test_every_format_has_the_table(summary):
    summary, _ = summary
    page = write_files(summary, "vocseg sweep --set a=50%,b")
    folder = summary.plan.folder
    text = summary.best.text("test")
    assert " ± " in text
    markdown = (folder / "table.md").read_text()
    assert f"| good | 2 | {summary.best.text('val')} | {text} | best |" in markdown
    assert "| worse_one-seed_1 | out of 100% <memory> |" in markdown
    assert "| all background |" in markdown

    latex = (folder / "table.tex").read_text()
    assert latex.splitlines()[0] == "% vocseg sweep --set a=50%,b"
    body = latex[latex.index("\\begin{tabular}{lrrrrrr}") : latex.index("\\end{tabular}")]
    assert [body.count(rule) for rule in ("\\toprule", "\\midrule", "\\bottomrule")] == [1, 1, 1]
    rows = [line for line in body.splitlines() if line.endswith("\\\\")]
    assert len(rows) == 5
    assert {row.count(" & ") for row in rows} == {6}
    val = summary.best.text("val").replace("±", r"$\pm$")
    assert rows[1].startswith(f"\\textbf{{good}} & \\textbf{{2}} & \\textbf{{{val}}}")
    assert rows[2].startswith("worse\\_one & 1 of 2 & ")
    assert "$-$0." in rows[2]

    with (folder / "settings.csv").open() as file:
        lines = {line["setting"]: line for line in csv.DictReader(file)}
    assert float(lines["good"]["test_miou_mean"]) == pytest.approx(summary.best.mean("test"), abs=1e-6)
    assert [lines[name]["best"] for name in ("good", "worse_one", "broken")] == ["1", "0", "0"]
    assert lines["broken"]["val_miou_mean"] == ""
    assert float(lines["worse_one"]["test_difference"]) < float(lines["worse_one"]["test_difference_high"]) < 0
    with (folder / "runs.csv").open() as file:
        runs = {(line["setting"], line["seed"]): line for line in csv.DictReader(file)}
    assert runs["worse_one", "1"]["error"] == "out of 100% <memory>"
    assert runs["good", "1"]["options"] == "--config focal --data.batch_size 2"

    html = page.read_text()
    assert "out of 100% &lt;memory&gt;" in html
    assert "3 of 6 runs are finished. The best setting, chosen on val, is good" in html
    assert "http" not in html.replace("http://www.w3.org", "")
    shown = terminal_table(summary)
    assert [*shown.columns[0].cells] == ["good", "worse_one", "broken", "all background"]


def test_runs_that_were_validated_once_have_no_curve(summary):
    summary, _ = summary
    assert "<h2>Training</h2>" in write_files(summary, "vocseg sweep").read_text()
    for line in summary.lines:
        for run in line.runs.values():
            run.lines[0].pop("val/miou", None)
    assert "<h2>Training</h2>" not in write_files(summary, "vocseg sweep").read_text()


def test_files_of_others_are_not_replaced(summary):
    summary, _ = summary
    (summary.plan.folder / "table.md").write_text("mine")
    with pytest.raises(VocsegError, match=r"table\.md exists without a record"):
        write_files(summary, "vocseg sweep")
    assert not (summary.plan.folder / "index.html").exists()


def test_latex_commands_are_escaped():
    assert latex_text(r"a_b & 5% #1 $x {y} ~ ^ \n ±") == (
        r"a\_b \& 5\% \#1 \$x \{y\} \textasciitilde{} \textasciicircum{} \textbackslash{}n $\pm$"
    )
