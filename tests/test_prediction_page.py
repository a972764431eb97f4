"""The pages of predictions: parts, links, and names that HTML and URLs must not take as their own."""

import re
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest

from vocseg import pages
from vocseg.prediction_page import Shown, page_paths, write_pages
from vocseg.saving import write_atomically

NAMES = ["background", "bird", "<cat>"]


def shown(count, suffix=""):
    return [Shown(f"/in/{n:04}{suffix}.jpg", f"{n:04}{suffix}", (48, 36), {0: 0.9, 1: 0.1}) for n in range(count)]


@pytest.mark.parametrize(("images", "parts"), [(1, 1), (500, 1), (501, 2), (1201, 3)])
def test_a_page_has_at_most_500_images_and_links_to_the_others(images, parts, tmp_path):
    paths = page_paths(tmp_path, images)
    write_pages(tmp_path, shown(images)[::-1], NAMES, write_atomically, problems=["lost.jpg"])
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    contents = [path.read_text() for path in paths]
    titles = [title for content in contents for title in re.findall("<h2>(.*?)</h2>", content)]
    assert titles == [f"{n:04}.jpg" for n in range(images)]
    assert [content.count("lost.jpg") for content in contents] == [1] + [0] * (parts - 1)
    for content, path in zip(contents, paths, strict=True):
        assert content.count('<li class="card">') <= 500
        linked = set(re.findall(r'href="(index\w*\.html)"', content))
        assert linked == ({other.name for other in paths} - {path.name} if parts > 1 else set())


def test_the_legend_has_the_classes_that_occur_with_the_number_of_images(tmp_path):
    images = [*shown(2), Shown("/in/x.jpg", "x", (48, 36), {2: 1.0})]
    write_pages(tmp_path, images, NAMES, write_atomically, "run/version_0/checkpoints/best.ckpt")
    page = (tmp_path / "index.html").read_text()
    bar = page[page.index('class="bar"') : page.index('class="cards"')]
    assert re.findall(r'</span>([^<]+) <span class="count">(\d+)<', bar) == [("bird", "2"), ("&lt;cat&gt;", "1")]
    assert "run/<wbr>version_0/<wbr>checkpoints/<wbr>best.ckpt" in page
    assert "http" not in page


@pytest.mark.parametrize(
    "name", ['a"b', "<script>alert(1)<", "a&amp;b", "100%", "a#b?c", "javascript:x", "one/zwölf", "caf\udce9", "a'b\\"]
)
def test_names_are_escaped_in_html_and_quoted_in_links(name, tmp_path):
    """Also bytes that are no UTF-8, which Python reads as surrogates."""
    write_pages(tmp_path, [Shown(f"/in/{name}.jpg", name, (48, 36), {1: 1.0})], NAMES, write_atomically)
    page = (tmp_path / "index.html").read_text()
    urls = re.findall(r'(?:src|href)="([^"]*)"', page)
    raw = name.encode(errors="surrogateescape")
    kinds = [b"thumbnails/photograph/", b"thumbnails/overlay/", b"overlays/"]
    assert [unquote_to_bytes(url) for url in urls] == [*(kind + raw + b".jpg" for kind in kinds), raw + b".png"]
    assert all(re.fullmatch(r"[\w./%~-]+", url) for url in urls)
    assert f"<h2>{pages.text(Path(name + '.jpg').as_posix())}</h2>" in page
    assert "<script>alert" not in page


def test_a_slider_begins_where_it_is_told_and_has_a_name_for_screen_readers():
    html = pages.slider("a.jpg", "data:image/png;base64,AA==", 'truth & "errors"', (30, 20), start=25)
    assert re.findall('src="(.*?)"', html) == ["a.jpg", "data:image/png;base64,AA=="]
    assert 'aria-label="truth &amp; &quot;errors&quot;"' in html
    assert html.count('width="30" height="20"') == 2
    assert "--at: 25%" in html
    assert 'value="25"' in html
