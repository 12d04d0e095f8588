"""Words in prompts that other tools act on. Here they are words like any other, which a person should know."""

import re
from collections.abc import Mapping

from serve_app.recipe import PromptSyntax

_ESCAPED = re.compile(r"\\.", re.DOTALL)

# A letter marks what is no footnote, size, time or smiley: [1], (16:9), (so happy :3).
# No possessive groups: Python before 3.11.5 matches them wrongly (its issues 100061 and 106052).
_WEIGHTS = r"""
      \({2,}+(?=[^()]*?[^\W\d_])[^()]*+\){2,}                         # ((red))
    | \((?:[^()]|\([^()]*+\))*?
        (?::\s*+[+-]?\d*\.\d+|(?<=[^\W\d_]|\)):\s*+[+-]?\d+)\s*+\)     # (red:1.4), (f(x):1.4)
    | \[(?=[^\[\]]*?[^\W\d_])[^\[\]]*+\]                              # [red]
    | \b(?-i:BREAK)\b
"""
_OTHERS = r"""
      <[a-z]+:[^\s<>/][^<>]*+>                                        # <lora:name:0.8>
    | \([^()]+\)(?:\+{1,3}|-{2,3}|\d*\.\d+)(?!\w)                     # (red)1.4, (red)++
    | \[(?=[^\[\]]*?[^\W\d_])[^\[\]|:]*+[|:][^\[\]]*+\]              # [red|blue], [red:blue:10]
    | \{[^{}|]*+\|[^{}]*+\}                                           # {red|blue}
    | (?<!\w)__[a-z][a-z\d/*-]*+(?:_[a-z\d/*-]++)*__(?!\w)            # __colours__
    | \b(?-i:ADD(?:COL|ROW|COMM|BASE))\b
    | (?-i:(?<=[^A-Z]\s)AND(?=\s[^A-Z]))                              # between prompts; not between words in capitals
"""
_UNREAD: Mapping[PromptSyntax, re.Pattern[str]] = {
    "plain": re.compile(f"{_WEIGHTS}|{_OTHERS}", re.VERBOSE | re.IGNORECASE),
    "weighted": re.compile(_OTHERS, re.VERBOSE | re.IGNORECASE),
}
_ADVICE: Mapping[PromptSyntax, str] = {
    "plain": "weights, LoRAs and other such syntax are not read with prompt_syntax: plain",
    "weighted": "only weights and BREAK are read",
}

_LORA = re.compile(r"<(?:lora|lyco):", re.IGNORECASE)
_LORA_ADVICE = "; the field loras names LoRAs"

_MOST_NAMED = 3
_LONGEST_NAME = 40


def syntax_warning(field: str, prompt: str, syntax: PromptSyntax = "plain") -> str | None:
    """Return a sentence that names what other tools would act on in a prompt; None where there is nothing."""
    found = found_in(prompt, syntax)
    if not found:
        return None
    named = [name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3] + "..." for name in found[:_MOST_NAMED]]
    more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    listed = ", ".join(named) + more
    advice = _ADVICE[syntax] + (_LORA_ADVICE if any(map(_LORA.match, found)) else "")
    return f"{field}: read as plain words: {listed}; {advice}"


def found_in(prompt: str, syntax: PromptSyntax = "plain") -> list[str]:
    """Return the distinct pieces of a prompt that are syntax elsewhere, in order; not what a backslash escapes."""
    bare = _ESCAPED.sub("  ", prompt)  # of the same length
    pieces = (" ".join(prompt[found.start() : found.end()].split()) for found in _UNREAD[syntax].finditer(bare))
    return list(dict.fromkeys(pieces))
