"""What MkDocs cannot do by itself: pages of files beside docs/, links that work on GitHub and on the site, and all commands.

A link is written as GitHub takes it: to a file, relative to the file that it stands in. Files of the project that are not in
docs/ become pages, so links to them, and from them, lead to those.
"""

from __future__ import annotations

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
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)[^)#\s]+")
_HREF = re.compile(r'(?<=\bhref=")(?!\w+:|#)[^"#]+')
_SCRIPT_FROM_ELSEWHERE = re.compile(r"<script\b(?:(?!</script>).)*?https?://.*?</script>", re.DOTALL)
_log = logging.getLogger("mkdocs.hooks.datamodels")  # its warnings count where the build is strict


@cache
def beside() -> dict[str, str]:
    """Files outside of docs/ that become pages: path in the project -> path of the page."""
    found = {path.name: f"project/{path.stem.lower()}.md" for path in sorted(ROOT.glob("*.md"))}
    found |= {"LICENSE": "project/licence.md"}
    found |= {"examples/README.md": "examples/index.md", "benchmarks/RESULTS.md": "benchmarks/index.md"}
    scripts = [path.relative_to(ROOT) for folder in ("examples", "benchmarks") for path in sorted((ROOT / folder).glob("*.py"))]
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
    out, end = [], 0
    for block in _BLOCK.finditer(markdown):
        out += [_LINK.sub(lambda link: target(link[0], place), markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*out, _LINK.sub(lambda link: target(link[0], place), markdown[end:])])


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


def target(link: str, place: str) -> str:
    """Where a relative link leads from the page at `place`; links to files that are no pages stay as they are."""
    source = {page: path for path, page in beside().items()}.get(place, f"docs/{place}")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    page = beside().get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
    return link if page is None else posixpath.relpath(page, posixpath.dirname(place) or ".")


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
    """Fields of pydantic's dataclasses are arguments, each of several names on one line of a docstring has its own type and
    default, and a default that is a constant shows its value."""

    def on_class_instance(self, *, cls: griffe.Class, **_: Any) -> None:
        for decorator in cls.decorators:
            if decorator.callable_path == "pydantic.dataclasses.dataclass" and isinstance(decorator.value, griffe.ExprCall):
                decorator.value.function = griffe.ExprName("dataclasses.dataclass")

    def on_object(self, *, obj: griffe.Object, loader: griffe.GriffeLoader, **_: Any) -> None:
        parameters = obj.parameters if isinstance(obj, griffe.Function | griffe.Class) else ()
        for parameter in parameters:
            parameter.default = _constant(parameter.default, loader)
        for section in obj.docstring.parsed if obj.docstring else ():
            if section.kind is griffe.DocstringSectionKind.parameters:
                for said in section.value:
                    if said.name in parameters:
                        said.annotation, said.value = parameters[said.name].annotation, parameters[said.name].default
            elif section.kind is griffe.DocstringSectionKind.attributes:
                section.value = [
                    griffe.DocstringAttribute(name, description=said.description, annotation=_annotation(obj, name))
                    for said in section.value
                    for name in said.name.split(", ")
                ]


def _constant(default: Any, loader: griffe.GriffeLoader) -> Any:
    if isinstance(default, griffe.ExprName):
        try:
            known = loader.modules_collection[default.canonical_path]
        except KeyError:
            return default
        return known.value if known.is_attribute else default
    return default


def _annotation(obj: griffe.Object, name: str) -> Any:
    member = obj.all_members.get(name)
    return member.annotation if member is not None and member.is_attribute else None
