"""The languages of the pages: which one a reader gets, and what the sentences are called in it.

English is what stands in the code. Every other language is one catalogue, `locale/*/LC_MESSAGES/messages.po`, read when
the app starts; templates look sentences up by `_()`, the page's modules by `t()` and `n()` of `static/i18n.js`, for which
a small script with the catalogue stands among the static files. Errors come to the page in English with a code, and are
translated there.

    python -m webapp.languages      # after a sentence was added or changed: takes it into the catalogues
"""

import ast
import io
import json
import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

from aiohttp import web
from babel.messages.catalog import Catalog, Message
from babel.messages.pofile import read_po, write_po
from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.ext import extract_from_ast

from broker.errors import FleetError, SetupError
from broker.features import CATEGORIES, JUDGED, LEAK

COOKIE = "language"
ELSEWHERE = ("arena", "leaderboard")  # how modules begin that the chat page does not have
VALUE = re.compile(r"\{([a-z])\}")
CALL = re.compile(r'\b(?:t|n)\(\s*("(?:[^"\\]|\\.)*")(?:,\s*("(?:[^"\\]|\\.)*"))?')  # t("...") and n("...", "...")

SPEAKERS = tuple(
    f"{folder}/{name}.py"
    for folder, names in {
        "broker": "arena conversations imports presets queues registry shares shelf streams threads",
        "webapp": "arena chat",
        "workers": "chat",
        "workers/engine": "echo_engine remote_pieces remote_refusal remote_wire torch_engine",
    }.items()
    for name in names.split()
)  # modules whose errors a page shows, with sentences of their own


@dataclass(frozen=True, slots=True)
class Language:
    """A language: its tag as pages say it, its own name, and the folder of its catalogue."""

    tag: str
    name: str
    folder: str = ""

    @property
    def path(self) -> str:
        """Its catalogue, in the package."""
        return f"locale/{self.folder}/LC_MESSAGES/messages.po"

    def read(self) -> Catalog:
        """Its catalogue; English has an empty one."""
        if not self.folder:
            return Catalog()
        return read_po(io.BytesIO((files("webapp") / self.path).read_bytes()), locale=self.folder)


ENGLISH = Language("en", "English")
LANGUAGES = (ENGLISH, Language("zh-Hant", "繁體中文", "zh_Hant"))
TAGS = {"en": ENGLISH, **dict.fromkeys(("zh", "zh-tw", "zh-hk", "zh-mo", "zh-hant"), LANGUAGES[1])}


@dataclass(frozen=True, slots=True)
class Pages:
    """The templates in every language, by its tag."""

    environments: Mapping[str, Environment]

    @classmethod
    def load(cls, **values: object) -> Self:
        """With `values` for all templates."""
        return cls({language.tag: _environment(language, values) for language in LANGUAGES})


PAGES = web.AppKey("pages", Pages)


def preferred(request: web.Request) -> Language:
    """What the reader has chosen on the page; else the first of the browser's languages that is there; else English."""
    for language in LANGUAGES:
        if language.tag == request.cookies.get(COOKIE):
            return language
    for tag in _accepted(request.headers.get("Accept-Language", "")):
        if found := TAGS.get(tag) or TAGS.get("-".join(tag.split("-")[:2])):
            return found
        if tag.startswith("en-"):
            return ENGLISH
    return ENGLISH


def render(
    request: web.Request, template: str, language: Language | None = None, status: int = 200, /, **values: object
) -> web.Response:
    """A page in the reader's language, or in this one, compressed."""
    language = language or preferred(request)
    text = request.app[PAGES].environments[language.tag].get_template(template).render(**values)
    headers = {"Content-Language": language.tag, "Vary": "Accept-Language, Cookie"}
    response = web.Response(text=text, content_type="text/html", status=status, headers=headers)
    response.enable_compression()
    return response


def scripts() -> dict[str, bytes]:
    """For each language but English what the page's modules say, by its path among the static files.

    That is two scripts: `more` has what the chat page does not need before somebody does something.
    """
    found = {}
    for language in LANGUAGES:
        if language.folder:
            now, later = _said(language.read())
            found[f"language/{language.tag}.js"] = f"globalThis.catalogue = {_json(now)};\n".encode()
            found[f"language/{language.tag}.more.js"] = (
                f"Object.assign(globalThis.catalogue, {_json(later)});\n".encode()
            )
    return found


def extract() -> Catalog:
    """Every sentence of the templates, of the page's modules, of errors and categories, with the files that it is in."""
    catalog = Catalog()
    environment = _environment(ENGLISH, {})
    for name in environment.list_templates():
        assert environment.loader is not None
        source = environment.loader.get_source(environment, name)[0]
        for line, _, sentence in extract_from_ast(environment.parse(source)):
            assert isinstance(sentence, str)
            catalog.add(sentence, locations=[(f"webapp/templates/{name}", line)])
    for node in sorted((files("webapp") / "static").iterdir(), key=lambda node: node.name):
        if node.name.endswith(".js"):
            for found in CALL.finditer(node.read_text(encoding="utf-8")):
                one, many = (json.loads(text) if text else "" for text in found.groups())
                catalog.add((one, many) if many else one, locations=[(f"webapp/static/{node.name}", 1)])
    for kind in _errors(FleetError):
        catalog.add(kind.sentence, locations=[("broker/errors.py", 1)])
    for path in SPEAKERS:
        for sentence in _raised(path):
            catalog.add(sentence, locations=[(path, 1)])
    for sentence in (LEAK, *(text for one in (*CATEGORIES, *JUDGED) for text in (one.title, one.rule))):
        catalog.add(sentence, locations=[("broker/features.py", 1)])
    return catalog


def main() -> None:
    """Take new sentences into the catalogues, and those that nobody says any more out of them."""
    for language in LANGUAGES:
        if language.folder:
            catalog = language.read()
            catalog.update(extract(), no_fuzzy_matching=True)
            with open(str(files("webapp") / language.path), "wb") as file:
                write_po(
                    file,
                    catalog,
                    width=0,
                    omit_header=True,
                    ignore_obsolete=True,
                    include_lineno=False,
                    sort_by_file=True,
                )


def _environment(language: Language, values: Mapping[str, object]) -> Environment:
    environment = Environment(
        loader=PackageLoader("webapp"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.i18n"],
    )
    catalog = language.read()
    known = {m.id: m.string for m in catalog if isinstance(m.id, str) and isinstance(m.string, str) and m.id}
    patterns = [(re.compile(_pattern(one), re.S), text) for one, text in _with_values(catalog).items()]
    environment.install_gettext_callables(  # type: ignore[attr-defined]
        lambda text: known.get(text, text), lambda one, many, count: one if count == 1 else many, newstyle=True
    )

    def told(error: FleetError) -> str:
        """As `told` of static/i18n.js."""
        message, sentence = str(error), known.get(error.sentence)
        if message in known or not sentence or error.code == "internal":
            return known.get(message, message)
        for pattern, text in patterns:
            if found := pattern.fullmatch(message):
                return text.format(**found.groupdict())
        return known.get("{sentence} ({details})", "{sentence} ({details})").format(sentence=sentence, details=message)

    def said(sentence: str) -> str:
        """A sentence of the broker's, which stands in no template."""
        return known.get(sentence, sentence)

    environment.globals |= {"language": language, "languages": LANGUAGES, "told": told, "said": said, **values}
    return environment


def _accepted(header: str) -> list[str]:
    """The tags of Accept-Language, lower case, the dearest first."""
    found = []
    for part in header.lower().split(","):
        tag, *options = (word.strip() for word in part.split(";"))
        quality = next((option[2:] for option in options if option.startswith("q=")), "1")
        if re.fullmatch(r"[01](\.\d{0,3})?", quality) and float(quality):
            found.append((-float(quality), tag))
    return [tag for _, tag in sorted(found, key=lambda pair: pair[0])]


def _said(catalog: Catalog) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the chat page's modules and errors' codes say, and the rest."""
    forms, now = _with_values(catalog), dict[str, Any]()
    later: dict[str, Any] = {"@": {_pattern(one, "?"): text for one, text in forms.items()}}
    of_codes = _sentences()
    for message in catalog:
        modules = [Path(path).name for path, _ in message.locations if path.endswith(".js")]
        if message.id in of_codes.values() or not all(name.startswith(ELSEWHERE) for name in modules):
            now |= _entry(message)
        elif modules or (message.id not in forms and any(path in SPEAKERS for path, _ in message.locations)):
            later |= _entry(message)
    return now | {f"@{code}": now[sentence] for code, sentence in of_codes.items() if sentence in now}, later


def _json(said: Mapping[str, Any]) -> str:
    return json.dumps(said, ensure_ascii=False)


def _with_values(catalog: Catalog) -> dict[str, str]:
    """Errors that have values in them, and their translations; first those that begin with most of their own words."""
    found = {
        str(message.id): str(message.string)
        for message in catalog
        if VALUE.search(str(message.id)) and any(path in SPEAKERS for path, _ in message.locations) and message.string
    }
    return dict(sorted(found.items(), key=lambda one: (-one[0].index("{"), -len(one[0]))))


def _pattern(sentence: str, named: str = "?P") -> str:
    """What finds a sentence's values in it. `named`: how groups get their names, in Python or in the page."""
    words = re.split(VALUE, sentence)
    return "".join(
        f"({named}<{one}>.*?)" if i % 2 else re.sub(r"[][\\^$.|?*+(){}]", r"\\\g<0>", one)
        for i, one in enumerate(words)
    )


def _entry(message: Message) -> dict[str, Any]:
    if not message.string:
        return {}
    if isinstance(message.id, str):
        return {message.id: message.string}
    return {message.id[0]: {"other": message.string[0]}}


def _sentences() -> dict[str, str]:
    """The sentence of each error by its code; where several have one code, the root's."""
    return {kind.code: kind.sentence for kind in reversed(list(_errors(FleetError)))}


def _raised(path: str) -> Iterator[str]:
    """The sentences with which a module makes errors; values in them are {a}, {b}, ..."""
    folder, _, name = path.partition("/")
    kinds = {kind.__name__ for kind in _errors(FleetError)}
    for node in ast.walk(ast.parse((files(folder) / name).read_text(encoding="utf-8"))):
        match node:
            case ast.Call(func=ast.Name(id=kind), args=[ast.Constant(value=str(sentence)), *_]) if kind in kinds:
                yield sentence
            case ast.Call(func=ast.Name(id=kind), args=[ast.JoinedStr(values=parts), *_]) if kind in kinds:
                letters = iter(string.ascii_lowercase)
                form = "".join(str(p.value) if isinstance(p, ast.Constant) else f"{{{next(letters)}}}" for p in parts)
                if re.search("[a-z]{2}", form):  # what is nothing but values has no language
                    yield form


def _errors(kind: type[FleetError]) -> Iterator[type[FleetError]]:
    """This and all below it that a page may see."""
    if not issubclass(kind, SetupError):
        yield kind
        for below in kind.__subclasses__():
            yield from _errors(below)


if __name__ == "__main__":
    main()
