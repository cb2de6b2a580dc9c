"""Rules of the repository that a machine can check."""

import ast
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cordon import errors

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "custom" / "cordon"
SOURCES = sorted(PACKAGE.rglob("*.py"))
SUBPACKAGES = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
CORE = sorted(set(SUBPACKAGES) - {"flare", "demo", "cli"})
TORCH = ("dp/", "flare/", "demo/", "models.py", "evaluation.py", "data/datasets.py")
JOBS = sorted(path.parent for path in (ROOT / "jobs").glob("*/meta.json"))


def _name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def _own(path: Path) -> str:
    """The sub-package of a module, '' for a root module."""
    return path.relative_to(PACKAGE).parts[0] if path.parent != PACKAGE else ""


def _imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it; for ``from a import b`` both a and a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield from (str(each.value) for each in node.args[:1] if isinstance(each, ast.Constant))


def _top(module: str) -> str:
    return module.split(".")[0]


# -- who imports what -----------------------------------------------------------------------------------------------


def test_the_package_is_where_it_is_looked_for() -> None:
    assert {"flare", "dp", "attest", "data", "asyncfl", "robust", "site", "report"} <= set(SUBPACKAGES)
    assert len(SOURCES) > 40


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_nvflare_is_imported_under_flare_only(path: Path) -> None:
    if not _name(path).startswith("flare/"):
        assert "nvflare" not in map(_top, _imports(path))


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_torch_is_imported_where_models_are_trained_or_judged_only(path: Path) -> None:
    if not _name(path).startswith(TORCH):
        assert not {"torch", "opacus", "monai"} & set(map(_top, _imports(path)))


@pytest.mark.parametrize("path", [path for path in SOURCES if _own(path) in CORE], ids=_name)
def test_core_packages_do_not_import_one_another(path: Path) -> None:
    own = _own(path)
    used = {module.split(".")[1] for module in _imports(path) if module.startswith("cordon.")}
    used -= MAY_USE.get(own, set())
    assert not used & (set(SUBPACKAGES) - {own}), "what they share is a value handed over by flare/ or cli/"


MAY_USE = {"broker": {"attest", "dp"}}  # it appraises evidence and prices plans: a value handed over would be a service


@pytest.mark.parametrize("path", [path for path in SOURCES if path.parent == PACKAGE], ids=_name)
def test_root_modules_import_no_subpackage(path: Path) -> None:
    used = {module.split(".")[1] for module in _imports(path) if module.startswith("cordon.")}
    assert not used & set(SUBPACKAGES)


@pytest.mark.parametrize("path", [path for path in SOURCES if _own(path) == "cli"], ids=_name)
def test_the_command_line_reaches_flare_and_demo_when_needed_only(path: Path) -> None:
    """At the top of a module they would be loaded for ``cordon --help`` too."""
    top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {ast.unparse(node) for node in top}
    assert not [each for each in modules if re.search(r"cordon\.(flare|demo)\b", each)]


def _loaded(code: str) -> set[str]:
    """Top-level modules in memory after ``code`` ran in a fresh interpreter."""
    ending = "\nimport sys, json; print('\\n' + json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code + ending], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_help_loads_neither_torch_nor_nvflare() -> None:
    code = """
from cordon.cli import main
try:
    main(["--help"])
except SystemExit as end:
    assert end.code == 0
"""
    assert not {"torch", "nvflare", "opacus", "monai", "sklearn", "llvmlite"} & _loaded(code)


@pytest.mark.parametrize("module", ["cordon.flare.deployer", "cordon.flare.cc_manager", "cordon.flare.provision"])
def test_what_runs_in_a_parent_process_loads_no_torch(module: str) -> None:
    loaded = _loaded(f"import {module}")
    assert "nvflare" in loaded
    assert not {"torch", "opacus", "monai"} & loaded


# -- what must not be in the package --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".md")], ids=_name)
def test_nothing_is_left_for_later(path: Path) -> None:
    found = re.findall(r"\b(TODO|FIXME|XXX|stub\w*|placeholder\w*|dummy|simplified|for now)\b", path.read_text(), re.I)
    assert not found


def _calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_no_dangerous_call(path: Path) -> None:
    assert not {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"} & set(map(_top, _imports(path)))
    for name, call in _calls(path):
        assert name not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.unsafe_load"), name
        assert name not in ("torch.load", "np.load", "numpy.load"), f"{name} can unpickle"
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert keywords.get("shell", "False") == "False"
        assert keywords.get("verify", "None") != "False"
        assert keywords.get("allow_pickle", "False") == "False"
        if name in ("yaml.load", "yaml.load_all"):
            assert keywords.get("Loader") == "_StrictLoader"
            assert _name(path) == "documents.py"


def test_the_one_yaml_loader_is_a_safe_one() -> None:
    from cordon import documents

    assert issubclass(documents._StrictLoader, yaml.SafeLoader)


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_no_exception_is_swallowed(path: Path) -> None:
    """No bare except. A broad one stands at a border only (FLARE's callbacks, the command line), and it re-raises,
    logs the traceback or ends the process."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ExceptHandler):
            continue
        where = f"line {node.lineno}"
        assert node.type is not None, f"{where}: bare except"
        inside = list(ast.walk(node))
        if {"Exception", "BaseException"} & {each.id for each in ast.walk(node.type) if isinstance(each, ast.Name)}:
            raises = any(isinstance(each, ast.Raise) for each in inside)
            calls = [ast.unparse(each.func).split(".")[-1] for each in inside if isinstance(each, ast.Call)]
            told = {"exception", "log_exception", "print_exc", "format_exc", "_exit"} & set(calls)
            border = _name(path).startswith("flare/") or _name(path) == "cli/__init__.py"
            assert raises or (told and border), f"{where}: broad except"
        assert not all(isinstance(each, ast.Pass) for each in node.body), f"{where}: suppress the one type instead"


# -- jobs and profiles ----------------------------------------------------------------------------------------------


def test_there_are_jobs() -> None:
    assert [path.name for path in JOBS] == ["oncology", "oncology_masked"]


def test_jobs_hold_no_code() -> None:
    for path in (ROOT / "jobs").rglob("*"):
        assert path.suffix not in (".py", ".so", ".pyc", ".sh", ".whl", ".zip"), path
        assert path.name != "custom", path


def _class_paths(tree: object) -> Iterator[str]:
    if isinstance(tree, dict):
        if isinstance(tree.get("path"), str):
            yield tree["path"]
        tree = list(tree.values())
    if isinstance(tree, list):
        for each in tree:
            yield from _class_paths(each)


USED = sorted(
    {each for path in (ROOT / "jobs").rglob("config_fed_*.json") for each in _class_paths(json.loads(path.read_text()))}
)
PROFILES = sorted((ROOT / "cc_config").glob("*.yml"))


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.name)
def test_each_profile_allows_the_classes_of_the_jobs_and_no_other(path: Path) -> None:
    profile = yaml.safe_load(path.read_text())
    allowed = profile["class_allow_list"]
    if profile["compute_env"] == "onprem_enclave":  # a key broker runs no job
        assert allowed == []
        return
    assert sorted(allowed) == USED
    assert not [entry for entry in allowed if entry.endswith((".", "*"))]


@pytest.mark.parametrize("path", USED)
def test_a_class_of_a_job_is_defined_where_it_says(path: str) -> None:
    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    assert isinstance(found, type)
    assert found.__module__ == module


class _Forbidden(Exception):
    pass


_watching = False


def _watch(event: str, args: tuple[object, ...]) -> None:
    watched = ("open", "socket.", "subprocess.", "os.", "shutil.", "import", "exec", "pickle.", "ctypes.dlopen")
    if _watching and event.startswith(watched):
        raise _Forbidden(f"{event} {args!r}")


@pytest.fixture
def nothing_opened() -> Iterator[None]:
    """Any file, socket, process or import is an error while this is on. (An audit hook cannot be taken off again.)"""
    global _watching
    if not getattr(sys, "_cordon_watch", False):
        sys.addaudithook(_watch)
        sys._cordon_watch = True  # type: ignore[attr-defined]
    yield
    _watching = False


HOSTILE = [
    "/etc/passwd",
    "../../etc/shadow",
    "http://169.254.169.254/latest/meta-data",
    "$(touch /tmp/x)",
    "__import__('os').system('true')",
    {"path": "subprocess.Popen", "args": {"args": ["true"]}},
    [10**9] * 1000,
    -1,
    float("nan"),
    None,
    b"\x80\x04.",
]


@pytest.mark.parametrize("path", USED)
@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value)[:30])
def test_a_class_of_a_job_is_harmless_to_construct(path: str, value: object, nothing_opened: None) -> None:
    """FLARE constructs it with whatever the job says, before anything is judged."""
    import inspect

    global _watching
    module, _, name = path.rpartition(".")
    made_of = getattr(importlib.import_module(module), name)
    names = [each for each in inspect.signature(made_of.__init__).parameters if each != "self"]
    names = [each for each in names if each not in ("args", "kwargs")]
    made_of(**dict.fromkeys(names, value))  # once unwatched: what is imported lazily by FLARE's own base class
    _watching = True
    try:
        made = made_of(**dict.fromkeys(names, value))
    finally:
        _watching = False
    for each in names:
        assert getattr(made, each) is value, "FLARE finds out arguments by attributes of their own names"


def test_the_watch_sees_an_open_file(nothing_opened: None) -> None:
    global _watching
    _watching = True
    try:
        with pytest.raises(_Forbidden):
            open("/etc/hostname")  # noqa: SIM115
    finally:
        _watching = False


# -- documents ------------------------------------------------------------------------------------------------------

README = (ROOT / "README.md").read_text()
TREE = next(block for block in re.findall(r"```\n(.*?)```", README, re.S) if "custom/cordon/" in block)


@pytest.mark.parametrize("name", SUBPACKAGES)
def test_each_sub_package_has_its_specification_and_its_line_in_the_tree(name: str) -> None:
    readme = PACKAGE / name / "README.md"
    assert len(readme.read_text()) > 300
    assert re.search(rf"^  {name}/ +\S", TREE, re.M)


@pytest.mark.parametrize("path", [path for path in SOURCES if path.parent == PACKAGE], ids=_name)
def test_each_root_module_is_in_the_tree(path: Path) -> None:
    if path.name != "__init__.py":
        assert re.search(rf"^  {re.escape(path.name)} +\S", TREE, re.M)


def test_everything_in_the_tree_is_there() -> None:
    for line in TREE.splitlines():
        for name in re.findall(r"^(\s*)([\w./]+)(?:, (\w+))?", line)[:1]:
            indent, first, second = name
            for each in filter(None, (first, second)):
                path = (PACKAGE if indent else ROOT) / each
                assert path.exists(), f"README's tree names {each}"


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "Makefile", "run"),
        *("provisioning/README.md", "provisioning/project.yml", "provisioning/project.poc.yml"),
        *("cc_config/README.md", "cc_config/software.yml", "docker/README.md", "docker/compose.yml"),
        *("docker/Dockerfile.site", "docker/Dockerfile.coordinator"),
        *("jobs/oncology/meta.json", "jobs/oncology_masked/meta.json", "custom/cordon"),
    ],
)
def test_what_must_exist(name: str) -> None:
    assert (ROOT / name).exists()


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert {"help", "setup", "demo", "test", "test-all", "lint", "bench"} <= targets
    for path in (*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *PACKAGE.glob("*/README.md")):
        named = re.findall(r"(?:^|[`(])make ([a-z][a-z-]*)", path.read_text(), re.M)
        assert set(named) <= targets, path
    assert set(re.findall(r"\(make ([a-z-]+)\)", README)) >= {"demo", "test"}


def test_each_make_target_is_a_command_of_run() -> None:
    script = (ROOT / "run").read_text()
    for command in re.findall(r"^\t\./run ([a-z-]+)$", (ROOT / "Makefile").read_text(), re.M):
        assert f'"{command}"' in script


@pytest.mark.parametrize("path", [ROOT / "README.md", *ROOT.glob("*/README.md"), *PACKAGE.glob("*/README.md")])
def test_links_lead_somewhere(path: Path) -> None:
    prose = re.sub(r"```.*?```|`[^`]*`", "", path.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)#\s]+)", prose):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (path.parent / target).exists(), target


def test_the_table_of_exit_codes_is_the_classes() -> None:
    table = dict(re.findall(r"^    (?:\|   )*[|`]-- (\w+)(?: +(\d+))?", str(errors.__doc__), re.M))
    classes = {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.CordonError) and value is not errors.CordonError
    }
    assert set(table) == set(classes)
    for name, code in table.items():
        parents = (table.get(base.__name__) for base in classes[name].__mro__[1:])
        wanted = code or next(each for each in parents if each)
        assert classes[name].exit_code == int(wanted), name
        assert classes[name].exit_code in (1, 2, 3, 4)


def test_every_reason_code_is_a_word() -> None:
    from cordon import messages

    for table in (messages.REJECT_REASONS, messages.REFUSAL_REASONS):
        assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) and text for code, text in table.items())


def test_tests_have_unique_names_and_no_init() -> None:
    """Test modules are imported by file name."""
    files = [path for path in (ROOT / "tests").rglob("*.py") if path.name.startswith("test_")]
    assert len({path.name for path in files}) == len(files)
    assert not list((ROOT / "tests").rglob("__init__.py"))
