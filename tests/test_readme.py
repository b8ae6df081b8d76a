"""What the README shows is run."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_example_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(example, names)
    assert names["probability"].shape == (1, 64, 64, 1)
    assert 0 < names["metrics"]["iou"] < 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()


def test_the_map_names_every_room():
    rooms = {path.name for path in (ROOT / "forestgaps_jax").iterdir() if path.name[0] not in "_."}
    documented = set(re.findall(r"[a-z_]+(?:\.py|/)", README.partition("## What is where")[2]))
    missing = {room for room in rooms if room not in documented and f"{room}/" not in documented}
    assert missing <= {"fields.py", "py.typed"}
