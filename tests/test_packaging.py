"""What a saved model says that it needs."""

from torch import nn

from pose.tracking.packaging import pinned, requirements


def test_the_mark_of_a_build_is_no_part_of_a_requirement(tmp_path, monkeypatch):
    installed = tmp_path / "torch-9.9.1+cu128.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torch\nVersion: 9.9.1+cu128\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert pinned("torch") == "torch==9.9.1"
    assert "torch==9.9.1" in requirements(nn.Linear(2, 2))
