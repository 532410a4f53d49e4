"""Links in folders: what they lead to counts once, circles end, nothing outside is read."""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from cit_curate.sources.folders.walk import walk

FOLDERS = ("a", "a/b", "a/b/c", "d", "d/e", "out/f", "out/f/g", "away/h")
SOURCE, INSIDE = "s", ("s", "out")


def files_of(source, root):
    """Every file below the source: its path there, and the file itself."""
    return [
        (listing.prefix + name, (listing.path / name).resolve())
        for listing in walk(source, root)
        for name in listing.names
    ]


def problems_of(source, root):
    return [problem for listing in walk(source, root) for problem in listing.problems]


def test_a_link_inside_is_listed_once_under_the_folders_own_path(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "x.jpg").write_bytes(b"")
    (tmp_path / "a-link").symlink_to("inner")
    (tmp_path / "loop").symlink_to(".")
    assert [path for path, _ in files_of(tmp_path, tmp_path)] == ["inner/x.jpg"]
    repeats = [repeat for listing in walk(tmp_path, tmp_path) for repeat in listing.repeats]
    assert len(repeats) == 2
    assert "'a-link' leads to" in repeats[0]


def test_links_that_lead_outside_or_nowhere_are_problems_that_say_where(tmp_path):
    source, store = tmp_path / "source", tmp_path / "store"
    (store / "deep").mkdir(parents=True)
    source.mkdir()
    (store / "0.jpg").write_bytes(b"")
    (source / "folder").symlink_to("../store/deep")
    (source / "picture.jpg").symlink_to("../store/0.jpg")
    (source / "gone").symlink_to("nowhere")
    (source / "self").symlink_to("self")
    found = problems_of(source, source)
    assert sorted(reason for reason, _ in found) == [*["missing_image"] * 2, *["path_escapes"] * 2]
    escapes = [detail for reason, detail in found if reason == "path_escapes"]
    for detail, name, target in zip(
        sorted(escapes),
        ("'folder'", "'picture.jpg'"),
        (store / "deep", store / "0.jpg"),
        strict=True,
    ):
        assert name in detail
        assert str(target) in detail
        assert f"--image-root {tmp_path}" in detail
    assert [path for path, _ in files_of(source, tmp_path)] == ["picture.jpg"]


def test_a_link_to_a_folder_above_lists_what_was_not_listed(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "other").mkdir()
    for name in ("source/1.jpg", "other/2.jpg", "3.jpg"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "source" / "up").symlink_to("..")
    found = [path for path, _ in files_of(tmp_path / "source", tmp_path)]
    assert found == ["1.jpg", "up/3.jpg", "up/other/2.jpg"]


@settings(max_examples=60, deadline=None)
@given(
    folders=st.sets(st.sampled_from([f"{SOURCE}/{f}" for f in FOLDERS[:5]] + [*FOLDERS[5:]])),
    links=st.lists(
        st.tuples(
            st.sampled_from(["s", "s/a", "s/d", "out", "out/f", "away"]),
            st.sampled_from(["s", "s/a", "s/a/b", "out", "out/f", "away", "away/h", "none"]),
        ),
        max_size=8,
    ),
)
def test_every_file_that_links_reach_inside_counts_once(tmp_path_factory, folders, links):
    top = Path(tmp_path_factory.mktemp("links")).resolve()
    for folder in {"s", "out", "away", *folders}:
        (top / folder).mkdir(parents=True, exist_ok=True)
    for folder in [path for path in top.rglob("*") if path.is_dir()] + [top]:
        (folder / "x.jpg").write_bytes(b"")
    for number, (place, target) in enumerate(links):
        if (top / place).is_dir():
            (top / place / f"link{number}").symlink_to(top / target)
    # Inside is the top folder without `away`, which is moved out of it behind a link.
    (top.parent / f"{top.name}-away").mkdir()
    (top / "away").rename(top.parent / f"{top.name}-away" / "away")
    (top / "away").symlink_to(top.parent / f"{top.name}-away" / "away")
    found = files_of(top / "s", top)
    assert len({file for _, file in found}) == len(found)
    assert len({path for path, _ in found}) == len(found)
    assert {file for _, file in found} == reached(top / "s", top)


def reached(source, root):
    """The files that a plain search finds, which goes through every link inside."""
    seen, waiting, files = set(), [source.resolve()], set()
    while waiting:
        folder = waiting.pop()
        if folder in seen or not folder.is_relative_to(root):
            continue
        seen.add(folder)
        for path in folder.iterdir():
            target = path.resolve()
            if target.is_dir():
                waiting.append(target)
            elif target.is_file():
                files.add(target)
    return files
