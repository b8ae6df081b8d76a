"""Pairs found by name in folders and globs, or listed in manifests."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from forestgaps_jax import Config
from forestgaps_jax.data import find_pairs, load_sites
from forestgaps_jax.data.pairs import with_pairs
from tests.data.test_stream import write_pair


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def found(where, folder) -> list[tuple[str, str]]:
    return [(os.path.relpath(p.dsm, folder), os.path.relpath(p.chm, folder)) for p in find_pairs(where)]


LAYOUTS = [
    (["A_DSM.tif", "A_CHM.tif", "B_DSM.tif", "B_CHM.tif"],
     [("A_DSM.tif", "A_CHM.tif"), ("B_DSM.tif", "B_CHM.tif")]),
    (["dsm/x.tif", "chm/x.tif"], [("dsm/x.tif", "chm/x.tif")]),
    (["DSM/x.tif", "CHM/x.tif"], [("DSM/x.tif", "CHM/x.tif")]),
    (["dsm/x_dsm.tiff", "chm/x_chm.tiff"], [("dsm/x_dsm.tiff", "chm/x_chm.tiff")]),
    (["p/dsm-1m.TIF", "p/chm-1m.TIF", "q/dsm-1m.TIF", "q/chm-1m.TIF"],
     [("p/dsm-1m.TIF", "p/chm-1m.TIF"), ("q/dsm-1m.TIF", "q/chm-1m.TIF")]),
    (["2019/a_DSM2.tif", "2019/a_CHM2.tif"], [("2019/a_DSM2.tif", "2019/a_CHM2.tif")]),
    # What is neither is left alone; a letter more makes another word.
    (["A_DSM.tif", "A_CHM.tif", "A_DTM.tif", "readme.txt", "A_CHM.tfw", "odsm.tif", "A_CHM.tif.aux.xml"],
     [("A_DSM.tif", "A_CHM.tif")]),
]  # fmt: skip


@pytest.mark.parametrize(("files", "expected"), LAYOUTS, ids=lambda value: str(value[0]))
def test_a_folder_by_names_whatever_it_is_called_itself(tmp_path, files, expected):
    folder = touch(tmp_path / "dsm", *files)
    assert found(folder, folder) == expected
    # A glob's own folders tell too: in dsm, all is DSM that is not called otherwise.
    if "A_DTM.tif" not in files:
        assert found(str(folder) + "/**/*", folder) == expected


def test_a_glob_may_match_the_surfaces_alone(tmp_path):
    touch(tmp_path, "A_DSM.tif", "A_CHM.tif", "B_DSM.tif", "B_CHM.tif", "dsm/C.tif", "chm/C.tif", "D_DSM.tif")
    expected = [("A_DSM.tif", "A_CHM.tif"), ("B_DSM.tif", "B_CHM.tif")]
    assert found(tmp_path / "[AB]_DSM.tif", tmp_path) == expected
    assert found(tmp_path / "[AB]_*.tif", tmp_path) == expected
    assert found(tmp_path / "dsm" / "*.tif", tmp_path) == [("dsm/C.tif", "chm/C.tif")]


def test_a_folder_with_the_signs_of_a_glob_in_its_name_is_a_folder(tmp_path):
    folder = touch(tmp_path / "plots [2019]", "A_DSM.tif", "A_CHM.tif")
    assert len(find_pairs(folder)) == 1


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (["A_DSM.tif", "A_CHM.tif", "B_DSM.tif"], ["B_DSM.tif"]),
        (["A_DSM.tif", "A_CHM.tif", "B_CHM.tif"], ["B_CHM.tif"]),
        (["A_DSM.tif", "A_chm.tif"], ["A_DSM.tif", "A_chm.tif"]),
        (["dsm/a.tif", "chm/b.tif"], ["dsm/a.tif", "chm/b.tif"]),
        ([f"{n}_DSM.tif" for n in range(8)], ["0_DSM.tif", "4_DSM.tif", "and 3 more"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("pattern", ["", "/**/*.tif"])
def test_files_without_a_partner_are_named(tmp_path, files, named, pattern):
    touch(tmp_path, *files)
    with pytest.raises(ValueError, match="without their partner") as caught:
        find_pairs(str(tmp_path) + pattern)
    for name in named:
        assert name in str(caught.value)
    assert ("A_CHM.tif, " in str(caught.value)) is False


@pytest.mark.parametrize("files", [[], ["heights.tif", "canopy.tif"]], ids=str)
def test_a_folder_without_a_pair(tmp_path, files):
    touch(tmp_path, *files)
    with pytest.raises(
        ValueError, match=rf"no pair among {len(files)} GeoTIFFs.*A_DSM.tif and A_CHM.tif"
    ) as caught:
        find_pairs(tmp_path)
    assert all(name in str(caught.value) for name in files)


def test_what_is_not_there_or_no_list(tmp_path):
    touch(tmp_path, "A_DSM.tif")
    for name, says in [
        ("none", "no such folder"),
        ("none.csv", "no such folder or manifest"),
        ("*.tiff", r"no GeoTIFF .* matches"),
    ]:
        with pytest.raises(FileNotFoundError, match=says):
            find_pairs(tmp_path / name)
    with pytest.raises(ValueError, match="single rasters are given as dsm and chm"):
        find_pairs(tmp_path / "A_DSM.tif")


# Manifests


@pytest.fixture
def listed(tmp_path):
    """Writes a manifest beside files that may be called anything."""
    touch(tmp_path / "data", "surface.tif", "canopy.tif", "é, 2.tif")

    def write(text, name="list.csv"):
        path = tmp_path / "data" / name
        path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
        return path

    return write


def test_a_manifest_in_both_forms_relative_to_its_folder(listed, tmp_path, monkeypatch):
    text = (
        '\ufeffchm, dsm ,Name,weight\ncanopy.tif,surface.tif,Eawy,2.5\n\n"é, 2.tif",../data/surface.tif,,\n'
    )
    items = [
        {"dsm": "surface.tif", "chm": "canopy.tif", "name": "Eawy", "weight": 2.5},
        {"dsm": "../data/surface.tif", "chm": "é, 2.tif"},
    ]
    paths = listed(text), listed(items, "list.json")
    monkeypatch.chdir(tmp_path)
    for path in (*paths, Path("data/list.csv")):
        first, second = find_pairs(path)
        assert (first.name, first.weight, second.name, second.weight) == ("Eawy", 2.5, "", None)
        folder = tmp_path / "data"
        resolved = [p.resolve() for p in (first.dsm, first.chm, second.dsm, second.chm)]
        names = ["surface.tif", "canopy.tif", "surface.tif", "é, 2.tif"]
        assert resolved == [folder / name for name in names]


PAIR = {"dsm": "surface.tif", "chm": "canopy.tif"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "header has nothing: must be dsm,chm"),
        ("surface,canopy\na,b", "header has surface, canopy: must be dsm,chm"),
        ("dsm,chm,dsm\na,b,c", "header has dsm, chm, dsm"),
        ("dsm,chm,height\na,b,c", "header has dsm, chm, height"),
        ("dsm,chm\n", "lists no pair"),
        ("dsm,chm\nsurface.tif,canopy.tif\nsurface.tif", "line 3: it has 1 values, and the header 2"),
        ("dsm,chm\nsurface.tif,", "line 2: chm = '': must be text, a path"),
        ("dsm,chm\nsurface.tif,none.tif", "line 2: chm = 'none.tif': there is no file"),
        (
            "dsm,chm,weight\nsurface.tif,canopy.tif,much",
            "line 2: weight = 'much': must be a number, 0 or more",
        ),
        ("dsm,chm,weight\nsurface.tif,canopy.tif,-1", "weight = '-1'"),
        ("dsm,chm,weight\nsurface.tif,canopy.tif,nan", "weight = 'nan'"),
        (PAIR, "holds a dict: must be a list of objects"),
        ([], "lists no pair"),
        ([["surface.tif", "canopy.tif"]], "item 1: it is a list: must be an object"),
        ([PAIR, {"dsm": "surface.tif"}], "item 2: it has dsm: must be dsm,chm"),
        ([PAIR | {"dsm": 3}], "item 1: dsm = 3: must be text, a path"),
        ([PAIR | {"name": None}], "item 1: name = None: must be text"),
        ([PAIR | {"weight": True}], "item 1: weight = True"),
        ([PAIR | {"chm": "none.tif"}], "item 1: chm = 'none.tif': there is no file"),
    ],
    ids=str,
)
def test_a_wrong_manifest_says_where_and_what_is_allowed(listed, text, says):
    path = listed(text, "list.csv" if isinstance(text, str) else "list.json")
    with pytest.raises((ValueError, FileNotFoundError), match=says) as caught:
        find_pairs(path)
    assert str(path) in str(caught.value)


def test_a_manifest_that_cannot_be_read(listed):
    with pytest.raises(ValueError, match="not valid JSON"):
        find_pairs(listed("[", "list.json"))
    path = listed("dsm,chm")
    path.write_bytes(b"dsm,chm\n\xff,b")
    with pytest.raises(ValueError, match="no CSV text in UTF-8"):
        find_pairs(path)


# In the settings


def test_the_settings_get_what_was_found_after_what_was_listed(tmp_path):
    touch(tmp_path, "f/A_DSM.tif", "f/A_CHM.tif", "s.tif", "c.tif", "own_DSM.tif", "own_CHM.tif")
    (tmp_path / "list.csv").write_text("dsm,chm,name,weight\ns.tif,c.tif,Eawy,3\n")
    places = [str(tmp_path / name) for name in ("f", "list.csv")]
    own = {"dsm": [str(tmp_path / "own_DSM.tif")], "chm": [str(tmp_path / "own_CHM.tif")]}
    config = with_pairs(Config(sites=places, **own, chm_only=[str(tmp_path / "c.tif")]))
    assert [Path(path).name for path in config.dsm] == ["own_DSM.tif", "A_DSM.tif", "s.tif"]
    assert [Path(path).name for path in config.chm] == ["own_CHM.tif", "A_CHM.tif", "c.tif"]
    assert config.site_names == ("", "", "Eawy")
    assert config.site_weights == (1.0, 1.0, 3.0, 1.0)
    assert config.sites == ()
    assert with_pairs(config) is config
    plain = with_pairs(Config(sites=places[:1]))
    assert (plain.site_names, plain.site_weights) == ((), ())


def test_weights_of_settings_are_for_what_is_found(tmp_path):
    touch(tmp_path, "A_DSM.tif", "A_CHM.tif", "B_DSM.tif", "B_CHM.tif")
    config = Config(sites=[str(tmp_path)], site_weights=(1.0, 2.0))
    config.validate()
    assert with_pairs(config).site_weights == (1.0, 2.0)
    with pytest.raises(ValueError, match="must be one for each of 2 dsm"):
        with_pairs(replace(config, site_weights=(1.0,)))
    with pytest.raises(ValueError, match=r"site_names = .*one for each of 2 dsm"):
        with_pairs(replace(config, site_names=("a",), site_weights=()))
    manifest = tmp_path / "list.json"
    manifest.write_text('[{"dsm": "A_DSM.tif", "chm": "A_CHM.tif", "weight": 1}]')
    with pytest.raises(ValueError, match="give one of them"):
        with_pairs(Config(sites=[str(manifest)], site_weights=(1.0,)))


def test_one_raster_twice(tmp_path):
    touch(tmp_path, "A_DSM.tif", "A_CHM.tif")
    for config in (
        Config(sites=[str(tmp_path), str(tmp_path / "*_DSM.tif")]),
        Config(sites=[str(tmp_path)], dsm=[str(tmp_path / "A_DSM.tif")], chm=[str(tmp_path / "A_CHM.tif")]),
    ):
        with pytest.raises(ValueError, match="name it twice"):
            with_pairs(config)


def test_sites_are_read_by_their_names(tmp_path):
    pairs = [write_pair(tmp_path, number) for number in range(2)]
    (tmp_path / "list.json").write_text(
        json.dumps([{"dsm": pairs[1][0].name, "chm": pairs[1][1].name, "name": "Eawy"}])
    )
    assert [site.name for site in load_sites(Config(sites=[str(tmp_path)]))] == ["0", "1"]
    assert [site.name for site in load_sites(Config(sites=[str(tmp_path / "list.json")]))] == ["Eawy"]
