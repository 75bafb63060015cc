"""What MkDocs cannot do by itself: pages of files beside docs/, links that work on GitHub and on the site, and all commands.

A link is written as GitHub takes it: to a file, relative to the file that it stands in. Files of the project that are not in
docs/ become pages, so links to them, and from them, lead to those.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
import posixpath
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

ROOT = Path(__file__).parent.parent
COMMANDS = "reference/command-line.md"
_BLOCK = re.compile(r"(^(?P<fence>`{3,}).*?^(?P=fence)$)", re.MULTILINE | re.DOTALL)
_DIRECTIVE = re.compile(r"^::: (\S+)$", re.MULTILINE)
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)[^)#\s]+")
_SCRIPT = re.compile(r"(?<!\[)`((?:\w+/)?\w+\.py)`")
_HREF = re.compile(r'(?<=\bhref=")(?!\w+:|#)[^"#]+')
_SCRIPT_FROM_ELSEWHERE = re.compile(r"<script\b(?:(?!</script>).)*?https?://.*?</script>", re.DOTALL)
_NAME = re.compile(r"(?<!`)`([A-Za-z][\w.]*)`(?!`)")
_PAPER = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
_log = logging.getLogger("mkdocs.hooks.datamodels")  # its warnings count where the build is strict


@cache
def beside() -> dict[str, str]:
    """Files outside of docs/ that become pages: path in the project -> path of the page."""
    found = {path.name: f"project/{path.stem.lower()}.md" for path in sorted(ROOT.glob("*.md"))}
    found |= {"LICENSE": "project/licence.md", "CITATION.cff": "project/citation.md"}
    found |= {"examples/README.md": "examples/index.md", "benchmarks/RESULTS.md": "benchmarks/RESULTS.md"}
    scripts = [
        path.relative_to(ROOT) for folder in ("examples", "benchmarks") for path in sorted((ROOT / folder).glob("*.py"))
    ]
    return found | {path.as_posix(): path.with_suffix(".md").as_posix() for path in scripts}


def on_config(config: MkDocsConfig) -> None:
    config.mdx_configs["toc"]["slugify"] = slug


def slug(heading: str, separator: str) -> str:
    """What GitHub calls a heading: lower case, without punctuation, spaces as hyphens."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", separator)


def on_files(files: Files, config: MkDocsConfig) -> None:
    for path, page in beside().items():
        text = (ROOT / path).read_text()
        if not path.endswith(".md"):
            language = "python" if path.endswith(".py") else "text"
            text = f"# {Path(path).name}\n\n````{language}\n{text}````\n"
        files.append(File.generated(config, page, content=text))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    place = page.file.src_uri
    if place == COMMANDS:
        markdown += "\n".join(command_line())
    markdown = _DIRECTIVE.sub(lambda found: directive(found[1]), markdown)
    out, end = [], 0
    for block in _BLOCK.finditer(markdown):
        out += [with_links(markdown[end : block.start()], place), block[0]]
        end = block.end()
    return "".join([*out, with_links(markdown[end:], place)])


def with_links(text: str, place: str) -> str:
    """Text of the page at `place` with its links as the site has them, and more: to the scripts that it names."""
    text = _LINK.sub(lambda link: target(link[0], place), text)

    def script(name: re.Match[str]) -> str:
        page = beside().get(name[1]) or beside().get(posixpath.join(posixpath.dirname(source_of(place)), name[1]))
        return name[0] if page is None else f"[{name[0]}]({posixpath.relpath(page, posixpath.dirname(place) or '.')})"

    return _SCRIPT.sub(script, text)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A notebook comes as HTML: with links as they were written, and with scripts of other hosts, which nothing here needs."""
    place = page.file.src_uri
    if not place.endswith(".ipynb"):
        return html

    def address(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(place), target(link[0], place)))
        file = files.get_file_from_path(path)
        if file is None:
            _log.warning("%s links to %s, which is not there", place, link[0])
            return link[0]
        return get_relative_url(file.url, page.url)

    name = Path(place).stem
    sources = f'<p class="sources">This page as <a href="{name}.ipynb">a notebook</a>, or as <a href="{name}.py">a script</a></p>\n'
    return sources + _HREF.sub(address, _SCRIPT_FROM_ELSEWHERE.sub("", html))


def source_of(place: str) -> str:
    """What the page at `place` is made of: a path in the project."""
    return {page: path for path, page in beside().items()}.get(place, f"docs/{place}")


def target(link: str, place: str) -> str:
    """Where a relative link leads from the page at `place`; links to files that are no pages stay as they are."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source_of(place)), link))
    page = beside().get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
    return link if page is None else posixpath.relpath(page, posixpath.dirname(place) or ".")


def directive(name: str) -> str:
    """What has mkdocstrings describe a name. One that a package has for a function and its module alike it takes for the module: there
    the function is asked for where it is defined, and headed as users call it."""
    package, _, last = name.rpartition(".")
    home = getattr(getattr(importlib.import_module(package), last), "__module__", None) or package
    if home.rpartition(".")[2] != last:
        return f"::: {name}"
    return f"[](){{#{name}}}\n\n::: {home}.{last}\n    options:\n      heading: {name}\n      toc_label: {last}"


def command_line() -> Iterator[str]:
    """All commands as Markdown."""
    import typer

    from datamodels.cli import app

    group: Any = typer.main.get_command(app)
    with typer.Context(group, info_name="datamodels") as above:
        for name, command in group.commands.items():
            with typer.Context(command, info_name=name, parent=above) as context:
                paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", command.help.strip())]
                examples = [part.removeprefix("Example: ") for part in paragraphs if part.startswith("Example: ")]
                yield f"\n## {name}\n"
                yield "\n\n".join(part for part in paragraphs if not part.startswith("Example: "))
                yield "\n```bash\n" + "\n".join(examples) + "\n```\n"
                yield f"| `{' '.join(command.get_usage(context).removeprefix('Usage: ').split())}` | |\n|---|---|"
                records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
                for record in filter(None, records):
                    option, text = (part.replace("|", "\\|") for part in record)
                    yield f"| `{option}` | {text} |"


class Fields(griffe.Extension):
    """What pages say of arguments, made exact.

    Fields of pydantic's dataclasses are arguments, and what pydantic's `Field` says of one is its description. Each of several names on
    one line of a docstring has its own type and default. Constants and names of types that this package makes are spelled out.
    """

    def on_class_instance(self, *, cls: griffe.Class, **_: Any) -> None:
        for decorator in cls.decorators:
            if decorator.callable_path == "pydantic.dataclasses.dataclass" and isinstance(
                decorator.value, griffe.ExprCall
            ):
                decorator.value.function = griffe.ExprName("dataclasses.dataclass")

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        if any(str(base) == "BaseModel" for base in cls.bases):
            model = getattr(importlib.import_module(cls.module.path), cls.name)
            for name, field in model.model_fields.items():
                if field.description:
                    cls.members[name].docstring = griffe.Docstring(
                        f"{field.description[0].upper()}{field.description[1:]}."
                    )

    def on_object(self, *, obj: griffe.Object, loader: griffe.GriffeLoader, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = _PAPER.sub(
                r"[\g<0>](https://arxiv.org/abs/\1)", _NAME.sub(linked, obj.docstring.value)
            )
        if isinstance(obj, griffe.Attribute):
            obj.annotation = spelled_out(obj.annotation, loader)
        parameters = obj.parameters if isinstance(obj, griffe.Function | griffe.Class) else ()
        for parameter in parameters:
            parameter.annotation = spelled_out(parameter.annotation, loader)
            parameter.default = spelled_out(parameter.default, loader)
        for section in obj.docstring.parsed if obj.docstring else ():
            if section.kind is griffe.DocstringSectionKind.parameters:
                for said in section.value:
                    if said.name in parameters:
                        said.annotation, said.value = parameters[said.name].annotation, parameters[said.name].default
            elif section.kind is griffe.DocstringSectionKind.attributes:
                section.value = [
                    griffe.DocstringAttribute(
                        name, description=said.description, annotation=annotation_of(obj, name, loader)
                    )
                    for said in section.value
                    for name in said.name.split(", ")
                ]


@cache
def described() -> dict[str, str]:
    """Classes by the names that docstrings call them, and all names by their full ones -> their anchors on pages of the reference."""
    pages = sorted((ROOT / "docs/reference").glob("*.md"))
    names = [name for page in pages for name in _DIRECTIVE.findall(page.read_text())]
    return {name.rpartition(".")[2]: name for name in reversed(names) if name.rpartition(".")[2][0].isupper()} | {
        name: name for name in names
    }


def linked(found: re.Match[str]) -> str:
    """A name in a docstring, as a link where the reference describes it."""
    name, _, member = found[1].partition(".") if found[1] not in described() else (found[1], "", "")
    path = described().get(name)
    if path is None:
        return found[0]
    package, _, last = path.rpartition(".")
    held = getattr(getattr(importlib.import_module(package), last), member, None) if member else None
    if member and not (getattr(held, "__doc__", None) and (callable(held) or isinstance(held, property))):
        return found[0]
    return f"[{found[0]}][{path}{'.' * bool(member)}{member}]"


def spelled_out(expression: Any, loader: griffe.GriffeLoader) -> Any:
    """An expression with what its names stand for, where this package has assigned it."""
    if isinstance(expression, list):
        return [spelled_out(part, loader) for part in expression]
    if isinstance(expression, griffe.ExprName):
        known = meaning(expression, loader)
        return expression if known is None else spelled_out(known, loader)
    if isinstance(expression, griffe.Expr):
        values = {field.name: getattr(expression, field.name) for field in dataclasses.fields(expression)}
        return dataclasses.replace(
            expression, **{name: spelled_out(value, loader) for name, value in values.items() if name != "parent"}
        )
    return expression


def meaning(name: griffe.ExprName, loader: griffe.GriffeLoader) -> Any:
    path = name.canonical_path
    if not path.startswith("datamodels."):
        return None
    try:
        known = loader.modules_collection[path]
    except KeyError:
        return None
    return known.value if known.is_attribute and "TypeVar" not in str(known.value) else None


def annotation_of(obj: griffe.Object, name: str, loader: griffe.GriffeLoader) -> Any:
    member = obj.all_members.get(name)
    return spelled_out(member.annotation, loader) if member is not None and member.is_attribute else None
