"""The HTML pages of a prediction: each image beside its overlay and its mask, with classes and links."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vocseg import pages
from vocseg.data.labels import VOC_PALETTE
from vocseg.overlays import OVERLAY_COLOURS
from vocseg.saving import Save, write_text

IMAGES_A_PAGE = 500

_STYLE = """
body { max-width: 96rem; margin: 1.5rem auto; }
h1 { margin: 0; }
.about { color: var(--muted); margin: .2rem 0 1rem; overflow-wrap: anywhere; }
.swatch { display: inline-block; width: .6rem; height: .6rem; border: 3px solid; border-radius: 3px;
  margin-right: .4rem; vertical-align: -1px; flex: none; }
.bar { display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; align-items: center; padding: .6rem 0; margin-bottom: 1rem;
  border: solid var(--line); border-width: 1px 0; }
.bar ul, .classes { display: flex; flex-wrap: wrap; gap: .2rem 1rem; list-style: none; margin: 0; padding: 0; }
.bar ul { flex: 1 1 20rem; font-size: .9rem; }
.lead, .count, .share { color: var(--muted); font-variant-numeric: tabular-nums; }
.choice { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .9rem; }
.choice label { white-space: nowrap; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: 1rem;
  list-style: none; margin: 0; padding: 0; }
.card { display: flex; flex-direction: column; border: 1px solid var(--line); border-radius: .5rem; overflow: hidden; }
.frame { container-type: inline-size; aspect-ratio: 4 / 3; display: grid; place-items: center;
  background: var(--soft); }
.frame .slider { width: min(100cqw, 75cqw * var(--ratio)); border-radius: 0; }
.frame .slider:focus-within { outline-offset: -3px; }
.facts { display: flex; flex-direction: column; flex: 1; gap: .35rem; padding: .6rem .8rem .7rem; font-size: .85rem; }
.facts h2 { font-size: .9rem; margin: 0; border: 0; overflow-wrap: anywhere; }
.links { margin: auto 0 0; display: flex; gap: 1rem; }
nav { display: flex; flex-wrap: wrap; gap: .3rem .9rem; align-items: baseline; margin: 1rem 0; }
nav .count { margin-right: .5rem; }
@media (max-width: 40rem) { body { padding: 0 .75rem; margin: 1rem auto; } }
"""
_SCRIPT = """<script>
document.querySelectorAll("input[name=show]").forEach(input => input.addEventListener("change", () => {
  const [from, to] = input.value === "mask" ? ["overlay", "mask"] : ["mask", "overlay"];
  for (const image of document.querySelectorAll(".after"))
    image.src = image.getAttribute("src").replace(`thumbnails/${from}/`, `thumbnails/${to}/`);
}));
</script>"""


class Shown(NamedTuple):
    """What a page shows of an image; small, as one is kept for every image.

    Attributes:
        path: of the image; the pages are in its order.
        name: of the files written about it.
        size: width and height of its thumbnails in pixels.
        shares: label -> share of the image's pixels, for the labels to show.
    """

    path: str
    name: str
    size: tuple[int, int]
    shares: dict[int, float]

    @property
    def title(self) -> str:
        """The name with the ending of the image file."""
        return (Path(self.name).parent / Path(self.path).name).as_posix()


def page_paths(folder: Path, images: int) -> list[Path]:
    """The files of the pages that show so many images: ``index.html``, ``index_2.html``, ..."""
    parts = max(1, -(-images // IMAGES_A_PAGE))
    return [folder / ("index.html" if part == 1 else f"index_{part}.html") for part in range(1, parts + 1)]


def thumbnail_paths(folder: Path, name: str) -> dict[str, Path]:
    """The thumbnails of an image, by what they show: ``photograph``, ``overlay`` and ``mask``."""
    return {kind: folder / "thumbnails" / kind / f"{name}.jpg" for kind in ("photograph", "overlay", "mask")}


def write_pages(
    folder: Path,
    shown: Sequence[Shown],
    class_names: Sequence[str],
    save: Save,
    checkpoint: str = "",
    problems: Sequence[str] = (),
    has_overlays: bool = True,
) -> None:
    """Writes the pages of a prediction, each with its part of the images.

    Args:
        folder: of the prediction.
        shown: the images.
        class_names: name of each label.
        save: writes a file: :func:`vocseg.saving.write_atomically`, or :meth:`vocseg.saving.OwnedFolder.write`.
        checkpoint: name of the checkpoint that predicted; empty: unknown.
        problems: images that could not be predicted, for the first page.
        has_overlays: whether there are overlays of full size to link to.
    """
    shown = sorted(shown, key=lambda one: one.path)
    title = f"Predictions: {_images(len(shown))}"
    made_by = f"Checkpoint {pages.text(checkpoint).replace('/', '/<wbr>')}" if checkpoint else "Checkpoint unknown"
    bar = _bar(shown, class_names)
    paths = page_paths(folder, len(shown))
    for number, path in enumerate(paths):
        first = number * IMAGES_A_PAGE
        part = shown[first : first + IMAGES_A_PAGE]
        links = _links(paths, number, f"{first + 1:,} to {first + len(part):,} of {_images(len(shown))}")
        body = [f'<p class="about">{made_by}</p>']
        body += [f'<p class="problem">{pages.text(problem)}</p>' for problem in problems if number == 0]
        body += [bar, links, '<ul class="cards">']
        body += [_card(one, class_names, has_overlays) for one in part]
        body += ["</ul>", links, _SCRIPT]
        write_text(path, pages.page(title, body, _STYLE), save)


def _bar(shown: Sequence[Shown], class_names: Sequence[str]) -> str:
    """The legend of the classes that occur, with the number of images of each, and the choice of what is shown."""
    counts = Counter(label for one in shown for label in one.shares if label)
    entries = [
        f'<li>{_entry(label, class_names)} <span class="count">{count:,}</span></li>'
        for label, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    lead = "Classes, and the images with each" if entries else "Only background was predicted"
    return (
        f'<div class="bar"><ul><li class="lead">{lead}</li>{"".join(entries)}</ul>'
        '<div class="choice" role="radiogroup" aria-label="Beside the photograph">'
        '<span class="lead">Beside the photograph</span>'
        '<label><input type="radio" name="show" value="overlay" checked autocomplete="off"> overlay</label>'
        '<label><input type="radio" name="show" value="mask" autocomplete="off"> mask</label></div></div>'
    )


def _links(paths: Sequence[Path], number: int, part: str) -> str:
    """Links to all pages; nothing if there is one."""
    if len(paths) == 1:
        return ""
    links = [
        f'<b aria-current="page">{index + 1}</b>'
        if index == number
        else f'<a href="{path.name}" aria-label="page {index + 1}">{index + 1}</a>'
        for index, path in enumerate(paths)
    ]
    return f'<nav aria-label="Pages"><span class="count">{part}</span>{"".join(links)}</nav>'


def _card(one: Shown, class_names: Sequence[str], has_overlays: bool) -> str:
    thumbnails = {kind: pages.link(path.as_posix()) for kind, path in thumbnail_paths(Path(), one.name).items()}
    label = f"{one.title}: photograph on the left, prediction on the right"
    slider = pages.slider(thumbnails["photograph"], thumbnails["overlay"], label, one.size, start=0)
    shares = sorted(one.shares.items(), key=lambda item: -item[1])
    classes = "".join(
        f'<li>{_entry(label, class_names)} <span class="share">{_percent(share)}</span></li>'
        for label, share in shares
        if label or len(shares) == 1
    )
    files = {"overlay": f"overlays/{one.name}.jpg"} if has_overlays else {}
    files["mask"] = f"{one.name}.png"
    links = "".join(
        f'<a href="{pages.link(file)}" aria-label="{kind} of {pages.text(one.title)}">{kind.capitalize()}</a>'
        for kind, file in files.items()
    )
    return (
        f'<li class="card"><div class="frame" style="--ratio: {one.size[0] / one.size[1]:.4f}">{slider}</div>'
        f'<div class="facts"><h2>{pages.text(one.title)}</h2><ul class="classes">{classes}</ul>'
        f'<p class="links">{links}</p></div></li>'
    )


def _entry(label: int, class_names: Sequence[str]) -> str:
    """A class's name and its colours: that of the mask inside, that of the overlay around it."""
    inside, border = (f"rgb({red} {green} {blue})" for red, green, blue in (VOC_PALETTE[label], OVERLAY_COLOURS[label]))
    name = class_names[label] if label < len(class_names) else f"label {label}"
    return f'<span class="swatch" style="background: {inside}; border-color: {border}"></span>{pages.text(name)}'


def _images(count: int) -> str:
    return f"{count:,} image{'s' if count != 1 else ''}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.1f} %"
