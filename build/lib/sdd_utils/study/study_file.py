"""A study's YAML file as values: by the core schema of YAML 1.2, and each key once.

PyYAML follows YAML 1.1, where `no` and `on` are booleans, `5e-4` is text, `010` is 8, `1:30` is 90 and a date is no
text. It also keeps the last of two equal keys without a word.
"""

import re
from pathlib import Path

import yaml

_FIRST = list("-+.0123456789")
_RESOLVERS = {
    "bool": ("true|True|TRUE|false|False|FALSE", list("tTfF")),
    "null": ("~|null|Null|NULL|", ["~", "n", "N", ""]),
    "int": (r"[-+]?(0|[1-9][0-9]*)", _FIRST),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        _FIRST,
    ),
    "merge": ("<<", ["<"]),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # not those of YAML 1.1

    def compose_mapping_node(self, anchor):
        """Raises ComposerError where a key stands twice."""
        node, seen = super().compose_mapping_node(anchor), set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.composer.ComposerError(problem=f"the key {key.value!r} again", problem_mark=key.start_mark)
            seen.add(key.value)
        return node


for _tag, (_pattern, _first) in _RESOLVERS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def read_study_file(path: Path):
    """What a YAML file holds. Raises ValueError, in one sentence with the line, where it is no YAML."""
    try:
        return yaml.load(path.read_text("utf-8-sig"), Loader=_Loader)
    except UnicodeError:
        raise ValueError("it is not UTF-8: save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise ValueError(_sentence(error)) from None


def _sentence(error: yaml.YAMLError) -> str:
    mark, said = getattr(error, "problem_mark", None), " ".join(str(getattr(error, "problem", None) or error).split())
    where = f"line {mark.line + 1}: " if mark else ""
    if "'\\t'" in said:
        return f"{where}a tab stands where spaces belong: indent by spaces"
    return f"{where}{said}, correct it"
