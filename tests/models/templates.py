"""Chat templates, each as short as its kind can be: what models of the hub do with a conversation."""

ASK = "{% if add_generation_prompt %}%s{% endif %}"


def turns(user: str, assistant: str, ask: str, system: str = "", start: str = "") -> str:
    """A template of one text a role; `%s` is the message's."""

    def said(text: str) -> str:
        before, _, after = text.partition("%s")
        return f"{before}{{{{ m['content'] }}}}{after}"

    texts = {"user": user, "assistant": assistant} | ({"system": system} if system else {})
    roles = "".join(f"{{% if m['role'] == '{role}' %}}{said(text)}{{% endif %}}" for role, text in texts.items())
    return f"{start}{{% for m in messages %}}{roles}{{% endfor %}}{ASK.replace('%s', ask)}"


REFUSES_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
ALTERNATES = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}{% endfor %}"
)
SYSTEM = "{% set s = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
# Everything behind a thought is what counts of an earlier answer.
FORGETS = (
    "{% set c = m['content'].split('</think>')[-1].lstrip('\\n') if '</think>' in m['content'] else m['content'] %}"
)

TEMPLATES = {
    "chatml": turns(
        "<|im_start|>user\n%s<|im_end|>\n",
        "<|im_start|>assistant\n%s<|im_end|>\n",
        "<|im_start|>assistant\n",
        "<|im_start|>system\n%s<|im_end|>\n",
    ),
    "chatml, a system text of its own": turns(
        "<|im_start|>user\n%s<|im_end|>\n",
        "<|im_start|>assistant\n%s<|im_end|>\n",
        "<|im_start|>assistant\n",
        "<|im_start|>system\n%s<|im_end|>\n",
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe of use.<|im_end|>\n{% endif %}",
    ),
    "chatml, role written as it is": (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{% endfor %}"
        + ASK.replace("%s", "<|im_start|>assistant\n")
    ),
    "trimmed, with headers": (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
        "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
        + ASK.replace("%s", "<|start_header_id|>assistant<|end_header_id|>\n\n")
    ),
    "a knowledge date": turns(
        "<|start_header_id|>user<|end_header_id|>\n\n%s<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n%s<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "",
        SYSTEM
        + "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nToday is Monday.\n\n{{ s | trim }}<|eot_id|>",
    ),
    "system inside the first question": SYSTEM
    + (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token }}[INST] "
        "{% if s and loop.index0 == 1 %}<<SYS>>\n{{ s }}\n<</SYS>>\n\n{% endif %}{{ m['content'].strip() }} [/INST]"
        "{% elif m['role'] == 'assistant' %} {{ m['content'].strip() }} {{ eos_token }}{% endif %}{% endfor %}"
    ),
    "no system, must alternate": REFUSES_SYSTEM
    + ALTERNATES
    + turns("[INST] %s [/INST]", "%s{{ eos_token }}", "", start="{{ bos_token }}"),
    "system before the last question": SYSTEM
    + (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] "
        "{{ s + '\\n\\n' if loop.last and s else '' }}{{ m['content'] }}[/INST]"
        "{% elif m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "system in a frame of its own": turns(
        "[INST]%s[/INST]",
        "%s{{ eos_token }}",
        "",
        "[SYSTEM_PROMPT]%s[/SYSTEM_PROMPT]",
        "{{ bos_token }}",
    ),
    "turns of a model": REFUSES_SYSTEM
    + ALTERNATES
    + (
        "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else 'user' }}\n"
        "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}" + ASK.replace("%s", "<start_of_turn>model\n")
    ),
    "system in front of the first turn": SYSTEM
    + (
        "{{ bos_token }}{% for m in messages if m['role'] != 'system' %}<start_of_turn>"
        "{{ 'model' if m['role'] == 'assistant' else 'user' }}\n{{ s + '\\n\\n' if loop.first and s else '' }}"
        "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}" + ASK.replace("%s", "<start_of_turn>model\n")
    ),
    "ends of a line": turns(
        "<|user|>\n%s<|end|>\n", "<|assistant|>\n%s<|end|>\n", "<|assistant|>\n", "<|system|>\n%s<|end|>\n"
    ),
    "ends as a text ends": turns(
        "<|user|>\n%s{{ eos_token }}\n",
        "<|assistant|>\n%s{{ eos_token }}\n",
        "<|assistant|>\n",
        "<|system|>\n%s{{ eos_token }}\n",
    ),
    "names in capitals": turns("USER: %s ", "ASSISTANT: %s{{ eos_token }}", "ASSISTANT:", "%s\n\n"),
    "headings": turns("### Instruction:\n%s\n\n", "### Response:\n%s\n\n", "### Response:\n", "%s\n\n"),
    "headings of persons": turns("## User:\n%s\n\n", "## Bot:\n%s\n\n", "## Bot:\n", "## System:\n%s\n\n"),
    "plain names": turns("User: %s\n\n", "Assistant: %s\n\n", "Assistant:", "%s\n\n"),
    "names at the start of a line": turns("\nUser: %s", "\nFalcon: %s", "\nFalcon:", "System: %s"),
    "a system message is left out": turns("User: %s\n", "Bot: %s\n", "Bot:"),
    "corrected persons": turns(
        "GPT4 Correct User: %s<|end_of_turn|>",
        "GPT4 Correct Assistant: %s<|end_of_turn|>",
        "GPT4 Correct Assistant:",
        "GPT4 Correct System: %s<|end_of_turn|>",
        "{{ bos_token }}",
    ),
    "turn tokens": turns(
        "<|START|><|USER|>%s<|END|>",
        "<|START|><|BOT|>%s<|END|>",
        "<|START|><|BOT|>",
        "<|START|><|SYSTEM|>%s<|END|>",
        "{{ bos_token }}",
    ),
    "two tokens begin": turns("<|user|>\n%s", "<|assistant|>\n%s", "<|assistant|>", "<|system|>\n%s", "[gMASK]<sop>"),
    "wide bars": turns(
        "<\uff5cUser\uff5c>%s",
        "<\uff5cAssistant\uff5c>%s{{ eos_token }}",
        "<\uff5cAssistant\uff5c>",
        "%s",
        "{{ bos_token }}",
    ),
    "thoughts are forgotten": SYSTEM
    + (
        "{{ bos_token }}{{ s }}{% for m in messages %}{% if m['role'] == 'user' %}<\uff5cUser\uff5c>{{ m['content'] }}"
        "{% elif m['role'] == 'assistant' %}"
        + FORGETS
        + "<\uff5cAssistant\uff5c>{{ c }}{{ eos_token }}{% endif %}{% endfor %}"
        + ASK.replace("%s", "<\uff5cAssistant\uff5c><think>\n")
    ),
    "thoughts are forgotten, in chatml": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}" + FORGETS + "{{ c }}"
        "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}" + ASK.replace("%s", "<|im_start|>assistant\n")
    ),
    "channels": turns(
        "<|start|>user<|message|>%s<|end|>",
        "<|start|>assistant<|channel|>final<|message|>%s<|return|>",
        "<|start|>assistant",
        "<|start|>developer<|message|># Instructions\n\n%s<|end|>",
        "<|start|>system<|message|>You are a model.<|end|>",
    ),
    "roles between tokens": (
        "{% for m in messages %}<|start_of_role|>{{ m['role'] }}<|end_of_role|>{{ m['content'] }}<|end_of_text|>\n"
        "{% endfor %}" + ASK.replace("%s", "<|start_of_role|>assistant<|end_of_role|>")
    ),
    "roles in capitals": (
        "{% for m in messages %}{{ m['role'] | upper }}: {{ m['content'] }}\n{% endfor %}"
        + ASK.replace("%s", "ASSISTANT:")
    ),
    "roles in brackets": turns(
        "[|user|]%s\n", "[|assistant|]%s[|endofturn|]\n", "[|assistant|]", "[|system|]%s[|endofturn|]\n"
    ),
    "texts as JSON": (
        "{% for m in messages %}{{ {'role': m['role'], 'content': m['content']} | tojson }}\n{% endfor %}"
        + ASK.replace("%s", '{"role": "assistant", "content": ')
    ),
    "every text twice": ("{% for m in messages %}[INST]{{ m['content'] }} | {{ m['content'] }}[/INST]{% endfor %}"),
    "extra tokens of an older kind": turns(
        "<extra_id_1>User\n%s\n", "<extra_id_1>Assistant\n%s\n", "<extra_id_1>Assistant\n", "<extra_id_0>System\n%s\n"
    ),
}
CONTROLS = (
    "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>",
    "<|system|>", "<|end|>", "<|end_of_turn|>", "<|START|>", "<|USER|>", "<|BOT|>", "<|SYSTEM|>", "<|END|>", "[gMASK]",
    "<sop>", "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", "<|start|>", "<|message|>", "<|channel|>", "<|return|>",
    "<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "[|user|]", "[|assistant|]", "[|system|]",
    "[|endofturn|]", "<extra_id_0>", "<extra_id_1>", "<s>", "</s>",
)  # fmt: skip
TAGS = ("<think>", "</think>", "<tool_call>")  # tokens that a model says, not marked special
