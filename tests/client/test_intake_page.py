"""The local page: it shows what is there, stays what it promises to be, and names nobody."""

import html
import json
import re
import sqlite3
import stat
from contextlib import closing
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image as Picture
from typer.testing import CliRunner

from client.cli import app
from client.hospital import card_of
from client.intake.examine import Examined
from client.intake.journal import open_journal
from client.intake.page import outlined, write_page
from client.intake.page_charts import SAMPLED_IMAGES, draw_charts, spread
from client.intake.reasons import REASONS
from client.intake.records import Records
from client.settings import new_site, open_site
from multimix.data.decode import geometry_of
from multimix.data.dicom import Keys
from multimix.data.phantom import default_hospitals, draw_phantom
from multimix.data.phantom_dicom import PhantomDicom, dicom_bytes, phantom_dataset, write_phantom_dicoms
from tests.browser import load_in_browser

SENTINEL = "Zyxwvut"
VOID = {"meta", "img", "br", "line", "rect"}
MASKED, WAITING = 4, 1


def odd_dicom(name, change, **options):
    """A phantom after `change`, with sentinels in every tag that could name someone."""
    image = draw_phantom(default_hospitals(1, 5)[0], patient=90, seed=len(name), image_size=128).image
    dataset = phantom_dataset(
        change(image),
        patient_id=f"{SENTINEL}-id-{name}",
        accession=f"{SENTINEL}-acc",
        seed=5,
        options=PhantomDicom(**options),
        patient_name=f"{SENTINEL}^Name",
        sop_instance_uid=f"1.2.826.0.1.3680043.8.498.{int.from_bytes(name.encode())}",
    )
    dataset.InstitutionName = dataset.StationName = dataset.StudyDescription = f"{SENTINEL} ward"
    dataset.PatientBirthDate = "19310423"
    dataset.add_new((0x0009, 0x0010), "LO", SENTINEL)
    dataset.add_new((0x0009, 0x1001), "LO", f"{SENTINEL} private")
    return dicom_bytes(dataset)


def unchanged(image):
    return image


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Four labelled patients with masks, one inverted image, one without view, a lateral, a hand, and rubbish."""
    root = tmp_path_factory.mktemp("page") / SENTINEL
    labels = write_phantom_dicoms(root / "ph", patients=MASKED, image_size=128, seed=5, with_masks=True)
    folder = root / "ph" / "DICOM" / f"{SENTINEL} folder"
    folder.mkdir()
    files = {
        "inverted": odd_dicom("inverted", lambda image: 255 - image),
        "waits": odd_dicom("waits", unchanged, view="", transfer_syntax="rle_lossless"),
        "side": odd_dicom("side", unchanged, view="LL"),
        "hand": odd_dicom("hand", unchanged, body_part="HAND"),
        "rubbish": SENTINEL.encode() * 50,
    }
    for name, data in files.items():
        (folder / f"{SENTINEL}-{name}.dcm").write_bytes(data)
    with labels.open("a") as file:
        file.write(f"1.2.3.{SENTINEL},normal,,\n")
    made = new_site(root / "site", "st-elsewhere", image_size=64)
    settings = made.path / "site.toml"
    settings.write_text(settings.read_text().replace("minimum_cohort = 10", "minimum_cohort = 2"))
    done = CliRunner().invoke(app, ["intake", str(folder.parent), "--labels", str(labels), "-s", str(made.path)])
    assert done.exit_code == 0, done.output
    return open_site(made.path)


@pytest.fixture(scope="module")
def page(site):
    return write_page(site, images=60).read_text()


def journal_of(site):
    return open_journal(site.intake, site.settings.preprocessing)


def section(page, name):
    """The part of the page under the heading with this id."""
    return re.search(rf'<section aria-labelledby="{name}">(.*?)</section>', page, re.DOTALL)[1]


def counts_in(part):
    """The rows of the tables of a part: first cell to the first number after it."""
    rows = re.findall(r"<tr[^>]*><th[^>]*>(.*?)</th><td[^>]*>([\d,]+)</td>", part)
    return {html.unescape(re.sub("<[^>]+>", "", name)): int(count.replace(",", "")) for name, count in rows}


def captions(part):
    return re.findall(r"<figcaption><b>(\w+)</b>", part)


class Tags(HTMLParser):
    """Collects unbalanced tags, addresses and the names of all tags."""

    def __init__(self, page):
        super().__init__()
        self.open, self.problems, self.addresses, self.names = [], [], [], set()
        self.feed(page)
        self.problems += self.open

    def handle_starttag(self, tag, attributes):
        self.names.add(tag)
        self.addresses += [value for name, value in attributes if name in {"src", "href", "srcset", "data", "action"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID and (not self.open or self.open.pop() != tag):
            self.problems.append(tag)


def test_only_this_user_can_read_the_page(site, page):
    assert stat.S_IMODE((site.path / "site.html").stat().st_mode) == 0o600


def test_the_page_is_whole_html_without_scripts_or_addresses_outside(page):
    tags = Tags(page)
    assert tags.problems == []
    assert not tags.names & {"script", "link", "iframe", "object", "form"}
    assert {address[:11] for address in tags.addresses if not address.startswith("#")} == {"data:image/"}
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in page


def test_every_link_leads_to_a_heading_of_the_page(page):
    links = [address[1:] for address in Tags(page).addresses if address.startswith("#")]
    assert len(links) == 8
    assert set(links) == set(re.findall(r'<h2 id="(\w+)">', page))


def test_the_page_says_that_it_shows_patients_and_must_not_be_passed_on(page):
    assert re.search(r'role="note"><b>Shows patients.* do not pass it on\.</b>', page)


def test_no_identifier_path_or_file_name_is_in_the_page(site, page):
    assert SENTINEL.lower() not in page.lower()
    for private in (str(site.path), "19310423", "1.2.826", "1.2.840", "2.25.", ".dcm", "PHANTOM^"):
        assert private not in page


def test_no_pseudonym_of_journal_or_store_is_in_the_page(site, page):
    pseudonyms = set()
    for path in (site.intake / "journal.sqlite", site.store / "current" / "index.sqlite"):
        with closing(sqlite3.connect(path)) as index:
            pseudonyms |= {p for line in index.iterdump() for p in re.findall(r"\b[0-9a-f]{32}\b", line)}
    assert len(pseudonyms) > 20  # patients, UIDs, contents, keys of items
    assert [pseudonym for pseudonym in pseudonyms if pseudonym in page] == []


def test_the_tables_count_what_was_taken_in(page):
    held = section(page, "holdings")
    assert counts_in(held)["images accepted"] == MASKED + 1  # and the inverted one
    assert counts_in(held)["images waiting for review"] == WAITING
    assert counts_in(held)["set aside"] == 3
    assert counts_in(held)["lung masks"] == MASKED
    assert counts_in(held)["PA"] == MASKED + 1


def test_the_splits_add_up_to_all(page):
    rows = re.findall(r'<tr><th scope="row">([\w ]+)</th>((?:<td>\d+</td>){4})</tr>', section(page, "holdings"))
    table = {name: [int(n) for n in re.findall(r"\d+", cells)] for name, cells in rows}
    assert all(sum(cells[:3]) == cells[3] for cells in table.values())
    assert table["images"][3] == table["patients"][3] == MASKED + 1
    assert table["labelled normal"][3] + table["labelled pneumonia"][3] == table["with lung mask"][3] == MASKED
    assert table["not labelled"][3] == 1


def test_accepted_images_go_by_their_number_in_the_journal(site, page):
    with journal_of(site) as journal:
        ids = [image.id for image in journal.kept_images("accept")]
    assert captions(section(page, "accepted")) == [f"a{each}" for each in ids]


def test_waiting_images_have_the_names_that_review_lists(site, page):
    listed = json.loads(CliRunner().invoke(app, ["review", "--json", "-s", str(site.path)]).stdout)
    assert captions(section(page, "review")) == [each["image"] for each in listed]
    assert html.escape(REASONS[listed[0]["reason"]].meaning) in section(page, "review")


def test_an_image_that_looks_inverted_is_shown_under_that_flag(site, page):
    with journal_of(site) as journal:
        (inverted,) = [image for image in journal.kept_images("accept") if "looks_inverted" in image.flags]
    part = section(page, "flags")
    assert counts_in(part)["looks_inverted"] == 1
    assert counts_in(part)["text_heavy"] == 0
    assert captions(part.split("<h3>Looks inverted: 1</h3>")[1])[0] == f"a{inverted.id}"


def test_files_set_aside_are_counted_by_reason_with_meaning_and_remedy(page):
    part = section(page, "aside")
    for reason in ("lateral_view", "other_body_part", "not_dicom"):
        assert counts_in(part)[reason] == 1
        assert html.escape(REASONS[reason].meaning) in part


def test_modalities_and_transfer_syntaxes_go_by_their_names(page):
    counts = counts_in(section(page, "aside"))
    assert counts["DX, digital radiography"] == MASKED + 4
    assert counts["PNG or JPEG"] == MASKED  # the masks
    assert counts["Explicit VR Little Endian"] == MASKED + 3
    assert counts["RLE Lossless"] == 1


def test_the_histograms_are_drawn_of_the_accepted_images(page):
    part = section(page, "intensities")
    assert part.count('<svg class="chart"') == 4
    assert f"1: {MASKED + 1} patients</title>" in part  # one image each
    assert f"longest side 0 to 255: {MASKED + 1} images</title>" in part  # 128 pixels
    shares = [float(share) for share in re.findall(r"grey \d+ to \d+: ([\d.e+-]+) %", part)]
    assert sum(shares) == pytest.approx(100, abs=2)  # rounded to two digits each


def test_labels_that_met_no_image_are_counted_and_explained(page):
    part = section(page, "labels")
    assert counts_in(part) == {"labels_without_image": 1}
    assert html.escape(REASONS["labels_without_image"].remedy) in part


def test_the_card_on_the_page_is_the_card_that_would_be_sent(site, page):
    shown = re.search(r"<details>.*<pre>(.*?)</pre></details>", section(page, "card"), re.DOTALL)[1]
    assert json.loads(html.unescape(shown)) == card_of(site, device="cpu").model_dump(mode="json")


def test_a_site_too_small_for_a_card_is_told_the_reason(site, page):
    policy = site.settings.policy.model_copy(update={"minimum_cohort": 50})
    strict = type(site)(site.path, site.settings.model_copy(update={"policy": policy}))
    part = section(write_page(strict, images=0).read_text(), "card")
    assert "<details>" not in part
    assert "<code>cohort_too_small</code>, fewer patients than policy.minimum_cohort" in part


def test_pictures_are_left_out_on_demand(site):
    page = write_page(site, images=0).read_text()
    assert "<img" not in page
    assert f"0 of {MASKED + 1} are shown" in section(page, "accepted")


def test_a_page_of_a_new_site_says_that_nothing_is_there(tmp_path):
    page = write_page(new_site(tmp_path / "site", "empty", image_size=32), images=60).read_text()
    assert Tags(page).problems == []
    assert set(counts_in(section(page, "holdings")).values()) == {0}
    assert "<code>store_missing</code>" in section(page, "card")
    assert "<img" not in page


def test_a_store_behind_its_journal_is_pointed_out(tmp_path):
    site = new_site(tmp_path / "site", "late", image_size=16)
    with journal_of(site) as journal:
        journal.add("one", taken(site, 1))
        journal.commit()  # as if killed before the generation was written
    assert "The store is older than this page." in write_page(site, images=1).read_text()


def taken(site, number):
    """What a worker returns for one accepted image, of a patient of its own."""
    preprocessing = site.settings.preprocessing
    size = preprocessing.image_size
    return Examined(
        kind="image",
        decision="accept",
        file_hash=f"{number:032x}",
        keys=Keys(f"{number:032x}", f"{number:032x}", ""),
        view="PA",
        modality="DX",
        pixels=np.full((size, size), number % 256, np.uint8),
        geometry=geometry_of(preprocessing, width=300, height=200),
        content=f"{number:032x}",
    )


def test_the_outline_lies_inside_the_mask_and_leaves_the_rest_alone():
    mask = np.zeros((40, 40), np.uint8)
    mask[10:30, 10:30] = 255
    drawn = np.asarray(outlined(Picture.new("L", (40, 40), 7), Picture.fromarray(mask)))
    coloured = (drawn != 7).any(axis=2)
    inner = np.zeros_like(coloured)
    inner[11:29, 11:29] = True
    assert np.array_equal(coloured, (mask > 0) & ~inner)


def test_a_sample_holds_the_first_and_the_last_and_is_evenly_spread():
    assert spread(list(range(101)), 5) == [0, 25, 50, 75, 100]
    assert spread(list(range(3)), 5) == [0, 1, 2]
    assert spread([], 5) == spread([1, 2], 0) == []


class CountingRecords(Records):
    """Records that remember how often they were read."""

    reads = 0

    def read(self, number):
        self.reads += 1
        return super().read(number)


def test_pixels_of_a_sample_only_are_read_however_many_images_there_are(tmp_path):
    site = new_site(tmp_path / "site", "large", image_size=16)
    with journal_of(site) as journal:
        for number in range(SAMPLED_IMAGES + 200):
            journal.add(str(number), taken(site, number))
        images = journal.kept_images("accept")
        with CountingRecords(tmp_path / "copy", record_bytes=256, count=0) as records:
            for image in images:
                records.append(journal.images.read(image.record))
            journal.images = records
            assert len(draw_charts(journal, images)) == 4
            assert records.reads == SAMPLED_IMAGES


@pytest.mark.browser
@pytest.mark.parametrize("width", [1200, 400])
def test_a_browser_shows_the_page_without_a_complaint_or_sideways_scrolling(page, tmp_path, width):
    frame = f'<iframe width="{width}" height="900" srcdoc="{html.escape(page, quote=True)}"></iframe>'
    measure = """<script>onload = () => {
      const seen = document.querySelector("iframe").contentDocument, root = seen.documentElement;
      seen.querySelector("details").open = true;
      document.body.dataset.width = root.clientWidth;
      document.body.dataset.wide = root.scrollWidth > root.clientWidth;
      document.body.dataset.drawn = [...seen.images].every(i => i.complete && i.naturalWidth === 256);
      document.body.dataset.bars = [...seen.querySelectorAll("svg.chart")].every(s => s.getBoundingClientRect().height > 100);
    }</script>"""
    (tmp_path / "frame.html").write_text(f"<!doctype html><body>{frame}{measure}</body>")
    dom, console = load_in_browser(tmp_path / "frame.html", tmp_path / "profile")
    assert console == []
    shown = dict(re.findall(r'data-(\w+)="(\w+)"', dom[dom.index("<body") : dom.index("<iframe")]))
    assert abs(int(shown.pop("width")) - width) <= 20  # the scroll bar
    assert shown == {"wide": "false", "drawn": "true", "bars": "true"}
