"""`cit pool …` as functions: what they print, and what tyro makes of their flags."""

import json

import pytest
import tyro

from cit_curate.errors import ConfigError
from cit_curate.pool import commands


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("image_id,title,tag,split\n1,A cat [/red],cat,x\n2,,,y\n")
    return path


def test_build_info_verify_and_repair_from_flags(source, tmp_path, capsys):
    pool = tmp_path / "pool"
    flags = [str(source), "--out", str(pool), "--text", "title, tag", "--extra", "split", "--json"]
    tyro.cli(commands.build, args=flags)
    built = json.loads(capsys.readouterr().out)
    assert (built["num_pairs"], built["num_images"]) == (2, 1)
    assert built["rejects"] == {"empty_text": 1}
    tyro.cli(commands.info, args=[str(pool), "--json"])
    assert json.loads(capsys.readouterr().out) == built
    tyro.cli(commands.info, args=[str(pool)])
    shown = capsys.readouterr().out
    assert "2 pairs of 1 images" in shown
    assert "empty_text 1" in shown
    tyro.cli(commands.verify, args=[str(pool), "--json"])
    assert json.loads(capsys.readouterr().out)["notes"] == []
    (pool / "pool.duckdb").unlink()
    commands.verify(pool)
    assert "cit pool repair" in capsys.readouterr().out.replace("\n", " ")
    commands.repair(pool, json=True)
    assert json.loads(capsys.readouterr().out)["catalog"].endswith("pool.duckdb")
    commands.verify(pool)
    assert "note" not in capsys.readouterr().out


@pytest.mark.faults("C3")
def test_names_with_markup_and_control_codes_are_shown_inert(source, tmp_path, capsys):
    odd = source.rename(tmp_path / "[link=x]a[red]\x1b[31m.csv")
    commands.build((odd,), tmp_path / "p", text="title")
    shown = capsys.readouterr().out
    assert "[link=x]a[red]" in shown
    assert "\x1b" not in shown


def test_errors_reach_the_caller(source, tmp_path):
    with pytest.raises(ConfigError, match="cit pool build"):
        commands.info(tmp_path / "none")
    with pytest.raises(ConfigError, match="--text"):
        commands.build((source,), tmp_path / "p")
