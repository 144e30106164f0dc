"""What the project is made of, and what it may be installed beside."""

import re
import tomllib
from importlib.metadata import distribution, distributions
from pathlib import Path

ROOT = Path(__file__).parent.parent
OURS = {"config", "handlers", "connectors", "worker"}


def test_no_dependency_ships_a_package_with_one_of_our_names() -> None:
    clashes = {
        f"{one.metadata['Name']}: {file}"
        for one in distributions()
        if one.metadata["Name"] != "almoner"
        for file in one.files or ()
        if file.parts[0].removesuffix(".py") in OURS
    }
    assert not clashes


def test_locks_hold_versions_and_hashes_and_no_addresses() -> None:
    for name in ("requirements.lock", "requirements-dev.lock"):
        lock = (ROOT / name).read_text(encoding="utf-8")
        assert "://" not in lock
        assert not re.search(r"^--?(index|find|extra)", lock, re.MULTILINE)
        pins = re.findall(r"^([a-z0-9._-]+)(?:\[.*\])?==", lock, re.MULTILINE)
        assert len(pins) > 40
        assert lock.count("--hash=sha256:") >= len(pins)
    assert not (ROOT / "uv.lock").exists()


def test_every_dependency_is_in_the_lock() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    locks = {
        "requirements.lock": project["dependencies"] + project["optional-dependencies"]["build"],
        "requirements-dev.lock": project["optional-dependencies"]["dev"],
    }
    for name, wanted in locks.items():
        lock = (ROOT / name).read_text(encoding="utf-8")
        missing = [
            one
            for one in wanted
            if not re.search(rf"^{re.escape(re.split(r'[^a-z0-9.-]', one)[0].replace('.', '-'))}==", lock, re.MULTILINE)
        ]
        assert not missing


def test_the_version_is_the_newest_in_the_changelog() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## ([0-9.]+)", changes, re.MULTILINE)
    assert newest
    assert distribution("almoner").version == newest[1]


def test_only_one_file_knows_arq() -> None:
    knowing = [
        str(path.relative_to(ROOT))
        for folder in OURS
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"^\s*(import|from) arq\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert knowing == ["worker/queue.py"]


def test_no_test_patches_with_mock() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "unittest" + ".mock" not in text, path
        assert "mock" + ".patch" not in text, path
