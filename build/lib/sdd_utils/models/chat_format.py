"""A model's chat format: prompts in it, the tokens that end its turns, and texts without their thinking.

Thinking is off: the template's switch is set where it has one, and a thinking block that a template opens all the
same is closed at once, as hybrid models do it themselves. Everything is read from the tokenizer and its template.
"""

import contextlib
import functools
import re
from collections.abc import Iterator
from itertools import groupby

import jinja2

# How templates name the switch, and what turns it off. Qwen3, SmolLM3, GLM-4.5, Hunyuan, Nemotron 3 and Gemma 4 have
# the first; DeepSeek-V3.1, Granite and Kimi the second; then Command A, Seed-OSS, Ling, MiniMax and Mistral.
_THINKING_OFF = {"enable_thinking": False, "thinking": False, "reasoning": False, "thinking_budget": 0}
_THINKING_OFF |= {"thinking_option": "off", "thinking_mode": "disabled", "reasoning_effort": "none"}
_THINKING_TAGS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",  # EXAONE Deep
    "<reasoning>": "</reasoning>",
    "<longcat_think>": "</longcat_think>",
    "<|begin_of_thought|>": "<|end_of_thought|>",  # Sky-T1, OpenThinker
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",  # Magistral
    "<|START_THINKING|>": "<|END_THINKING|>",  # Command A
    "<|inner_prefix|>": "<|inner_suffix|>",  # Apertus
    "<|channel>": "<channel|>",  # Gemma 4
    "◁think▷": "◁/think▷",  # Kimi-VL
}
_ANSWER_TAGS = re.compile(r"<answer>(.*?)</answer>|<\|begin_of_solution\|>(.*?)<\|end_of_solution\|>", re.DOTALL)
_ONE_DAY = "{%- macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
_FAILS = (jinja2.TemplateError, TypeError, AttributeError)  # what a template may raise on a form it does not know
_QUESTION, _ANSWER, _NEXT_QUESTION = "A question?", "An answer.", "What else?"


def render(tokenizer, messages: list[dict]) -> str:
    """A conversation in the model's own chat format, ready for the assistant to speak, without thinking.

    Every message's text stands in it, except for white space around the text. A system message that the template
    drops or refuses opens the user's turn instead. A last message of role `assistant` is a
    pre-filled opening that the model continues.

    Raises:
        ValueError: the tokenizer has no chat template, or the template drops or changes a text.
    """
    if tokenizer.chat_template is None:
        raise ValueError("the tokenizer has no chat template: use an instruct model")
    moved, problem = _without_system(messages), ""
    for conversation in (messages, moved) if moved else (messages,):
        for form in (conversation, _in_parts(conversation)):
            try:
                text = _prompt(tokenizer, form)
            except _FAILS as error:
                problem = problem or f"fails ({error})"
                continue
            except ValueError:  # transformers does not find the opening that is to be continued
                lost = conversation[-1]
            else:
                if (lost := _first_lost(conversation, text)) is None and "'type': 'text'" not in text:
                    return text
            if lost is not None:
                problem = f"drops or changes the {lost['role']}'s text {lost['content'].strip()[:40]!r}"
    raise ValueError(f"the model's chat template {problem}: use a model whose template prints every turn as it is")


def _in_parts(messages: list[dict]) -> list[dict]:
    """The same conversation for the template of a model that also sees images: it takes a turn's text as one part."""
    return [message | {"content": [{"type": "text", "text": message["content"]}]} for message in messages]


def _without_system(messages: list[dict]) -> list[dict] | None:
    """The same conversation for a template that knows no system turn: its text opens the user's turn."""
    if [message["role"] for message in messages[:2]] != ["system", "user"]:
        return None
    system, user, *later = messages
    return [user | {"content": f"{system['content']}\n\n{user['content']}"}, *later]


def _first_lost(messages: list[dict], text: str) -> dict | None:
    """The first message whose text is not there; a text within a longer one does not count for both."""
    lost = []
    for message in sorted(messages, key=lambda message: -len(message["content"])):
        before, found, behind = text.partition(message["content"].strip())
        if found or not message["content"].strip():
            text = f"{before}\0{behind}"
        else:
            lost.append(message)
    return next((message for message in messages if message in lost), None)


def _prompt(tokenizer, messages: list[dict]) -> str:
    if messages[-1]["role"] != "assistant":
        return _start_of_turn(tokenizer, messages)
    text = _apply(tokenizer, messages, continue_final_message=True)
    start = _start_of_turn(tokenizer, messages[:-1])
    thinking = start.rpartition(_text(messages[-2]))[2] if len(messages) > 1 else ""
    # Some templates print the closed thinking block before a new turn only, not before one that is continued.
    if any(tag in thinking for tag in _THINKING_TAGS.values()) and not text.startswith(start.rstrip()):
        return start + _text(messages[-1], strip=False)
    return text


def _text(message: dict, *, strip: bool = True) -> str:
    text = message["content"] if isinstance(message["content"], str) else message["content"][0]["text"]
    return text.strip() if strip else text


def _start_of_turn(tokenizer, messages: list[dict]) -> str:
    """A conversation up to where the assistant's answer begins, behind a thinking block that is closed."""
    prompt = _apply(tokenizer, messages, add_generation_prompt=True)
    for begin, end in _THINKING_TAGS.items():
        if prompt.rstrip().endswith(begin):
            prompt = f"{prompt.rstrip()}\n\n{end}\n\n"
    return _answer_channel(tokenizer, messages, prompt) or prompt


def _answer_channel(tokenizer, messages: list[dict], prompt: str) -> str | None:
    """The prompt as it stands before a finished answer, where the template marks answers apart from thoughts (gpt-oss).

    There the model would choose between thinking and answering by what it writes first.
    """
    try:
        answered = _apply(tokenizer, [*messages, {"role": "assistant", "content": _ANSWER}])
    except _FAILS:
        return None
    start = answered.rpartition(_ANSWER)[0]
    return start if start.startswith(prompt) and start[len(prompt) :].strip() else None


def _apply(tokenizer, messages: list[dict], **settings) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, **settings, **_switches(_template(tokenizer)))


def _template(tokenizer) -> str:
    template = tokenizer.chat_template
    return template if isinstance(template, str) else template["default"]


@functools.cache
def _switches(template: str) -> dict:
    """The template's own thinking switches, off."""
    named = {name: off for name, off in _THINKING_OFF.items() if re.search(rf"(?<![\w.]){name}\b", template)}
    if not re.search(r"""["']none["']""", template):  # gpt-oss knows efforts, but not this one
        named.pop("reasoning_effort", None)
    return named


def with_one_day(template: str | None) -> str | None:
    """A chat template that prints the same date every day, if it prints one: the prompt would be another tomorrow."""
    dated = isinstance(template, str) and "strftime_now" in template and not template.startswith(_ONE_DAY)
    return _ONE_DAY + template if dated else template


def turn_end(tokenizer) -> int:
    """The token that ends an assistant's turn: what the chat template prints behind its text, where that is an added
    token, and otherwise the tokenizer's end token.

    Where the template prints nothing behind the last turn, the conversation goes on, and what opens the user's turn is
    no end.

    Raises:
        ValueError: neither is there.
    """
    printed = _printed_end(tokenizer) if tokenizer.chat_template else None
    end = tokenizer.eos_token_id if printed is None else printed
    if end is None:
        raise ValueError("the tokenizer names no end token: set eos_token in its tokenizer_config.json")
    return end


def _printed_end(tokenizer) -> int | None:
    turns = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    answered = next((text for text in _renderings(tokenizer, turns) if _ANSWER in text), _ANSWER)
    end = _added_token(tokenizer, answered.rpartition(_ANSWER)[2])
    return _end_between_turns(tokenizer, turns) if end is None else end


def _added_token(tokenizer, text: str) -> int | None:
    """The added token that a text begins with, special or not; but for the BOS token, which begins a turn."""
    ids = tokenizer(text.lstrip(), add_special_tokens=False)["input_ids"]
    begins = ids[:1] == [tokenizer.bos_token_id] != [tokenizer.eos_token_id]
    return ids[0] if ids and ids[0] in tokenizer.added_tokens_decoder and not begins else None


def _end_between_turns(tokenizer, turns: list[dict]) -> int | None:
    """The token that ends an answer which a question follows."""
    going_on = _renderings(tokenizer, [*turns, {"role": "user", "content": _NEXT_QUESTION}])
    texts = "|".join(map(re.escape, (_QUESTION, _ANSWER, _NEXT_QUESTION)))
    split = (re.split(texts, conversation) for conversation in going_on)
    before, asked, answered = next((parts[:3] for parts in split if len(parts) == 4), ("", "", ""))
    end = _added_token(tokenizer, answered)
    opens = before.endswith(answered) and end != _added_token(tokenizer, asked)  # a user's turn
    return None if opens else end


def _renderings(tokenizer, messages: list[dict]) -> Iterator[str]:
    for form in (messages, _in_parts(messages)):
        with contextlib.suppress(*_FAILS):
            yield _apply(tokenizer, form)


def end_tokens(tokenizer, generation_config) -> list[int]:
    """The tokens that end a turn: those of the model's generation settings, of the chat template and the tokenizer."""
    named = generation_config.eos_token_id
    named = named if isinstance(named, list) else [named]
    return [*dict.fromkeys(id_ for id_ in (*named, turn_end(tokenizer), tokenizer.eos_token_id) if id_ is not None)]


def finished(tokenizer, tokens: list[int], ends: list[int]) -> dict:
    """Text and finish of a row's tokens; one that does not close with an end token was truncated.

    Returns:
        {text, finish: "stop" | "length", n_tokens, end_token}, where `n_tokens` counts the end token and `end_token`
        is its id, or None.
    """
    stopped = bool(tokens) and tokens[-1] in ends
    text = decoded(tokenizer, tokens[:-1] if stopped else tokens)
    end = tokens[-1] if stopped else None
    return {"text": text, "finish": "stop" if stopped else "length", "n_tokens": len(tokens), "end_token": end}


def decoded(tokenizer, tokens: list[int]) -> str:
    """The text without special tokens, but for those that begin or end thinking: without them it would be answer."""
    kept = {}
    for tag in {*_THINKING_TAGS, *_THINKING_TAGS.values()} & set(tokenizer.all_special_tokens):
        kept[tokenizer.convert_tokens_to_ids(tag)] = tag
    pieces = groupby(tokens, key=kept.get)
    return "".join(
        tokenizer.decode([*piece], skip_special_tokens=True) if tag is None else tag * len([*piece])
        for tag, piece in pieces
    )


def without_thinking(text: str) -> str | None:
    """A text without its thinking blocks and the tags around its answer; None where a block is not closed, so that no
    answer has begun.

    What stands before the end of a block that the prompt had begun is thinking, too.
    """
    answer = text
    for begin, end in _THINKING_TAGS.items():
        answer = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", "", answer, flags=re.DOTALL)
        answer = answer.rpartition(end)[2]
        if begin in answer:
            return None
    answer = _ANSWER_TAGS.sub(lambda match: (match[1] or match[2] or "").strip(), answer)
    return text if answer == text else answer.lstrip()
