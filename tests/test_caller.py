"""Where the user is, and what a path means from there."""

from entrypoints.caller import without_steps_up


def test_a_path_is_named_without_steps_up(tmp_path):
    (tmp_path / "work").mkdir()
    assert without_steps_up(tmp_path / "work" / ".." / "data") == str(tmp_path / "data")


def test_behind_a_link_a_step_up_stays(tmp_path):
    (tmp_path / "far" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "inner")
    path = tmp_path / "link" / ".." / "data"
    assert without_steps_up(path) == str(path)
