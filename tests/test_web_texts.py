"""What the pack's widgets say stands in web/lib/texts.json, in English and in Chinese, and nothing of it in scripts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

WEB = Path(__file__).resolve().parent.parent / "web"
TEXTS = json.loads((WEB / "lib" / "texts.json").read_text(encoding="utf-8"))
SCRIPTS = sorted(WEB.rglob("*.js"))
COMMENT = r"/\*.*?\*/|//[^\n]*"
LITERAL = r"'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\"|`(?:\\.|[^`\\])*`"
# A word that is put where people read or hear it.
SHOWN = re.compile(
    r"(?:textContent|innerText|title|placeholder|alt|tooltip)\s*[:=]\s*['\"`][^'\"`]*[A-Za-z]{2}"
    r"|'aria-(?:label|description)'\s*[,:]\s*['\"`][^'\"`]*[A-Za-z]{2}"
    r"|\bbutton\((?:'[^']*[A-Za-z]{2}|[^,()]+, ['\"`][^'\"`]*[A-Za-z]{2})"
)
# A name, which is the same in every language.
NAMES = {"title: 'Helios"}
CLASSES = ["'row head'", "'pi pi-video'"]
# Takes, downloads and directions come from the server with these.
FROM_SERVER = {("strip", "interrupted"), ("strip", "failed"), ("model", "stopped"), ("director", "anchor")}
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def code(path: Path) -> str:
    """A script without its comments, and without what stands in a literal's places."""
    both = re.compile(f"({LITERAL})|{COMMENT}", re.DOTALL)
    bare = both.sub(lambda found: found[1] or "", path.read_text(encoding="utf-8"))
    return re.sub(r"\$\{words\(('\w+')[^{}]*\}", r"${\1}", bare)


def sentences(text: str) -> list[str]:
    """Literals of a script in which words follow each other, without style sheets, selectors and places in braces."""
    found = []
    for literal in re.findall(LITERAL, text, re.DOTALL):
        plain = re.sub(r"\$\{[^}]*\}", "", literal[1:-1])
        is_style = "{" in plain and "}" in plain
        is_selector = re.fullmatch(r"[\w.:#\-]+(\[[^\]]*\])?(, [\w.:#\-]+(\[[^\]]*\])?)*", plain)
        if re.search(r"[A-Za-z]{2,}[,;:.]? [A-Za-z]+", plain) and not is_style and not is_selector:
            found.append(literal)
    return found


def widget_of(text: str) -> str | None:
    """Whose texts ``words`` gives in a script."""
    if "from './lib/model_texts.js'" in text:
        return "model"
    own = re.search(r"const words = wordsOf\('(\w+)'\)", text)
    return (
        own[1]
        if own
        else "strip"
        if re.search(r"import \{[^}]*\bwords\b[^}]*\} from '[./\w]*texts\.js'", text)
        else None
    )


@pytest.mark.parametrize("widget", TEXTS)
def test_every_text_has_its_translation_and_the_same_places(widget: str) -> None:
    english, chinese = TEXTS[widget]["en"], TEXTS[widget]["zh"]
    assert TEXTS[widget].keys() == {"en", "zh"} and english.keys() == chinese.keys()
    for name, text in english.items():
        places = [sorted(re.findall(r"\{(\w+)\}", x)) for x in (text, chinese[name])]
        assert text.strip() and places[0] == places[1], name
        assert not CHINESE.search(text), name
        assert CHINESE.search(chinese[name]) or not re.search(r"[A-Za-z]{2}", re.sub(r"\{\w+\}", "", chinese[name])), (
            name
        )


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_hold_no_text_and_ask_for_none_that_is_absent(path: Path) -> None:
    text = code(path)
    assert [literal for literal in sentences(text) if literal not in CLASSES] == []
    assert [shown for shown in SHOWN.findall(text) if shown not in NAMES] == []
    widget = widget_of(text)
    asked = set(re.findall(r"(?<![\w.])words\('(\w+)'", text))
    asked |= {name for pair in re.findall(r"words\([^()]*\? '(\w+)' : '(\w+)'\)", text) for name in pair}
    assert not asked or (widget and asked <= TEXTS[widget]["en"].keys()), asked
    for other, name in re.findall(r"wordsOf\('(\w+)'\)\('(\w+)'", text):
        assert name in TEXTS[other]["en"]


def test_no_text_is_left_over() -> None:
    everything = "".join(map(code, SCRIPTS))
    quoted = set(re.findall(r"'(\w+)'", everything))
    # `${action}s` says what a button does whose name is `action`.
    unused = {
        (widget, name)
        for widget, languages in TEXTS.items()
        for name in languages["en"]
        if not {name, name.removesuffix("s")} & quoted and not re.search(rf"\b{name}: '", everything)
    }
    assert unused <= FROM_SERVER, unused


@pytest.mark.parametrize(
    "text",
    [
        "say('Choose a chunk')",
        "x.title = 'Close'",
        "button('✕', 'Close', 'a')",
        "button('More', words('more'), 'a')",
        "a.setAttribute('aria-label', `Prompt ${n}`)",
    ],
)
def test_the_check_sees_texts(text: str) -> None:
    assert sentences(text) or SHOWN.search(text)
