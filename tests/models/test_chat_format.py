"""Prompts hold every message's text and no thinking; one function says which tokens end a turn.

The templates of real models come with TRL.
"""

import copy
from importlib.resources import files

import pytest
from tiny_models import llama_tokenizer, mistral_tokenizer
from transformers import AddedToken, GenerationConfig

from sdd_utils.models import chat_format

SYSTEM = {"role": "system", "content": "You are an expert in math."}
USER = {"role": "user", "content": "How many are 3 and 4?"}
OPENED = {"role": "assistant", "content": "Let's see:\n"}
TEMPLATES = {path.name.removesuffix(".jinja"): path for path in (files("trl") / "chat_templates").iterdir()}
REAL = sorted(name for name in TEMPLATES if "training" not in name and TEMPLATES[name].name.endswith(".jinja"))
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LAST_TURN_SHOWS_SYSTEM = (  # as Mistral-7B-Instruct-v0.3 has it
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.system = m.content %}"
    "{% elif m.role == 'user' %}[INST] {% if loop.last and ns.system %}{{ ns.system + '\n\n' }}{% endif %}"
    "{{ m.content }}[/INST]{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)


def with_template(tokenizer, template: str):
    own = copy.deepcopy(tokenizer)
    own.chat_template = template
    return own


def real(tokenizer, name: str):
    return with_template(tokenizer, TEMPLATES[name].read_text())


@pytest.mark.parametrize("name", REAL)
def test_every_text_stands_in_the_prompt_of_real_templates(tokenizer, name):
    own = real(tokenizer, name)
    for messages in ([USER], [SYSTEM, USER], [USER, OPENED], [SYSTEM, USER, OPENED]):
        text = chat_format.render(own, messages)
        places = [text.index(message["content"].strip()) for message in messages]
        assert places == sorted(places)
        assert text.rstrip().endswith("Let's see:") == (messages[-1] is OPENED)
        assert "'type'" not in text


@pytest.mark.parametrize("name", REAL)
def test_prompts_of_real_templates_leave_no_room_for_thinking(tokenizer, name):
    own = real(tokenizer, name)
    prompts = (chat_format.render(own, messages) for messages in ([USER], [USER, OPENED]))
    new, opened = (prompt.partition(USER["content"])[2] for prompt in prompts)
    for turn in (new, opened):
        assert turn.count("<think>") <= turn.count("</think>") <= 1
    assert ("</think>" in new) == ("</think>" in opened.partition("Let's see:")[0])


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("qwen3", "assistant\n<think>\n\n</think>\n\n"),
        ("qwen3_5_think", "assistant\n<think>\n\n</think>\n\n"),
        ("glm4moe", "<|assistant|>\n<think></think>"),
        ("nemotron_3_nano", "assistant\n<think></think>"),
        ("deepseek_r1_distill", "<｜Assistant｜><think>\n\n</think>\n\n"),  # it has no switch
        ("gptoss", "<|start|>assistant<|channel|>final<|message|>"),  # nor has this one, but a channel for answers
        ("gemma4_v5", "<|turn>model\n"),
        ("llama3_1", "<|start_header_id|>assistant<|end_header_id|>\n\n"),
        ("qwen2_5", "<|im_start|>assistant\n"),
    ],
)
def test_where_an_answer_begins(tokenizer, name, end):
    own = real(tokenizer, name)
    assert chat_format.render(own, [USER]).endswith(end)
    opened = chat_format.render(own, [USER, OPENED])
    assert opened.partition(USER["content"])[2].partition("Let's see:")[0].rstrip().endswith(end.rstrip())


@pytest.mark.parametrize(
    ("switch", "template"),
    [
        ("thinking", "{% if thinking is not defined or thinking %}on{% endif %}"),
        ("enable_thinking", "{% if not (enable_thinking is defined and enable_thinking is false) %}on{% endif %}"),
        ("reasoning", "{% if reasoning is not defined or reasoning %}on{% endif %}"),
        ("thinking_budget", "{% if thinking_budget is not defined or thinking_budget > 0 %}on{% endif %}"),
        ("reasoning_effort", "{% if reasoning_effort | default('high') != 'none' %}on{% endif %}"),
    ],
)
def test_every_spelling_of_the_switch_is_off(tokenizer, switch, template):
    assert switch in template
    assert "on" not in chat_format.render(with_template(tokenizer, CHATML + template), [USER]).partition("assistant")[2]


def test_an_effort_that_a_template_does_not_know_is_not_set(tokenizer):
    own = with_template(tokenizer, CHATML + "{{ reasoning_effort | default('medium') }}")
    assert chat_format.render(own, [USER]).endswith("medium")


def test_a_system_message_that_the_template_drops_opens_the_users_turn():
    own = with_template(mistral_tokenizer(), LAST_TURN_SHOWS_SYSTEM)
    both = f"[INST] {SYSTEM['content']}\n\n{USER['content']}[/INST]"
    assert chat_format.render(own, [SYSTEM, USER]) == f"<s>{both}"
    assert chat_format.render(own, [SYSTEM, USER, OPENED]) == f"<s>{both} Let's see:"
    refusing = mistral_tokenizer()
    assert both in chat_format.render(refusing, [SYSTEM, USER])


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            CHATML.replace("m.content }}", "m.content[:9] }}"),
            r"drops or changes the user's text 'How many are 3 and 4\?'",
        ),
        (CHATML.replace("m.content }}", "m.content | upper }}"), "drops or changes the user's text"),
        ("{{ raise_exception('only tools') }}", r"fails \(only tools\)"),
    ],
)
def test_a_template_that_changes_texts_is_refused(tokenizer, template, said):
    with pytest.raises(ValueError, match=said) as error:
        chat_format.render(with_template(tokenizer, template), [USER])
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="has no chat template: use an instruct model"):
        chat_format.render(with_template(tokenizer, None), [USER])


def test_a_text_that_stands_in_another_is_missed_when_it_is_dropped(tokenizer):
    own = with_template(tokenizer, CHATML.replace("messages %}", "messages if m.role != 'system' %}", 1))
    messages = [SYSTEM | {"content": "3 and 4?"}, USER]
    assert chat_format.render(own, messages).count("3 and 4?") == 2


def test_white_space_around_a_text_may_go(tokenizer):
    own = with_template(tokenizer, CHATML.replace("m.content }}", "m.content | trim }}"))
    assert "\nHi<|im_end|>" in chat_format.render(own, [USER | {"content": "  Hi\n"}])


def test_tokens_of_a_rendered_prompt_are_those_of_transformers():
    """With one BOS token where the template prints it, and none where it does not, whatever the tokenizer would add."""
    for own in (llama_tokenizer(), mistral_tokenizer(), with_template(llama_tokenizer(), CHATML)):
        ids = own(chat_format.render(own, [USER]), add_special_tokens=False)["input_ids"]
        assert ids == own.apply_chat_template([USER], add_generation_prompt=True)["input_ids"]
        assert ids.count(own.bos_token_id) == own.chat_template.count("bos_token")


def test_a_turn_ends_with_what_the_template_prints():
    llama, mistral = llama_tokenizer(), mistral_tokenizer()
    assert chat_format.turn_end(llama) == llama.convert_tokens_to_ids("<|eot_id|>")
    assert chat_format.turn_end(mistral) == mistral.eos_token_id
    base = llama_tokenizer()
    base.eos_token = "<|end_of_text|>"  # as base models have it, and Gemma
    assert chat_format.turn_end(base) == llama.convert_tokens_to_ids("<|eot_id|>")
    for template in ("{{ messages[-1].content }}\n### User:", "{{ messages[-1].content }}{{ bos_token }}", None):
        assert chat_format.turn_end(with_template(base, template)) == base.eos_token_id
    base.eos_token = None
    with pytest.raises(ValueError, match="names no end token: set eos_token"):
        chat_format.turn_end(with_template(base, None))


def with_tokens(template: str):
    """A base model's tokenizer, to which a chat template and tokens that are not special were added."""
    own = with_template(llama_tokenizer(), template)
    own.eos_token = "<|end_of_text|>"
    own.add_tokens([AddedToken(token, special=False, normalized=False) for token in ("<eot>", "<user>", "<bot>")])
    return own


@pytest.mark.parametrize(
    ("turn", "end"),
    [
        ("<user>{{ m.content }}{{ '<eot>' if m.role == 'assistant' }}", "<eot>"),
        ("<{{ m.role }}>{{ m.content }}<eot>\n", "<eot>"),
        ("<user>{{ m.content }}{% if not loop.last %}<eot>{% endif %}", "<eot>"),
        ("{{ 'System: x<eot>' if loop.first }}{{ m.role }}: {{ m.content }}{{ '<eot>' if not loop.last }}", "<eot>"),
        ("{{ 'User: ' if m.role == 'user' }}{{ m.content }}{% if not loop.last %}<eot>{% endif %}", "<eot>"),
        ("{{ '<user>' if m.role == 'user' else '<bot>' }}{{ m.content }}", "<|end_of_text|>"),  # they open turns
        ("{{ m.role }}: {{ m.content }}\n", "<|end_of_text|>"),
        ("{{ raise_exception('one turn') if loop.index > 2 }}{{ m.content }}", "<|end_of_text|>"),
    ],
)
def test_a_turn_ends_with_an_added_token_wherever_it_is_printed(turn, end):
    own = with_tokens("{% for m in messages %}" + turn + "{% endfor %}")
    assert chat_format.turn_end(own) == own.convert_tokens_to_ids(end)
    assert own.convert_tokens_to_ids(end) in chat_format.end_tokens(own, GenerationConfig())


@pytest.mark.parametrize(("named", "all_of_them"), [(1, [1, 4]), ([4], [4, 1]), ([1, 2, 4], [1, 2, 4]), (None, [4, 1])])
def test_all_tokens_that_end_a_turn(named, all_of_them):
    base = llama_tokenizer()
    base.eos_token = "<|end_of_text|>"
    assert base.convert_tokens_to_ids(["<|end_of_text|>", "<|eot_id|>"]) == [1, 4]
    assert chat_format.end_tokens(base, GenerationConfig(eos_token_id=named)) == all_of_them


def test_a_row_keeps_the_token_that_ended_it(tokenizer):
    stopped = chat_format.finished(tokenizer, [65, 66, 7], [5, 7])
    assert (stopped["finish"], stopped["n_tokens"], stopped["end_token"]) == ("stop", 3, 7)
    cut = chat_format.finished(tokenizer, [65, 66], [5, 7])
    assert (cut["finish"], cut["n_tokens"], cut["end_token"]) == ("length", 2, None)
    assert stopped["text"] == cut["text"]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It is 7.\n", "It is 7.\n"),
        ("<think>\nAdd them.\n</think>\n\nIt is 7.", "It is 7."),
        ("<think></think>7", "7"),
        ("Add them.\n</think>\n\nIt is 7.", "It is 7."),  # the prompt had opened the block
        ("[THINK]Hm.[/THINK]7", "7"),
        ("<seed:think>Hm.</seed:think>7", "7"),
        ("<think>a</think>Well, <think>b</think>7", "Well, 7"),
        ("<reasoning>\nAdd.\n</reasoning>\n<answer>\n7\n</answer>", "7"),
        ("So <answer>7</answer>, <answer>8</answer>.", "So 7, 8."),
        ("<longcat_think>Hm.</longcat_think>7", "7"),
        ("<|begin_of_thought|>Hm.<|end_of_thought|>\n\n<|begin_of_solution|>7<|end_of_solution|>", "7"),
        ("<|begin_of_thought|>Add", None),
        ("write <answer> there", "write <answer> there"),
        ("<think>\nAdd them, then", None),
        ("7 <think>or", None),
        ("", ""),
    ],
)
def test_thinking_is_no_part_of_a_text(text, answer):
    assert chat_format.without_thinking(text) == answer


def test_thinking_between_special_tokens_is_seen(tokenizer):
    own = copy.deepcopy(tokenizer)
    own.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    ids = own("[THINK]Hm.[/THINK]It is 7.<|im_end|>", add_special_tokens=False)["input_ids"]
    made = chat_format.finished(own, ids, [own.eos_token_id])
    assert made["text"] == "[THINK]Hm.[/THINK]It is 7."
    assert chat_format.without_thinking(made["text"]) == "It is 7."
