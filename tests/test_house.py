"""The shape of the package: how it is shelved, that names are used once, and how modules depend on each other."""

import ast
from collections import Counter, defaultdict
from fnmatch import fnmatch
from functools import cache

import pytest
from commands import ROOT

PACKAGE = ROOT / "edgekd"

#: What a newcomer can hold in the head. A change that needs more needs a better place instead.
MOST_TOP_MODULES, MOST_TOP_PACKAGES, MOST_MODULES_OF_A_PACKAGE = 4, 12, 20
MOST_ARGUMENTS = 7
LONGEST_CHAIN = 12


@cache
def trees():
    """Return the syntax tree of each module, by its dotted name; a package is called like its folder."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def nodes(*kinds):
    """Yield every node of these kinds with its module's name."""
    for name, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, kinds):
                yield name, node


def modules_in(folder):
    """Return the modules of a folder that anyone imports."""
    return [path for path in folder.glob("*.py") if path.name not in ("__init__.py", "__main__.py")]


def packages_in(folder):
    return [path for path in folder.iterdir() if (path / "__init__.py").is_file()]


def test_the_top_of_the_package_is_a_short_shelf():
    assert len(modules_in(PACKAGE)) <= MOST_TOP_MODULES
    assert len(packages_in(PACKAGE)) <= MOST_TOP_PACKAGES


def test_no_package_has_too_many_modules():
    crowded = {
        str(path.parent.relative_to(ROOT)): len(modules_in(path.parent))
        for path in PACKAGE.rglob("__init__.py")
        if len(modules_in(path.parent)) > MOST_MODULES_OF_A_PACKAGE
    }
    assert crowded == {}


def test_no_folder_of_tests_is_passed_over(pytestconfig):
    folders = {name for path in (ROOT / "tests").rglob("test_*.py") for name in path.relative_to(ROOT).parent.parts}
    passed_over = pytestconfig.getini("norecursedirs")
    assert "build" in folders
    assert not [name for name in folders for pattern in passed_over if fnmatch(name, pattern)]


def test_no_class_name_is_used_twice():
    homes = defaultdict(list)
    for name, tree in trees().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                homes[node.name.lstrip("_")].append(name)
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}


def test_no_function_has_too_many_arguments():
    def count(function):
        arguments = function.args
        names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        return len([name for name in names if name not in ("self", "cls")])

    functions = nodes(ast.FunctionDef, ast.AsyncFunctionDef)
    assert {f"{name}.{node.name}": count(node) for name, node in functions if count(node) > MOST_ARGUMENTS} == {}


def test_whoever_catches_everything_raises_it_again():
    def catches_everything(handler):
        kinds = {kind.id for kind in ast.walk(handler.type) if isinstance(kind, ast.Name)} if handler.type else set()
        return handler.type is None or bool(kinds & {"Exception", "BaseException"})

    swallowed = [
        f"{name}:{handler.lineno}"
        for name, handler in nodes(ast.ExceptHandler)
        if catches_everything(handler) and not any(isinstance(node, ast.Raise) for node in ast.walk(handler))
    ]
    assert swallowed == []


def imported(node):
    """Return the modules of the package that an import statement names; relative ones are not used here."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    return {module_of(name) for name in names if name.partition(".")[0] == "edgekd"}


def module_of(name):
    """Return the module that a dotted name is, or is in."""
    return name if name in trees() else module_of(name.rpartition(".")[0])


def at_import(body):
    """Yield the imports that run when a module is imported: none of functions, none for type checkers alone."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If):
            if "TYPE_CHECKING" not in ast.dump(node.test):
                yield from at_import(node.body)
            yield from at_import(node.orelse)
        elif isinstance(node, ast.Try):
            yield from at_import([*node.body, *node.orelse, *node.finalbody])
            for handler in node.handlers:
                yield from at_import(handler.body)
        elif isinstance(node, ast.With | ast.ClassDef):
            yield from at_import(node.body)


@cache
def dependencies(everywhere):
    """Return for each module those that it imports: everywhere, or only those that its own import brings."""
    graph = {}
    for name, tree in trees().items():
        walked = ast.walk(tree) if everywhere else at_import(tree.body)
        statements = [node for node in walked if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not any(isinstance(node, ast.ImportFrom) and node.level for node in statements), name
        graph[name] = set().union(*map(imported, statements)) - {name}
    return graph


def cycle_in(graph):
    """Return modules that import each other in a ring, or nothing: what remains when all that end are taken away."""
    rest = dict(graph)
    while leaves := [name for name, needs in rest.items() if not needs & rest.keys()]:
        for name in leaves:
            del rest[name]
    if not rest:
        return []
    ring = [next(iter(rest))]
    while (following := sorted(rest[ring[-1]] & rest.keys())[0]) not in ring:
        ring.append(following)
    return [*ring[ring.index(following) :], following]


def longest_chain(graph):
    """Return the longest way from a module to one that imports nothing."""

    @cache
    def below(name):
        return (name, *max((below(needed) for needed in sorted(graph[name])), key=len, default=()))

    return max(map(below, graph), key=len)


@pytest.mark.parametrize("everywhere", [False, True], ids=["at import", "with those in functions and for types"])
def test_no_modules_import_each_other_in_a_ring(everywhere):
    assert cycle_in(dependencies(everywhere)) == []


def test_the_chain_of_imports_is_short():
    chain = longest_chain(dependencies(everywhere=False))
    assert len(chain) <= LONGEST_CHAIN, " -> ".join(chain)


def test_rings_and_chains_are_found():
    assert cycle_in({"a": {"b"}, "b": {"c", "d"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]
    assert longest_chain({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == ("a", "b", "c")
    counted = Counter(len(needs) > 0 for needs in dependencies(everywhere=True).values())
    assert counted[True] > 100, "the graph is that of the package"
