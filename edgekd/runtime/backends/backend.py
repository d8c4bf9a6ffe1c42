"""One object per engine library: everything that edgekd must know of it before it is imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

OptionValue: TypeAlias = "str | int | bool"


@dataclass(frozen=True)
class BackendOption:
    """One keyword argument of a backend's ``open_engine`` that a target may set.

    Attributes:
        name: The keyword.
        default: The value where the target sets none; it fixes the option's type.
        description: What the option does.
        choices: The words that it may be; empty for any value of its type.
        minimum: The least number that it may be; None for any.
    """

    name: str
    default: OptionValue
    description: str
    choices: tuple[str, ...] = ()
    minimum: int | None = None


@dataclass(frozen=True)
class Backend:
    """An engine library: where its code is, what a target may tell it, and what it can do.

    Its module is imported only when an engine is to be opened, and has these functions, each of which takes the options
    as keyword arguments, and ``fixed`` before them:

    - ``open_engine(engine: Path | bytes, threads: int, name: str | None, **options) -> Session``
    - ``library(**fixed)``: import the library, or raise MissingDependency. Optional, as are those that follow.
    - ``absent(**options) -> str | None``: the reason why no engine can run on this machine; None where it can.
    - ``hardware(**options) -> dict[str, str]``: what besides the processor decides what an engine does here.
    - ``layer_times(engine, threads, rows, **options) -> tuple[LayerTime, ...]``: run an engine under the library's
      profiler.
    - ``keep_engine(engine, folder, threads, cache=..., **options) -> BuiltEngine | None``: write the engine that the
      library compiles for this machine; only where ``compiles``.

    Attributes:
        name: The name that targets, bundles and the command line use.
        module: The module with the functions above, as Python imports it.
        packages: The distributions whose versions decide what the library computes.
        install_hint: What a user must do on a board that lacks the library.
        options: What a target may set under ``[options]``.
        fixed: Keyword arguments that the module's functions are always given.
        import_name: The Python module by which the library's presence on a board is recognised; None where a board
            cannot have it.
        compiles: Whether it compiles an engine for the machine at hand when it opens one. ``open_engine`` then takes
            ``cache``, the folder of compiled engines, or None.
        thread_safe: Whether several threads, and forked processes, may run one session at once. Other sessions get
            one thread at a time, and none of a forked process.
        slow_to_compile: Whether compiling takes minutes, so that compiled engines are always kept.
        on_gpu: Whether engines run on an NVIDIA GPU, whose clock is then recorded.
        in_browser: Whether engines run in a page of a browser.
        emulated_arches: Architectures, as ``uname -m`` prints them, on which its results under emulation were seen to
            be those of the real processor.
        emulation_note: What is known of its results on other emulated architectures; it begins with a colon.
        conflict: Returns the sentence that says which two options exclude each other; None where they do not.
    """

    name: str
    module: str
    packages: tuple[str, ...] = ()
    install_hint: str = ""
    options: tuple[BackendOption, ...] = ()
    fixed: Mapping[str, str] = field(default_factory=dict)
    import_name: str | None = None
    compiles: bool = False
    thread_safe: bool = False
    slow_to_compile: bool = False
    on_gpu: bool = False
    in_browser: bool = False
    emulated_arches: tuple[str, ...] = ()
    emulation_note: str = ""
    conflict: Callable[[Mapping[str, OptionValue]], str | None] = lambda _options: None
