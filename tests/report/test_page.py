import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from forestgaps_jax import Config
from forestgaps_jax.cli import main
from forestgaps_jax.report import write_report
from forestgaps_jax.report.about import changed_settings
from forestgaps_jax.report.evidence import gather
from forestgaps_jax.report.page import render
from forestgaps_jax.report.record import read_record

VOID = {"meta", "img", "br", "link", "input", "hr"}
REFERENCES = ("src", "href", "xlink:href", "srcset", "action", "data", "poster")


class Page(HTMLParser):
    """What a reader of the page meets."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.texts))

    def titles(self):
        return [attributes["id"] for tag, attributes in self.elements if tag == "section"]

    def all(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]


@pytest.fixture(scope="module")
def read(page):
    return Page(page.read_text(encoding="utf-8"))


SECTIONS = ["scores", "maps", "worst", "sizes", "calibration", "confusion", "curves", "about", "notes"]


def test_a_whole_run_has_every_section_and_lacks_nothing(read):
    assert read.titles() == SECTIONS
    assert "What this page lacks" not in read.text
    linked = [attributes["href"] for attributes in read.all("a")]
    assert linked == ["#top", *(f"#{name}" for name in SECTIONS)]


def test_the_page_refers_to_nothing_outside(page, read):
    for tag, attributes in read.elements:
        for name in REFERENCES:
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, name)
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"@import|@font-face", text)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert not read.all("script")
    assert not read.all("link")


def test_every_picture_says_what_it_shows(read):
    images = read.all("img")
    assert len(images) >= 8
    assert all(len(image["alt"]) > 10 for image in images)
    drawings = read.all("svg")
    assert len(drawings) >= 9
    assert all(len(drawing["aria-label"]) > 10 and drawing["role"] == "img" for drawing in drawings)


def test_ids_are_there_once(read):
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_a_name_that_is_html_is_text(trained, page, read):
    assert trained.name in read.text
    assert "<b>bold" not in page.read_text(encoding="utf-8")


def test_the_scores_on_the_page_are_those_of_the_run(read, scores):
    for name in ("model", "grey_opening", "all_gap"):
        for row in scores[name]["threshold_metrics"].values():
            assert f"{row['iou']:.3f}" in read.text


def test_the_settings_on_the_page_are_those_that_differ(trained):
    config = read_record(trained).config
    told = {name for name, *_ in changed_settings(config)}
    assert told >= {"epochs", "batch_size", "features", "depth", "tile_size", "thresholds"}
    for name, value, default, meaning in changed_settings(
        replace(Config(), dropout=0.25, adam_betas=(0.8, 0.9))
    ):
        assert (value, default) == {"dropout": ("0.25", "0"), "adam_betas": ("0.8, 0.9", "0.9, 0.999")}[name]
        assert meaning


def test_a_report_is_written_over_and_nothing_else(run):
    shutil.rmtree(run / "checkpoints")  # it is quicker without maps
    target = write_report(run)
    assert target == run / "report.html"
    first = target.stat().st_size
    assert write_report(run).stat().st_size == pytest.approx(first, rel=0.01)
    assert {path.name for path in run.glob(".*")} <= {".lock"}
    notes = run / "notes.html"
    notes.write_text("<p>mine</p>")
    with pytest.raises(FileExistsError, match="is no report"):
        write_report(run, notes)
    assert notes.read_text() == "<p>mine</p>"
    with pytest.raises(FileExistsError, match="is no report"):
        write_report(run, run / "figures")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        write_report(run, run / "nowhere" / "report.html")


def test_a_run_that_stopped_half_way_has_a_page_with_what_there_is(run):
    for name in ("history.json", "test_metrics.json"):
        (run / name).unlink()
    log = (run / "train.log").read_text().splitlines()
    (run / "train.log").write_text("\n".join(log[:1]))
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert page.titles() == SECTIONS
    assert "did not come to its end" in page.text
    assert "counted anew" in page.text


def test_settings_alone_have_a_page(run):
    for path in run.iterdir():
        if path.name != "config.toml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert page.titles() == ["about", "notes"]
    assert "no checkpoint" in page.text
    assert "Not tested" in page.text


def test_rasters_that_are_gone_are_told_and_the_scores_stay(trained):
    record = read_record(trained)
    config = replace(record.config, dsm=("/gone/A_DSM.tif",), chm=("/gone/A_CHM.tif",))
    record = replace(record, config=config)
    page = Page(render(record, gather(record)))
    assert page.titles() == ["scores", "confusion", "curves", "about", "notes"]
    assert "/gone/A_DSM.tif" in page.text
    assert "cannot be read any more" in page.text


def test_a_run_without_test_tiles_says_so(trained):
    record = read_record(trained)
    record = replace(record, config=replace(record.config, test_fraction=0.0), scores=None)
    page = Page(render(record, gather(record)))
    assert page.titles() == ["curves", "about", "notes"]
    assert "kept no test tiles" in page.text


def test_a_broken_checkpoint_leaves_the_rest(run):
    shutil.rmtree(run / "checkpoints")
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert page.titles() == ["scores", "confusion", "curves", "about", "notes"]
    assert "no checkpoint" in page.text


def test_the_command_prints_the_file_and_its_size(run, tmp_path, capsys):
    out = tmp_path / "here.html"
    assert main(["report", str(run), "--out", str(out), "--checkpoint", "last"]) == 0
    printed = capsys.readouterr().out
    assert printed.split()[0] == str(out)
    assert re.search(r"\d\.\d\d MB", printed)
    assert "last checkpoint" in Page(out.read_text(encoding="utf-8")).text


@pytest.mark.parametrize(
    ("words", "message"),
    [(["nowhere"], "nowhere is no run folder"), ([".", "--out", "x.html"], "is no run folder")],
)
def test_mistakes_end_in_one_line_that_helps(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words]) == 1
    assert message in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_the_page_is_small(page):
    assert page.stat().st_size < 1e6
