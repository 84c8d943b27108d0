"""The manifest refuses what it does not understand, naming the cell."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from multimix.data.decode import MAX_PIXELS, read_image, read_mask
from multimix.data.manifest import Record, assign_splits, read_manifest, split_ranked
from multimix.errors import ManifestError, RunConfigError

REAL = Path(os.environ.get("MULTIMIX_DATA", Path(__file__).parents[3] / "shared" / "data"))


def manifest(folder: Path, text: str, *files: str) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    path = folder / "manifest.csv"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path) -> ManifestError:
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    return caught.value


def test_two_columns_are_enough_and_the_rest_has_defaults(tmp_path):
    (record,) = read_manifest(manifest(tmp_path, "image,patient_id\na.png,P1\n", "a.png"))
    assert record == Record(row=2, image="a.png", patient_id="P1")
    assert (record.source, record.label, record.split, record.mask) == ("site", "unknown", "", "")


def test_an_empty_label_is_unknown(tmp_path):
    (record,) = read_manifest(manifest(tmp_path, "image,patient_id,label\na.png,P1,\n", "a.png"))
    assert record.label == "unknown"


def test_a_byte_order_mark_from_a_spreadsheet_is_accepted(tmp_path):
    (record,) = read_manifest(manifest(tmp_path, "\ufeffimage,patient_id\na.png,P1\n", "a.png"))
    assert record.image == "a.png"


@pytest.mark.parametrize(
    ("text", "reason", "named"),
    [
        ("image\na.png\n", "column_missing", "'patient_id'"),
        ("image;patient_id\na.png;P\n", "column_missing", "commas"),
        ("image,patient_id,colour\na.png,P,red\n", "column_unknown", "'colour'"),
        ("image,patient_id,row\na.png,P,7\n", "column_unknown", "'row'"),
        ("image,patient_id,image\na.png,P,a.png\n", "column_duplicate", "'image'"),
        ("image,patient_id,label\na.png,P,Pneumonia\n", "label_unknown", "row 2, column label: 'Pneumonia'"),
        ("image,patient_id,split\na.png,P,dev\n", "split_unknown", "row 2, column split: 'dev'"),
        ("image,patient_id\na.png,\n", "value_missing", "row 2, column patient_id"),
        ("image,patient_id\na.png,P,extra\n", "row_malformed", "row 2: 3 cells under 2 columns"),
        ("image,patient_id,label\na.png,P\n", "row_malformed", "row 2: 2 cells under 3 columns"),
        ("image,patient_id\nb.png,P\n", "image_missing", "row 2, column image: 'b.png'"),
        ("image,patient_id,mask\na.png,P,m.png\n", "mask_missing", "row 2, column mask: 'm.png'"),
        ("image,patient_id\n../manifest.csv,P\n", "path_escapes", "'../manifest.csv'"),
        ("image,patient_id\n/etc/passwd,P\n", "path_escapes", "'/etc/passwd'"),
        ("image,patient_id\na\x00.png,P\n", "image_missing", "row 2"),
        ("image,patient_id\na.png,P\n./a.png,Q\n", "image_duplicate", "the image of row 2 again"),
        ('image,patient_id\n"a.png,P\n', "manifest_unreadable", "CSV"),
        ("image,patient_id\n\n", "manifest_empty", "no image row"),
        ("", "manifest_empty", "is empty"),
    ],
)
def test_a_mistake_is_refused_and_named(tmp_path, text, reason, named):
    error = refusal(manifest(tmp_path, text, "a.png"))
    assert error.reason == reason
    assert named in str(error)
    assert "manifest.csv" in str(error)


def test_rows_are_counted_as_a_spreadsheet_counts_them(tmp_path):
    text = 'image,patient_id,finding\na.png,P,"two\nlines"\n\na.png,P,\n'  # header 1, then 2, blank 3, 4
    assert "row 4, column image" in str(refusal(manifest(tmp_path, text, "a.png")))


def test_a_label_error_lists_the_labels_allowed(tmp_path):
    message = str(refusal(manifest(tmp_path, "image,patient_id,label\na.png,P,covid\n", "a.png")))
    assert "normal, pneumonia, other, unknown" in message


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "outside.png").touch()
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.png").symlink_to(tmp_path / "outside.png")
    assert refusal(manifest(folder, "image,patient_id\na.png,P\n")).reason == "path_escapes"


def test_a_missing_manifest_is_refused(tmp_path):
    assert refusal(tmp_path / "none.csv").reason == "manifest_missing"


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "manifest.csv"
    path.write_bytes(b"\xff\xfe\x00\x01")
    assert refusal(path).reason == "manifest_unreadable"


def test_a_patient_in_two_splits_is_refused_naming_both_rows(tmp_path):
    text = "image,patient_id,split\na.png,P,train\nb.png,P,test\n"
    error = refusal(manifest(tmp_path, text, "a.png", "b.png"))
    assert error.reason == "patient_in_two_splits"
    assert "row 3" in str(error)
    assert "row 2" in str(error)


def test_the_same_identifier_in_two_sources_is_two_patients(tmp_path):
    text = "image,patient_id,source,split\na.png,P,x,train\nb.png,P,y,test\n"
    assert len(read_manifest(manifest(tmp_path, text, "a.png", "b.png"))) == 2


@pytest.mark.parametrize(
    ("mask", "origin", "convention"),
    [
        ("m.png", "V7 (includes area Behind heart)", "behind_heart"),
        ("m.png", "NLM manual", "mediastinum_excluded"),
        ("m.png", "", "mediastinum_excluded"),
        ("", "", ""),
    ],
)
def test_the_mask_convention_follows_from_the_origin(mask, origin, convention):
    record = Record(image="a.png", patient_id="P", mask=mask, mask_origin=origin)
    assert record.mask_convention == convention


def people(count: int, source: str = "a") -> list[Record]:
    return [Record(image=f"{source}{i}.png", patient_id=str(i), source=source) for i in range(count)]


def test_splits_have_the_proportions_asked_for():
    counts = Counter(assign_splits(people(100), seed=0))
    assert counts == {"train": 70, "validation": 10, "test": 20}


def test_an_explicit_split_holds_for_all_images_of_the_patient():
    records = [
        *people(20),
        Record(image="x.png", patient_id="3", source="a", split="validation"),
    ]
    splits = assign_splits(records, seed=0)
    assert splits[3] == splits[20] == "validation"


@given(order=st.permutations(range(24)), seed=st.integers(0, 5))
def test_splits_do_not_depend_on_the_order_of_rows(order, seed):
    records = [
        Record(image=f"{i}.png", patient_id=str(i // 2), source="ab"[i % 4 // 2]) for i in range(24)
    ]  # two images a patient
    expected = assign_splits(records, seed=seed)
    shuffled = assign_splits([records[i] for i in order], seed=seed)
    assert shuffled == tuple(expected[i] for i in order)


@given(patients=st.lists(st.integers(0, 9), min_size=1, max_size=40), seed=st.integers(0, 5))
def test_no_patient_is_in_two_splits(patients, seed):
    records = [Record(image=f"{i}.png", patient_id=str(p)) for i, p in enumerate(patients)]
    pairs = set(zip(patients, assign_splits(records, seed=seed), strict=True))
    assert len(pairs) == len(set(patients))


def test_another_seed_gives_another_split():
    assert assign_splits(people(50), seed=0) != assign_splits(people(50), seed=1)


def test_one_source_does_not_change_the_split_of_another():
    assert assign_splits([*people(20), *people(7, "b")], seed=0)[:20] == assign_splits(people(20), seed=0)


@given(count=st.integers(0, 1000))
def test_rounded_shares_add_up_and_a_lone_patient_trains(count):
    splits = split_ranked(count)
    assert len(splits) == count
    assert abs(splits.count("train") - 0.7 * count) <= 0.5
    assert splits[:1] == ("train",)[:count]


def test_fractions_that_do_not_add_up_are_refused():
    with pytest.raises(RunConfigError, match="add up to 1"):
        split_ranked(10, (0.7, 0.1, 0.1))


def save(folder: Path, name: str, pixels: np.ndarray) -> Record:
    Image.fromarray(pixels).save(folder / name)
    return Record(row=5, image=name, mask=name, patient_id="P")


def test_twelve_bit_grey_keeps_its_contrast(tmp_path):
    record = save(tmp_path, "a.png", np.array([[0, 2048, 4095]], np.uint16))
    # 12 bits hold the maximum, so 4095 becomes 255 and 2048 becomes round(2048 * 255 / 4095) = 128.
    assert read_image(record, root=tmp_path).tolist() == [[0, 128, 255]]


def test_eight_bit_grey_is_kept(tmp_path):
    record = save(tmp_path, "a.png", np.array([[0, 7, 200]], np.uint8))
    assert read_image(record, root=tmp_path).tolist() == [[0, 7, 200]]


def test_grey_coded_as_colour_is_its_grey(tmp_path):
    record = save(tmp_path, "a.png", np.full((2, 2, 3), 90, np.uint8))
    assert read_image(record, root=tmp_path).tolist() == [[90, 90], [90, 90]]


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n broken"])
def test_an_unreadable_image_is_named_by_its_row(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ManifestError, match=r"row 5, column image: 'a.png'") as caught:
        read_image(Record(row=5, image="a.png", patient_id="P"), root=tmp_path)
    assert caught.value.reason == "image_unreadable"


def test_a_truncated_image_is_unreadable(tmp_path):
    record = save(tmp_path, "a.png", np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8))
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ManifestError) as caught:
        read_image(record, root=tmp_path)
    assert caught.value.reason == "image_unreadable"


@pytest.mark.parametrize("pixels", [MAX_PIXELS + 1, 4 * MAX_PIXELS])
def test_an_image_with_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, pixels):
    # The smallest bitmap header that claims these pixels; there is none behind it to decode.
    header = b"BM" + (62).to_bytes(4, "little") + bytes(4) + (62).to_bytes(4, "little")
    header += (40).to_bytes(4, "little") + pixels.to_bytes(4, "little") + (1).to_bytes(4, "little")
    header += (1).to_bytes(2, "little") + (1).to_bytes(2, "little") + bytes(24)
    (tmp_path / "a.bmp").write_bytes(header + b"\x00\x00\x00\x00\xff\xff\xff\x00")
    with pytest.raises(ManifestError) as caught:
        read_image(Record(image="a.bmp", patient_id="P"), root=tmp_path)
    assert caught.value.reason == "image_too_large"


@pytest.mark.parametrize("lung", [1, 255])
def test_a_mask_may_mark_lung_with_1_or_255(tmp_path, lung):
    record = save(tmp_path, "m.png", np.array([[0, lung]], np.uint8))
    assert read_mask(record, root=tmp_path, width=2, height=1).tolist() == [[False, True]]


def test_a_one_bit_mask_is_accepted(tmp_path):
    record = save(tmp_path, "m.png", np.array([[False, True]]))
    assert read_mask(record, root=tmp_path, width=2, height=1).tolist() == [[False, True]]


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.array([[0, 128]], np.uint8), "mask_not_binary"),
        (np.array([[0, 1, 255]], np.uint8)[:, 1:], "mask_not_binary"),
        (np.zeros((1, 2, 3), np.uint8), "mask_not_binary"),
        (np.zeros((1, 2), np.uint8), "mask_empty"),
        (np.ones((2, 1), np.uint8), "mask_size_differs"),
    ],
)
def test_a_mask_that_cannot_be_one_is_refused(tmp_path, pixels, reason):
    record = save(tmp_path, "m.png", pixels)
    with pytest.raises(ManifestError, match="row 5, column mask") as caught:
        read_mask(record, root=tmp_path, width=2, height=1)
    assert caught.value.reason == reason


@pytest.mark.data
def test_the_real_manifest_has_two_mask_conventions():
    if not (REAL / "cxr" / "manifest.csv").exists():
        pytest.skip(f"no real radiographs in {REAL}; set MULTIMIX_DATA")
    records = read_manifest(REAL / "cxr" / "manifest.csv")
    counts = Counter(record.mask_convention for record in records if record.mask)
    # README of the data: kermany 630 + cohen 159 by V7; jsrt 247 + montgomery 111 + shenzhen 454.
    assert counts == {"behind_heart": 789, "mediastinum_excluded": 812}
