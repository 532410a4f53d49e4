"""The packages as a house: their rooms, and the arrows between them."""

import ast
import re

import pytest

from scripts.measure_layout import ORDER, PACKAGES, ROOT, Layout, room

DESIGN = ROOT / "docs" / "design.md"


@pytest.fixture(scope="module")
def layout() -> Layout:
    return Layout()


def test_no_folder_has_more_than_sixteen_modules(layout: Layout) -> None:
    assert {folder: count for folder, count in layout.folders.items() if count > 16} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_has_at_most_ten_rooms_each_with_its_purpose_in_a_sentence(
    layout: Layout, package: str
) -> None:
    assert len(layout.rooms(package)) <= 10
    for folder in layout.folders:
        if folder.split("/")[0] == package and layout.folders[folder]:
            purpose = ast.get_docstring(layout.trees[folder.replace("/", ".")])
            assert purpose, folder
            assert purpose.endswith("."), folder
            assert "\n\n" not in purpose, folder


def test_no_module_imports_from_a_higher_room(layout: Layout) -> None:
    assert layout.back_arrows == []


def test_every_place_in_the_order_of_the_rooms_exists(layout: Layout) -> None:
    assert {room(module) for module in layout.paths} == set(ORDER)


def test_imports_go_round_in_no_circle_and_down_no_long_chain(layout: Layout) -> None:
    assert len(layout.longest_chain) <= 22


def test_the_design_page_names_every_room_and_leads_to_files_that_exist(layout: Layout) -> None:
    page = DESIGN.read_text(encoding="utf-8")
    for package in PACKAGES:
        for folder in layout.rooms(package):
            assert f"`{folder.split('/')[1]}/`" in page, folder
    for link in re.findall(r"\]\(([^)#]+)", page):
        assert (DESIGN.parent / link).exists(), link
