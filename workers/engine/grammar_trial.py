"""A grammar is tried out in a process of its own before it may come near a model.

llguidance bounds what a step costs, but not all of compiling: a schema of a few lines can keep it busy for hours
(multiples of several primes) or overflow its stack (a long chain of references). Here that costs a process with limits
instead of a worker. Run as a script, with llguidance's library as the argument: importing no more than that, it takes
some 20 ms.

On standard input comes {"grammar": ..., "limits": {...}} as JSON; what is wrong with it goes to standard output. The
vocabulary is that of the 256 bytes, since compiling hardly depends on it.
"""

import json
import re
import resource
import sys
from contextlib import suppress
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llguidance import LLMatcher

CPU_SECONDS = 2
MEMORY_BYTES = 1 << 30
STACK_BYTES = 2 << 20  # a quarter of what a thread of the worker has


def fault(matcher: "LLMatcher") -> str:
    """What is wrong with a grammar, in one line; "" when there is some text that begins as it wants."""
    if not matcher.is_error():
        matcher.compute_bitmask()  # much is done only now
    if not matcher.is_error():
        return ""
    if matcher.get_error().startswith("NoExtension"):
        return "no text at all fits it"
    cause = re.sub(r"<non-verbose/>|; following special tokens are available:.*", "", matcher.get_error())
    return " ".join(line.strip() for line in cause.splitlines() if line.strip())[:300]


def _library(path: str) -> Any:
    """llguidance's compiled part without its package, which takes longer to import than most grammars to try out."""
    loader = ExtensionFileLoader("_lib", path)
    spec = spec_from_loader("_lib", loader)
    assert spec is not None
    library = module_from_spec(spec)
    loader.exec_module(library)
    return library


if __name__ == "__main__":
    for kind, most in (
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_STACK, STACK_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        with suppress(ValueError, OSError):  # a lower one is set, or a Mac does not know it
            resource.setrlimit(kind, (most, most))
    library = _library(sys.argv[1])
    trial = json.load(sys.stdin)
    limits = library.LLParserLimits(**trial["limits"])
    print(fault(library.LLMatcher(library.LLTokenizer("byte"), trial["grammar"], log_level=0, limits=limits)))
